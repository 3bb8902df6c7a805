package portfwd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"slipway/netstack/relay"
	"slipway/netstack/udp"
)

// fakeStack answers ForwardTCP itself, or refuses some destinations.
type fakeStack struct {
	refuse map[netip.AddrPort]error

	mu    sync.Mutex
	calls []string
	pub   *publication
}

func (s *fakeStack) ForwardTCP(ctx context.Context, client *net.TCPConn, src, dst netip.AddrPort, bytes *relay.Bytes) error {
	s.mu.Lock()
	s.calls = append(s.calls, fmt.Sprintf("%v>%v", src, dst))
	s.mu.Unlock()
	if err := s.refuse[dst]; err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	defer client.Close()
	defer context.AfterFunc(ctx, func() { relay.Reset(client) })()
	b := make([]byte, 100)
	for {
		n, err := client.Read(b)
		if err != nil {
			return nil
		}
		bytes.ToGuest.Add(uint64(n))
		n, err = client.Write(b[:n])
		if err != nil {
			return nil
		}
		bytes.FromGuest.Add(uint64(n))
	}
}

type publication struct {
	sockets  int
	to4, to6 netip.AddrPort
	closed   bool
}

func (p *publication) Close() error { p.closed = true; return nil }

func (p *publication) Stats() udp.Published {
	return udp.Published{Sessions: 1, SessionsTotal: 2, TxBytes: 3, RxBytes: 4}
}

func (s *fakeStack) PublishUDP(sockets []*os.File, to4, to6 netip.AddrPort) (io.Closer, error) {
	if err := s.refuse[to4]; err != nil {
		return nil, err
	}
	s.pub = &publication{sockets: len(sockets), to4: to4, to6: to6}
	return s.pub, nil
}

func tapManager(t *testing.T, s *fakeStack) *Manager {
	t.Helper()
	m := New(Config{Stack: s, Guest4: guest4, Guest6: guest6, Gateway4: gateway4, Gateway6: gateway6, Prefixes: prefixes})
	t.Cleanup(func() { m.Close() })
	return m
}

// publish adds a TCP port on addr of the machine itself and returns where it listens.
func publish(t *testing.T, m *Manager, addr string) string {
	t.Helper()
	l, err := listenTCP(addr)
	if err != nil {
		t.Skipf("listen on %s: %v", addr, err)
	}
	a := netip.MustParseAddrPort(addr)
	if _, err := m.Add(Spec{Proto: TCP, HostIP: a.Addr(), ContainerPort: 80}, files(t, l)); err != nil {
		t.Fatal(err)
	}
	ports := m.List()
	return ports[len(ports)-1].Bound[0].String()
}

