package udp

import (
	"bytes"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"slipway/netstack/internal/frametest"
	"slipway/netstack/tap"
)

var sameAddr = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})

func TestRoundTrip(t *testing.T) {
	for _, tt := range []struct {
		name    string
		server  string
		guest   netip.Addr
		gateway netip.Addr
		offload tap.Offload
	}{
		{"IPv4", "127.0.0.1:0", guest4, gateway4, allUSO},
		{"IPv6", "[::1]:0", guest6, gateway6, allUSO},
		{"IPv4, plain frames", "127.0.0.1:0", guest4, gateway4, 0},
		{"IPv6, plain frames", "[::1]:0", guest6, gateway6, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest()
			cfg := testConfig(g)
			cfg.Offload = tt.offload
			n := newNAT(t, cfg)
			server, addr := hostSocket(t, tt.server)
			src, dst := at(tt.guest, 4000), at(tt.gateway, addr.Port())
			for _, size := range []int{5, 0, 1, 1372} {
				payload := bytes.Repeat([]byte{0xa5}, size)
				in(t, n, udpFrame(src, dst, payload))
				got, from := read(t, server)
				if !bytes.Equal(got, payload) {
					t.Fatalf("the server got %d bytes % x, want %d", len(got), got, size)
				}
				writeTo(t, server, append([]byte("re: "), got...), from)
				w := g.next(t)
				if plain := w.h == (tap.Header{}); plain != (tt.offload == 0) {
					t.Errorf("header %+v with offloads %#x", w.h, tt.offload)
				}
				want := []delivered{{dst, src, append([]byte("re: "), payload...)}}
				if diff := cmp.Diff(want, w.open(t), sameAddr); diff != "" {
					t.Errorf("reply (-want +got):\n%s", diff)
				}
			}
			// A frame is counted when it has been written.
			eventually(t, "four replies are counted", func() bool { return n.Stats().TxDatagrams == 4 })
			s := n.Stats()
			want := Stats{Sessions: 1, SessionsTotal: 1, RxDatagrams: 4, RxBytes: 1378, TxDatagrams: 4, TxBytes: 1378 + 16}
			if diff := cmp.Diff(want, s); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
		})
	}
}

// One socket for all destinations of a guest port: RFC 4787 REQ-1.
func TestMappingIsEndpointIndependent(t *testing.T) {
	g := newGuest()
	n := newNAT(t, testConfig(g))
	a, addrA := hostSocket(t, "127.0.0.1:0")
	b, addrB := hostSocket(t, "127.0.0.2:0")
	src := at(guest4, 4000)
	in(t, n, udpFrame(src, at(gateway4, addrA.Port()), []byte("a")), udpFrame(src, addrB, []byte("b")))
	_, fromA := read(t, a)
	_, fromB := read(t, b)
	if fromA.Port() != fromB.Port() {
		t.Errorf("ports %d and %d, want one mapping", fromA.Port(), fromB.Port())
	}
	in(t, n, udpFrame(at(guest4, 4001), at(gateway4, addrA.Port()), []byte("c")))
	if _, other := read(t, a); other.Port() == fromA.Port() {
		t.Error("two ports of the guest share a mapping")
	}
}

// Any port of an address that the guest has sent to, and nobody else: RFC 4787 section 5.
func TestFilteringIsAddressDependent(t *testing.T) {
	g := newGuest()
	n := newNAT(t, testConfig(g))
	known, addr := hostSocket(t, "127.0.0.1:0")
	sibling, siblingAddr := hostSocket(t, "127.0.0.1:0")
	stranger, _ := hostSocket(t, "127.0.0.3:0")
	src, dst := at(guest4, 4000), at(gateway4, addr.Port())
	in(t, n, udpFrame(src, dst, []byte("hello")))
	_, from := read(t, known)

	writeTo(t, stranger, []byte("stranger"), from)
	writeTo(t, sibling, []byte("sibling"), from)
	want := []delivered{{at(gateway4, siblingAddr.Port()), src, []byte("sibling")}}
	if diff := cmp.Diff(want, g.next(t).open(t), sameAddr); diff != "" {
		t.Errorf("from another port (-want +got):\n%s", diff)
	}
	g.none(t)
	if got := n.Stats().Dropped.Filtered; got != 1 {
		t.Errorf("%d filtered, want 1", got)
	}
}

