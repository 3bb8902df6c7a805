package udp

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"slipway/netstack/tap"
)

var (
	web4 = at(guest4, 80)
	web6 = at(guest6, 80)
)

// publish binds addrs and publishes them; it returns the addresses bound.
func publish(t *testing.T, n *NAT, to4, to6 netip.AddrPort, addrs ...string) (io.Closer, []netip.AddrPort) {
	t.Helper()
	var files []*os.File
	var bound []netip.AddrPort
	for _, a := range addrs {
		c, addr := hostSocket(t, a)
		f, err := c.File()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		defer f.Close()
		files = append(files, f)
		bound = append(bound, addr)
	}
	p, err := n.Publish(files, to4, to6)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, bound
}

func TestPublish(t *testing.T) {
	for _, tt := range []struct {
		name, listen, client string
		to4, to6             netip.AddrPort
		shown                netip.Addr
		to                   netip.AddrPort
	}{
		{"IPv4", "127.0.0.1:0", "127.0.0.1:0", web4, web6, gateway4, web4},
		{"IPv6", "[::1]:0", "[::1]:0", web4, web6, gateway6, web6},
		{"IPv6 client, IPv4 only guest", "[::1]:0", "[::1]:0", web4, netip.AddrPort{}, gateway4, web4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest()
			n := newNAT(t, testConfig(g))
			p, bound := publish(t, n, tt.to4, tt.to6, tt.listen)
			client, clientAddr := hostSocket(t, tt.client)
			writeTo(t, client, []byte("ping"), bound[0])
			shown := at(tt.shown, clientAddr.Port())
			want := []delivered{{shown, tt.to, []byte("ping")}}
			if diff := cmp.Diff(want, g.next(t).open(t), sameAddr); diff != "" {
				t.Errorf("to the guest (-want +got):\n%s", diff)
			}
			in(t, n, udpFrame(tt.to, shown, []byte("pong")))
			b, from := read(t, client)
			if string(b) != "pong" || from != bound[0] {
				t.Errorf("the client got %q from %v, want pong from %v", b, from, bound[0])
			}
			eventually(t, "the request is counted", func() bool { return n.Stats().Published.TxDatagrams == 1 })
			s := n.Stats()
			if s.SessionsTotal != 0 {
				t.Errorf("%d sessions of the NAT", s.SessionsTotal)
			}
			wantStats := Published{Sessions: 1, SessionsTotal: 1, RxDatagrams: 1, RxBytes: 4, TxDatagrams: 1, TxBytes: 4}
			for where, got := range map[string]Published{"the NAT": s.Published, "the port": p.(*Publication).Stats()} {
				if diff := cmp.Diff(wantStats, got); diff != "" {
					t.Errorf("stats of %s (-want +got):\n%s", where, diff)
				}
			}
		})
	}
}

// The reply comes from the address that the client sent to, on a wildcard socket, too.
func TestReplyLeavesFromTheAddressUsed(t *testing.T) {
	g := newGuest()
	n := newNAT(t, testConfig(g))
	_, bound := publish(t, n, web4, netip.AddrPort{}, "0.0.0.0:0")
	client, _ := hostSocket(t, "127.0.0.1:0")
	for _, a := range []string{"127.0.0.5", "127.0.0.6"} {
		to := at(netip.MustParseAddr(a), bound[0].Port())
		writeTo(t, client, []byte("ping"), to)
		d := g.next(t).open(t)[0]
		// A run out of the guest takes the same way.
		h := tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: 4}
		if !n.Input(h, udpFrame(web4, d.Src, []byte("pongpang"))) {
			t.Fatal("not taken")
		}
		for _, want := range []string{"pong", "pang"} {
			if b, from := read(t, client); string(b) != want || from != to {
				t.Errorf("got %q from %v, want %q from %v", b, from, want, to)
			}
		}
	}
}

// Two clients that would look alike do not get each other's replies.
func TestConflictingClients(t *testing.T) {
	g := newGuest()
	n := newNAT(t, testConfig(g))
	_, bound := publish(t, n, web4, netip.AddrPort{}, "0.0.0.0:0")
	to := at(netip.MustParseAddr("127.0.0.1"), bound[0].Port())
	a, addrA := hostSocket(t, "127.0.0.1:0")
	b, _ := hostSocket(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), addrA.Port()).String())
	writeTo(t, a, []byte("a"), to)
	fromA := g.next(t).open(t)[0].Src
	writeTo(t, b, []byte("b"), to)
	fromB := g.next(t).open(t)[0].Src
	if fromA != at(gateway4, addrA.Port()) || fromB.Addr() != gateway4 || fromB == fromA {
		t.Fatalf("shown as %v and %v", fromA, fromB)
	}
	in(t, n, udpFrame(web4, fromB, []byte("to b")), udpFrame(web4, fromA, []byte("to a")))
	if got, _ := read(t, a); string(got) != "to a" {
		t.Errorf("a got %q", got)
	}
	if got, _ := read(t, b); string(got) != "to b" {
		t.Errorf("b got %q", got)
	}
}

func TestForeign(t *testing.T) {
	n := newNAT(t, testConfig(newGuest()))
	for addr, want := range map[string]bool{
		"192.0.2.1": true, "2001:db8::1": true, "10.0.3.1": true,
		"127.0.0.1": false, "::1": false, "169.254.1.1": false, "fe80::1": false,
		"10.0.2.100": false, "10.0.2.7": false, "fd00::100": false, "fd00::9": false,
		"0.0.0.0": false, "::": false, "224.0.0.1": false, "255.255.255.255": false,
	} {
		if got := n.foreign(netip.MustParseAddr(addr)); got != want {
			t.Errorf("foreign(%s) = %t, want %t", addr, got, want)
		}
	}
}