func dialHere(t *testing.T, to string) *net.TCPConn {
	t.Helper()
	c, err := dialTCP("", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func echo(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	b := make([]byte, len(text))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Fatalf("echo of %q: %q, %v", text, b, err)
	}
}

// freePort returns a free address for a client, of the machine itself.
func freePort(t *testing.T, like string) netip.AddrPort {
	t.Helper()
	l, err := listenTCP(like)
	if err != nil {
		t.Skipf("listen on %s: %v", like, err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestTAP(t *testing.T) {
	refused4 := map[netip.AddrPort]error{netip.AddrPortFrom(guest4, 80): syscall.ECONNREFUSED}
	refused6 := map[netip.AddrPort]error{netip.AddrPortFrom(guest6, 80): syscall.ECONNREFUSED}
	for _, tc := range []struct {
		name, listen string
		refuse       map[netip.AddrPort]error
		calls        []string // with %d for the client's port
		want         Stats
	}{
		{"IPv4", "127.0.0.1:0", nil, []string{"10.0.2.2:%d>10.0.2.100:80"}, Stats{Flows: 1, Open: 1, ToGuest: 5, FromGuest: 5}},
		{"IPv6", "[::1]:0", nil, []string{"[fd00::2]:%d>[fd00::100]:80"}, Stats{Flows: 1, Open: 1, ToGuest: 5, FromGuest: 5}},
		{"IPv6 to an IPv4 server", "[::1]:0", refused6, []string{"[fd00::2]:%d>[fd00::100]:80", "10.0.2.2:%d>10.0.2.100:80"},
			Stats{Flows: 1, Open: 1, ToGuest: 5, FromGuest: 5}},
		{"refused", "127.0.0.1:0", refused4, []string{"10.0.2.2:%d>10.0.2.100:80"}, Stats{Flows: 1, Refused: 1}},
		{"timed out", "127.0.0.1:0", map[netip.AddrPort]error{netip.AddrPortFrom(guest4, 80): syscall.ETIMEDOUT},
			[]string{"10.0.2.2:%d>10.0.2.100:80"}, Stats{Flows: 1, TimedOut: 1}},
		{"failed", "[::1]:0", map[netip.AddrPort]error{netip.AddrPortFrom(guest6, 80): errors.New("no room")},
			[]string{"[fd00::2]:%d>[fd00::100]:80"}, Stats{Flows: 1, Failed: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &fakeStack{refuse: tc.refuse}
			m := tapManager(t, s)
			to := publish(t, m, tc.listen)
			from := freePort(t, tc.listen)
			c, err := dialTCP(from.String(), to)
			if tc.want.Open == 1 {
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				echo(t, c, "hello")
			} else {
				wantReset(t, c, err)
				eventually(t, "the connection is over", func() bool { return m.List()[0].Stats.Open == 0 })
			}
			var calls []string
			for _, call := range tc.calls {
				calls = append(calls, fmt.Sprintf(call, from.Port()))
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if diff := cmp.Diff(calls, s.calls); diff != "" {
				t.Errorf("ForwardTCP (-want +got):\n%s", diff)
			}
			p := m.List()[0]
			for end := time.Now().Add(patience); p.Stats != tc.want && time.Now().Before(end); p = m.List()[0] {
				time.Sleep(time.Millisecond) // the echo is counted after it has arrived
			}
			if diff := cmp.Diff(tc.want, p.Stats); diff != "" || p.Path != PathTAP {
				t.Errorf("path %q, stats (-want +got):\n%s", p.Path, diff)
			}
		})
	}
}

func TestTAPClose(t *testing.T) {
	m := tapManager(t, &fakeStack{})
	check := checkLeaks(t)
	c := dialHere(t, publish(t, m, "127.0.0.1:0"))
	echo(t, c, "hello")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the connection ended as if it were complete")
	}
	c.Close()
	check()
}

func udpSocket(t *testing.T, addr string) *os.File {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestUDP(t *testing.T) {
	s := &fakeStack{}
	m := tapManager(t, s)
	f := udpSocket(t, "127.0.0.1:0")
	if _, err := m.Add(spec(UDP, "127.0.0.1", 0, 53), []*os.File{f}); err != nil {
		t.Fatal(err)
	}
	want := publication{sockets: 1, to4: netip.AddrPortFrom(guest4, 53), to6: netip.AddrPortFrom(guest6, 53)}
	if *s.pub != want {
		t.Errorf("PublishUDP: %+v, want %+v", *s.pub, want)
	}
	p := m.List()[0]
	if p.Path != PathTAP || len(p.Bound) != 1 || p.Bound[0].Port() == 0 {
		t.Errorf("port: %+v", p)
	}
	if diff := cmp.Diff(Stats{Flows: 2, Open: 1, ToGuest: 3, FromGuest: 4}, p.Stats); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
	if err := m.Close(); err != nil || !s.pub.closed {
		t.Errorf("Close: %v, publication closed: %v", err, s.pub.closed)
	}
	if _, err := f.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the socket's file is still open: %v", err)
	}
}

// TestAddRefuses: what Add cannot serve is an error, and its sockets are closed.
func TestAddRefuses(t *testing.T) {
	full := errors.New("full")
	stack := &fakeStack{refuse: map[netip.AddrPort]error{netip.AddrPortFrom(guest4, 54): full}}
	listener := func(t *testing.T) *os.File {
		l, err := listenTCP("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return files(t, l)[0]
	}
	devNull := func(t *testing.T) *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	datagrams := func(t *testing.T) *os.File { return udpSocket(t, "127.0.0.1:0") }
	unixSocket := func(t *testing.T) *os.File {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), "unix")
	}
	for _, tc := range []struct {
		name    string
		spec    Spec
		sockets []func(*testing.T) *os.File
		want    error // nil: any
	}{
		{"no socket", tcp("", 80, 80), nil, nil},
		{"sctp", spec("sctp", "", 80, 80), []func(*testing.T) *os.File{listener}, ErrUnsupported},
		{"tcp on a file", tcp("", 80, 80), []func(*testing.T) *os.File{listener, devNull}, syscall.ENOTSOCK},
		{"tcp on UDP", tcp("", 80, 80), []func(*testing.T) *os.File{datagrams}, syscall.EINVAL},
		{"udp on a file", spec(UDP, "", 80, 80), []func(*testing.T) *os.File{datagrams, devNull}, syscall.ENOTSOCK},
		{"udp on TCP", spec(UDP, "", 80, 80), []func(*testing.T) *os.File{listener}, syscall.EINVAL},
		{"udp on unix", spec(UDP, "", 80, 80), []func(*testing.T) *os.File{unixSocket}, nil},
		{"the stack refuses", spec(UDP, "", 80, 54), []func(*testing.T) *os.File{datagrams}, full},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := tapManager(t, stack)
			check := checkLeaks(t)
			var sockets []*os.File
			for _, open := range tc.sockets {
				sockets = append(sockets, open(t))
			}
			_, err := m.Add(tc.spec, sockets)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("Add: %v, want %v", err, tc.want)
			}
			if len(m.List()) != 0 {
				t.Errorf("List: %v", m.List())
			}
			check()
		})
	}
}