func TestShown(t *testing.T) {
	remote := netip.MustParseAddrPort("192.0.2.7:9000")
	for _, tt := range []struct {
		name string
		src  netip.AddrPort
		want netip.AddrPort // invalid: not at all
	}{
		{"the peer", remote, remote},
		{"the peer's other port", at(remote.Addr(), 1), at(remote.Addr(), 1)},
		{"mapped", netip.MustParseAddrPort("127.0.0.1:53"), at(gateway4, 53)},
		{"stranger", netip.MustParseAddrPort("203.0.113.9:7"), netip.AddrPort{}},
		{"the guest's network", at(guest4, 5), netip.AddrPort{}},
		{"link-local", netip.MustParseAddrPort("169.254.1.1:5"), netip.AddrPort{}},
		{"the other family", netip.MustParseAddrPort("[2001:db8::1]:5"), netip.AddrPort{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNAT(t, testConfig(newGuest()))
			s := &session{nat: n, guest: at(guest4, 4000), peers: []peer{
				{guest: remote, host: remote},
				{guest: at(gateway4, 53), host: netip.MustParseAddrPort("127.0.0.1:53")},
			}}
			got, ok := s.shown(tt.src)
			if ok != tt.want.IsValid() || ok && got != tt.want {
				t.Errorf("shown(%v) = %v, %t, want %v", tt.src, got, ok, tt.want)
			}
		})
	}
}