func TestClientsAreBounded(t *testing.T) {
	g := newGuest()
	cfg := testConfig(g)
	cfg.Limits.Clients = 2
	n := newNAT(t, cfg)
	_, bound := publish(t, n, web4, netip.AddrPort{}, "127.0.0.1:0")
	var first netip.AddrPort
	for i := range 3 {
		c, addr := hostSocket(t, "127.0.0.1:0")
		if i == 0 {
			first = addr
		}
		writeTo(t, c, []byte("x"), bound[0])
		g.next(t)
	}
	if p := n.Stats().Published; p.Sessions != 2 || p.SessionsTotal != 3 || p.SessionsEvicted != 1 {
		t.Errorf("%d open, %d total, %d evicted, want 2, 3, 1", p.Sessions, p.SessionsTotal, p.SessionsEvicted)
	}
	// The evicted client's replies are the NAT's, whose policy maps the gateway.
	in(t, n, udpFrame(web4, at(gateway4, first.Port()), []byte("late")))
	if got := n.Stats(); got.SessionsTotal != 1 || got.Published.RxDatagrams != 0 {
		t.Errorf("a late reply: %+v", got)
	}
}

func TestIdleClientsExpire(t *testing.T) {
	g := newGuest()
	n := newNAT(t, testConfig(g))
	_, bound := publish(t, n, web4, netip.AddrPort{}, "127.0.0.1:0")
	silent, _ := hostSocket(t, "127.0.0.1:0")
	writeTo(t, silent, []byte("x"), bound[0])
	g.next(t)
	talking, _ := hostSocket(t, "127.0.0.1:0")
	writeTo(t, talking, []byte("x"), bound[0])
	in(t, n, udpFrame(web4, g.next(t).open(t)[0].Src, []byte("y")))
	start := n.clock()
	for _, tt := range []struct {
		after time.Duration
		open  uint64
	}{{59 * time.Second, 2}, {61 * time.Second, 1}, {121 * time.Second, 0}} {
		n.sweep(start + tt.after)
		if got := n.Stats().Published.Sessions; got != tt.open {
			t.Errorf("after %v: %d clients, want %d", tt.after, got, tt.open)
		}
	}
}

// Runs from a client arrive merged, with the port's own counters.
func TestClientsRun(t *testing.T) {
	g := newGuest()
	n := newNAT(t, testConfig(g))
	_, bound := publish(t, n, web4, netip.AddrPort{}, "127.0.0.1:0")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	s, name := &socket{fd: fd}, sockaddrOf(bound[0])
	if err := s.send(&name, &control{}, bytes.Repeat([]byte("abcd"), 5), 4); err != nil {
		t.Skipf("no UDP_SEGMENT here: %v", err)
	}
	w := g.next(t)
	if got := w.open(t); len(got) != 5 || w.h.GSOSize != 4 {
		t.Errorf("%d datagrams, segment %d, want 5 and 4", len(got), w.h.GSOSize)
	}
}

func TestUnpublish(t *testing.T) {
	before := openFiles(t)
	g := newGuest()
	n, err := New(testConfig(g))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	p, bound := publish(t, n, web4, web6, "127.0.0.1:0")
	// Two ports may have the same target.
	q, bound2 := publish(t, n, web4, netip.AddrPort{}, "127.0.0.1:0")
	client, _ := hostSocket(t, "127.0.0.1:0")
	writeTo(t, client, []byte("1"), bound[0])
	one := g.next(t).open(t)[0].Src
	writeTo(t, client, []byte("2"), bound2[0])
	two := g.next(t).open(t)[0].Src
	if one == two {
		t.Fatalf("flows by two ports are both shown as %v", one)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	in(t, n, udpFrame(web4, two, []byte("still")))
	if b, from := read(t, client); string(b) != "still" || from != bound2[0] {
		t.Errorf("got %q from %v", b, from)
	}
	// The port is free again.
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(bound[0]))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if got := n.Stats().Published.Sessions; got != 0 {
		t.Errorf("%d clients of closed ports", got)
	}
	if left := len(*n.published.targets.Load()); left != 0 {
		t.Errorf("%d targets left", left)
	}
	client.Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if got := openFiles(t); got != before {
		t.Errorf("%d descriptors, %d before", got, before)
	}
	if _, err := n.Publish(nil, web4, web6); err == nil {
		t.Error("published on a closed NAT")
	}
}

func TestPublishRefuses(t *testing.T) {
	g := newGuest()
	cfg := testConfig(g)
	cfg.Gateway6 = netip.Addr{}
	n := newNAT(t, cfg)
	udp, _ := hostSocket(t, "127.0.0.1:0")
	udpFile, err := udp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer udpFile.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcpFile, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcpFile.Close()
	before := openFiles(t)
	for _, tt := range []struct {
		name     string
		sockets  []*os.File
		to4, to6 netip.AddrPort
	}{
		{"no socket", nil, web4, netip.AddrPort{}},
		{"no target", []*os.File{udpFile}, netip.AddrPort{}, netip.AddrPort{}},
		{"families swapped", []*os.File{udpFile}, web6, netip.AddrPort{}},
		{"port 0", []*os.File{udpFile}, at(guest4, 0), netip.AddrPort{}},
		{"no gateway of the family", []*os.File{udpFile}, web4, web6},
		{"a TCP socket", []*os.File{udpFile, tcpFile}, web4, netip.AddrPort{}},
	} {
		if _, err := n.Publish(tt.sockets, tt.to4, tt.to6); err == nil {
			t.Errorf("%s: no error", tt.name)
		}
	}
	if got := openFiles(t); got != before {
		t.Errorf("%d descriptors, %d before", got, before)
	}
	if left := len(*n.published.targets.Load()); left != 0 {
		t.Errorf("%d targets left", left)
	}
}