// TestAddAll: of many ports, which several goroutines add, all are served in their order, or
// none is.
func TestAddAll(t *testing.T) {
	const many = 2*addPiece + 1
	ports := func(t *testing.T, bad int) (specs []Spec, sockets [][]*os.File) {
		for i := range many {
			l, err := listenTCP("127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			specs, sockets = append(specs, tcp("", uint16(i+1), 80)), append(sockets, files(t, l))
		}
		if bad >= 0 {
			specs[bad].Proto = "sctp"
		}
		return specs, sockets
	}
	m := tapManager(t, &fakeStack{})
	check := checkLeaks(t)
	specs, sockets := ports(t, many-1)
	if _, err := m.AddAll(specs, sockets); !errors.Is(err, ErrUnsupported) || len(m.List()) != 0 {
		t.Errorf("AddAll with a bad last one: %v, and %d ports; want %v and none", err, len(m.List()), ErrUnsupported)
	}
	check()
	specs, sockets = ports(t, -1)
	ids, err := m.AddAll(specs, sockets)
	if err != nil {
		t.Fatal(err)
	}
	list := m.List()
	if len(ids) != many || len(list) != many {
		t.Fatalf("%d ids and %d ports, want %d", len(ids), len(list), many)
	}
	for i, p := range list {
		if p.Spec.HostPort != uint16(i+1) {
			t.Fatalf("port %d of the list is %v", i, p)
		}
	}
	echo(t, dialHere(t, list[many-1].Bound[0].String()), "the last one")
}

// TestAcceptWithoutDescriptors: at RLIMIT_NOFILE the listener waits, and serves
// those in its backlog afterwards.
func TestAcceptWithoutDescriptors(t *testing.T) {
	m := tapManager(t, &fakeStack{})
	at := publish(t, m, "127.0.0.1:0")
	echo(t, dialHere(t, at), "warm") // everything that is opened once is open now

	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// A connected client without a new descriptor: the next free one is the last.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	last, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(last)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(last), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	restore := sync.OnceFunc(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	})
	defer restore()
	to := netip.MustParseAddrPort(at)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "accept fails twice", func() bool { return m.List()[0].Stats.AcceptErrors >= 2 })
	if n := m.List()[0].Stats.AcceptErrors; n > 100 {
		t.Errorf("%d accepts failed: that is a spin", n)
	}
	if n := m.AcceptErrors(); n < 2 {
		t.Errorf("%d failed accepts are counted of all ports", n)
	}
	restore()
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the client in the backlog is served", func() bool {
		n, err := unix.Read(fd, make([]byte, 1)) // blocks until then
		return n == 1 && err == nil
	})
	echo(t, dialHere(t, at), "next")
}