func TestPeersAreBounded(t *testing.T) {
	g := newGuest()
	cfg := testConfig(g)
	cfg.Limits.Peers = 2
	n := newNAT(t, cfg)
	src := at(guest4, 4000)
	first, addr := hostSocket(t, "127.0.0.2:0")
	in(t, n, udpFrame(src, addr, []byte("x")))
	_, from := read(t, first)
	s := n.session(src)
	for i, a := range []string{"127.0.0.3:9", "127.0.0.4:9"} {
		dst := netip.MustParseAddrPort(a)
		if _, err := s.learn(dst, dst, int64(i)+int64(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.peers) != 2 {
		t.Fatalf("%d peers, want 2", len(s.peers))
	}
	writeTo(t, first, []byte("forgotten"), from)
	eventually(t, "the forgotten peer is filtered", func() bool { return n.Stats().Dropped.Filtered == 1 })
}

func TestRefusedDestinations(t *testing.T) {
	type icmp struct {
		From, To   netip.Addr
		Type, Code byte
	}
	for _, tt := range []struct {
		name     string
		src, dst netip.AddrPort
		want     icmp
		dropped  Dropped
	}{
		{"denied", at(guest4, 4000), netip.MustParseAddrPort("192.0.2.1:9"), icmp{gateway4, guest4, 3, 13}, Dropped{Denied: 1}},
		{"no route", at(guest4, 4000), netip.MustParseAddrPort("198.51.100.1:9"), icmp{gateway4, guest4, 3, 1}, Dropped{Unreachable: 1}},
		{"denied, IPv6", at(guest6, 4000), netip.MustParseAddrPort("[2001:db8::1]:9"), icmp{gateway6, guest6, 1, 1}, Dropped{Denied: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest()
			n := newNAT(t, testConfig(g))
			f := udpFrame(tt.src, tt.dst, bytes.Repeat([]byte("x"), 1300))
			in(t, n, f)
			w := g.next(t)
			b := w.frame
			var got icmp
			var quote []byte
			if b[12] == 0x08 {
				got = icmp{netip.AddrFrom4([4]byte(b[26:30])), netip.AddrFrom4([4]byte(b[30:34])), b[34], b[35]}
				if s := frametest.Sum(b[34:]); s != 0xffff || b[23] != 1 {
					t.Errorf("protocol %d sums to %#x", b[23], s)
				}
				quote = b[42:]
			} else {
				got = icmp{netip.AddrFrom16([16]byte(b[22:38])), netip.AddrFrom16([16]byte(b[38:54])), b[54], b[55]}
				if s := frametest.Sum(frametest.Pseudo(got.From, got.To, 58, len(b)-54), b[54:]); s != 0xffff || b[20] != 58 {
					t.Errorf("protocol %d sums to %#x", b[20], s)
				}
				quote = b[62:]
			}
			if diff := cmp.Diff(tt.want, got, sameAddr); diff != "" {
				t.Errorf("ICMP error (-want +got):\n%s", diff)
			}
			if !bytes.HasPrefix(f[14:], quote) || len(quote) < 28 {
				t.Errorf("the quote of %d bytes is not the packet", len(quote))
			}
			if diff := cmp.Diff(tt.dropped, n.Stats().Dropped); diff != "" {
				t.Errorf("dropped (-want +got):\n%s", diff)
			}
			if s := n.Stats(); s.Sessions != 0 || s.ICMPErrors != 1 {
				t.Errorf("%d sessions, %d errors, want 0 and 1", s.Sessions, s.ICMPErrors)
			}
		})
	}
}

func TestICMPErrorsAreLimited(t *testing.T) {
	g := newGuest()
	cfg := testConfig(g)
	cfg.Limits.ICMPErrors = 2
	n := newNAT(t, cfg)
	for range 50 {
		in(t, n, udpFrame(at(guest4, 4000), netip.MustParseAddrPort("192.0.2.1:9"), nil))
	}
	s := n.Stats()
	if s.ICMPErrors+s.ICMPErrorsLimited != 50 || s.ICMPErrors > 25 || s.ICMPErrors == 0 {
		t.Errorf("%d errors sent, %d held back", s.ICMPErrors, s.ICMPErrorsLimited)
	}
}

// A closed port on the host is told to the guest as its own kernel would be.
func TestPortUnreachableIsRelayed(t *testing.T) {
	for _, family := range []struct {
		name, server   string
		guest, gateway netip.Addr
		kind, code     byte
	}{{"IPv4", "127.0.0.1:0", guest4, gateway4, 3, 3}, {"IPv6", "[::1]:0", guest6, gateway6, 1, 4}} {
		t.Run(family.name, func(t *testing.T) {
			g := newGuest()
			n := newNAT(t, testConfig(g))
			server, addr := hostSocket(t, family.server)
			server.Close()
			src, dst := at(family.guest, 4000), at(family.gateway, addr.Port())
			f := udpFrame(src, dst, []byte("anybody?"))
			in(t, n, f)
			b := g.next(t).frame
			at, ip := 34, 20
			if b[12] == 0x86 {
				at, ip = 54, 40
			}
			if b[at] != family.kind || b[at+1] != family.code {
				t.Fatalf("type %d code %d, want %d %d", b[at], b[at+1], family.kind, family.code)
			}
			// What the guest's kernel looks the socket up by: addresses and ports.
			quote, orig := b[at+8:], f[14:]
			if !bytes.Equal(quote[ip-8:ip], orig[ip-8:ip]) || !bytes.Equal(quote[ip:ip+6], orig[ip:ip+6]) {
				t.Errorf("quote % x, want % x", quote, orig)
			}
			// The flow goes on: the error does not eat the next datagram.
			in(t, n, f)
			g.next(t)
			eventually(t, "both errors are counted", func() bool { return n.Stats().ICMPErrors == 2 })
			if got := n.Stats(); got.RxDatagrams != 2 || got.Dropped != (Dropped{}) {
				t.Errorf("stats %+v", got)
			}
		})
	}
}

// The TTL goes on less one, so that traceroute finds the routers on the way.
func TestTTL(t *testing.T) {
	for _, tt := range []struct {
		name           string
		server         string
		guest, gateway netip.Addr
		elsewhere      netip.AddrPort
		ttl            int // offset in the frame
		error          []byte
	}{
		{"IPv4", "127.0.0.1:0", guest4, gateway4, netip.MustParseAddrPort("127.0.0.9:9"), 22, []byte{11, 0}},
		{"IPv6", "[::1]:0", guest6, gateway6, netip.MustParseAddrPort("[2001:db8::1]:9"), 21, []byte{3, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest()
			n := newNAT(t, testConfig(g))
			server, addr := hostSocket(t, tt.server)
			raw, err := server.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			level, option := unix.SOL_IP, unix.IP_RECVTTL
			if tt.name == "IPv6" {
				level, option = unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT
			}
			if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); cerr != nil || err != nil {
				t.Fatal(cerr, err)
			}
			src, dst := at(tt.guest, 4000), at(tt.gateway, addr.Port())
			with := func(dst netip.AddrPort, ttl byte) []byte {
				return edit(udpFrame(src, dst, []byte("x")), func(f []byte) []byte {
					f[tt.ttl] = ttl
					if f[12] == 0x08 {
						fixIPv4(f)
					}
					return f
				})
			}
			for _, ttl := range []struct{ sent, want byte }{{9, 8}, {255, 254}, {64, 64}, {1, 1}} {
				in(t, n, with(dst, ttl.sent))
				control := make([]byte, 100)
				_, c, _, _, err := server.ReadMsgUDPAddrPort(make([]byte, 10), control)
				if err != nil {
					t.Fatal(err)
				}
				messages, err := unix.ParseSocketControlMessage(control[:c])
				if err != nil || len(messages) != 1 || messages[0].Data[0] != ttl.want {
					t.Errorf("TTL %d on the way for %d, want %d (%v)", messages[0].Data[0], ttl.sent, ttl.want, err)
				}
			}
			in(t, n, with(tt.elsewhere, 1))
			b := g.next(t).frame
			at := 34
			if b[12] == 0x86 {
				at = 54
			}
			if !bytes.Equal(b[at:at+2], tt.error) {
				t.Errorf("type and code % x, want % x", b[at:at+2], tt.error)
			}
			if diff := cmp.Diff(Dropped{TTL: 1}, n.Stats().Dropped); diff != "" {
				t.Errorf("dropped (-want +got):\n%s", diff)
			}
		})
	}
}

// What the host's kernel refuses to send is told to the guest, too.
func TestHostRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		host string
		code byte
		want Dropped
	}{
		{"no route", "192.0.2.1:9", 1, Dropped{Unreachable: 1}},
		{"prohibited", "127.255.255.255:9", 13, Dropped{Denied: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			runtime.LockOSThread() // for good: the thread's namespace is nobody else's
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Skipf("no network namespace for the test: %v", err)
			}
			g := newGuest()
			cfg := testConfig(g)
			cfg.Route = func(netip.AddrPort) (netip.AddrPort, error) { return netip.MustParseAddrPort(tt.host), nil }
			n := newNAT(t, cfg)
			if tt.code == 13 {
				loopbackUp(t)
			}
			f := udpFrame(at(guest4, 4000), netip.MustParseAddrPort("203.0.113.1:9"), []byte("hello"))
			in(t, n, f)
			if diff := cmp.Diff(tt.want, n.Stats().Dropped); diff != "" {
				t.Errorf("dropped (-want +got):\n%s", diff)
			}
			b := g.next(t).frame
			if b[34] != 3 || b[35] != tt.code {
				t.Errorf("type %d code %d, want 3 %d", b[34], b[35], tt.code)
			}
			if quote := b[42:]; !bytes.Equal(quote[12:26], f[26:40]) {
				t.Errorf("quote % x, want % x", quote, f[14:42])
			}
		})
	}
}

func loopbackUp(t *testing.T) {
	t.Helper()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		t.Fatal(err)
	}
}

// Without descriptors there are no new sessions, and the others go on.
func TestOutOfDescriptors(t *testing.T) {
	n := newNAT(t, testConfig(newGuest()))
	server, addr := hostSocket(t, "127.0.0.1:0")
	frame := func(port uint16) []byte {
		return udpFrame(at(guest4, port), at(gateway4, addr.Port()), []byte("x"))
	}
	in(t, n, frame(1))
	read(t, server)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
	}()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	in(t, n, frame(2), frame(1))
	read(t, server)
	if s := n.Stats(); s.Dropped.Socket != 1 || s.Sessions != 1 || s.RxDatagrams != 2 {
		t.Errorf("stats %+v", s)
	}
}

func TestPolicyIsAskedAgain(t *testing.T) {
	g := newGuest()
	cfg := testConfig(g)
	allowed := true
	cfg.Route = func(dst netip.AddrPort) (netip.AddrPort, error) {
		if !allowed {
			return netip.AddrPort{}, errDenied
		}
		return toLoopback(dst)
	}
	n := newNAT(t, cfg)
	server, addr := hostSocket(t, "127.0.0.1:0")
	f := udpFrame(at(guest4, 4000), at(gateway4, addr.Port()), []byte("x"))
	in(t, n, f)
	_, from := read(t, server)
	allowed = false
	s := n.session(at(guest4, 4000))
	s.mu.Lock()
	s.peers[0].routed -= int64(reroute)
	s.mu.Unlock()
	in(t, n, f)
	if got := n.Stats(); got.Dropped.Denied != 1 || got.RxDatagrams != 1 {
		t.Errorf("%d denied, %d sent, want 1 and 1", got.Dropped.Denied, got.RxDatagrams)
	}
	g.next(t) // the ICMP error
	writeTo(t, server, []byte("no longer"), from)
	eventually(t, "the reply is filtered", func() bool { return n.Stats().Dropped.Filtered == 1 })
}

func TestLocalService(t *testing.T) {
	g := newGuest()
	cfg := testConfig(g)
	dns := netip.MustParseAddrPort("10.0.2.3:53")
	cfg.Local = func(src, dst netip.AddrPort, payload []byte, reply func([]byte)) bool {
		if dst != dns {
			return false
		}
		reply(append([]byte("answer to "), payload...))
		return true
	}
	n := newNAT(t, cfg)
	src := at(guest4, 4000)
	in(t, n, udpFrame(src, dns, []byte("query")))
	want := []delivered{{dns, src, []byte("answer to query")}}
	if diff := cmp.Diff(want, g.next(t).open(t), sameAddr); diff != "" {
		t.Errorf("reply (-want +got):\n%s", diff)
	}
	h := tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: 4}
	if !n.Input(h, udpFrame(src, dns, []byte("q001q2"))) {
		t.Fatal("not taken")
	}
	for _, want := range []string{"answer to q001", "answer to q2"} {
		if got := g.next(t).open(t); string(got[0].Payload) != want {
			t.Errorf("got %q, want %q", got[0].Payload, want)
		}
	}
	if s := n.Stats(); s.Local != 3 || s.SessionsTotal != 0 {
		t.Errorf("%d local, %d sessions, want 3 and 0", s.Local, s.SessionsTotal)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	cfg := testConfig(newGuest())
	cfg.Limits.Sessions = 8
	n := newNAT(t, cfg)
	server, addr := hostSocket(t, "127.0.0.1:0")
	before := openFiles(t)
	for port := range uint16(40) {
		in(t, n, udpFrame(at(guest4, 4000+port), at(gateway4, addr.Port()), []byte("x")))
		read(t, server)
	}
	s := n.Stats()
	if s.Sessions != 8 || s.SessionsTotal != 40 || s.SessionsEvicted != 32 {
		t.Errorf("%d open, %d total, %d evicted, want 8, 40, 32", s.Sessions, s.SessionsTotal, s.SessionsEvicted)
	}
	if got := openFiles(t) - before; got != 8 {
		t.Errorf("%d descriptors for 8 sessions", got)
	}
	if n.session(at(guest4, 4039)) == nil {
		t.Error("the newest session was evicted")
	}
}

// In one shard the least recently used session goes, not the oldest.
func TestEvictionIsByUse(t *testing.T) {
	cfg := testConfig(newGuest())
	cfg.Limits.Sessions = 2
	n := newNAT(t, cfg)
	_, addr := hostSocket(t, "127.0.0.1:0")
	frame := func(port uint16) []byte {
		return udpFrame(at(guest4, port), at(gateway4, addr.Port()), []byte("x"))
	}
	in(t, n, frame(16), frame(32), frame(16), frame(48))
	for port, want := range map[uint16]bool{16: true, 32: false, 48: true} {
		if got := n.session(at(guest4, port)) != nil; got != want {
			t.Errorf("session of port %d: %t, want %t", port, got, want)
		}
	}
}

func TestIdleSessionsExpire(t *testing.T) {
	cfg := testConfig(newGuest())
	n := newNAT(t, cfg)
	server, addr := hostSocket(t, "127.0.0.1:0")
	replied, silent := at(guest4, 1), at(guest4, 2)
	dns := at(guest4, 3)
	in(t, n, udpFrame(replied, at(gateway4, addr.Port()), []byte("x")))
	_, from := read(t, server)
	writeTo(t, server, []byte("y"), from)
	eventually(t, "the reply", func() bool { return n.Stats().TxDatagrams == 1 })
	in(t, n, udpFrame(silent, at(gateway4, addr.Port()), []byte("x")), udpFrame(dns, netip.MustParseAddrPort("127.0.0.9:53"), []byte("x")))
	start := n.clock()
	for _, tt := range []struct {
		after time.Duration
		open  []netip.AddrPort
	}{
		{29 * time.Second, []netip.AddrPort{replied, silent, dns}},
		{31 * time.Second, []netip.AddrPort{replied, silent}},
		{61 * time.Second, []netip.AddrPort{replied}},
		{121 * time.Second, nil},
	} {
		n.sweep(start + tt.after)
		var open []netip.AddrPort
		for _, a := range []netip.AddrPort{replied, silent, dns} {
			if n.session(a) != nil {
				open = append(open, a)
			}
		}
		if diff := cmp.Diff(tt.open, open, sameAddr); diff != "" {
			t.Errorf("after %v (-want +got):\n%s", tt.after, diff)
		}
	}
	if s := n.Stats(); s.Sessions != 0 || s.SessionsExpired != 3 {
		t.Errorf("%d open, %d expired, want 0 and 3", s.Sessions, s.SessionsExpired)
	}
}

// The poller's own clock drives the sweep.
func TestSweepRunsByItself(t *testing.T) {
	cfg := testConfig(newGuest())
	cfg.Limits.IdleUnreplied = 50 * time.Millisecond
	n := newNAT(t, cfg)
	_, addr := hostSocket(t, "127.0.0.1:0")
	for range 2 { // also after the poller slept
		in(t, n, udpFrame(at(guest4, 4000), at(gateway4, addr.Port()), []byte("x")))
		eventually(t, "the session expires", func() bool { return n.Stats().Sessions == 0 })
	}
	if got := n.Stats().SessionsExpired; got != 2 {
		t.Errorf("%d expired, want 2", got)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	before := openFiles(t)
	n, err := New(testConfig(newGuest()))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	f := udpFrame(at(guest4, 4000), netip.MustParseAddrPort("127.0.0.9:9"), []byte("x"))
	in(t, n, f, udpFrame(at(guest6, 4000), at(gateway6, 9), []byte("x")))
	for range 2 {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := openFiles(t); got != before {
		t.Errorf("%d descriptors, %d before", got, before)
	}
	in(t, n, f)
	if s := n.Stats(); s.Sessions != 0 || s.Dropped.Closed == 0 {
		t.Errorf("after Close: %+v", s)
	}
}

func TestWriteFailuresAreCounted(t *testing.T) {
	g := newGuest()
	n := newNAT(t, testConfig(g))
	server, addr := hostSocket(t, "127.0.0.1:0")
	in(t, n, udpFrame(at(guest4, 4000), at(gateway4, addr.Port()), []byte("x")))
	_, from := read(t, server)
	g.fail.Store(true)
	writeTo(t, server, []byte("y"), from)
	eventually(t, "the failure is counted", func() bool { return n.Stats().Dropped.Write == 1 })
	g.fail.Store(false)
	writeTo(t, server, []byte("z"), from)
	g.next(t)
}

// What the host's kernel drops because nobody reads fast enough is counted, too.
func TestOverflowIsCounted(t *testing.T) {
	n := newNAT(t, testConfig(newGuest()))
	server, addr := hostSocket(t, "127.0.0.1:0")
	in(t, n, udpFrame(at(guest4, 4000), at(gateway4, addr.Port()), []byte("x")))
	_, from := read(t, server)
	s, _ := stopPoller(t, n)
	const sent = 10000
	for range sent {
		writeTo(t, server, make([]byte, 1000), from)
	}
	before := uint64(0)
	for n.drain(s); before != n.Stats().TxDatagrams; n.drain(s) {
		before = n.Stats().TxDatagrams
	}
	writeTo(t, server, []byte("y"), from) // which brings the count
	n.drain(s)
	got := n.Stats()
	if got.TxDatagrams+got.Dropped.Overflow != sent+1 || got.Dropped.Overflow == 0 {
		t.Errorf("%d came, %d overflowed, of %d", got.TxDatagrams, got.Dropped.Overflow, sent+1)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no Write":     func(c *Config) { c.Write = nil },
		"no Route":     func(c *Config) { c.Route = nil },
		"MAC":          func(c *Config) { c.GuestMAC = nil },
		"MTU":          func(c *Config) { c.MTU = 67 },
		"gateway":      func(c *Config) { c.Gateway4 = gateway6 },
		"limit":        func(c *Config) { c.Limits.Sessions = -1 },
		"idle timeout": func(c *Config) { c.Limits.Idle = -time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(newGuest())
			change(&cfg)
			if n, err := New(cfg); err == nil {
				n.Close()
				t.Error("no error")
			}
		})
	}
}
