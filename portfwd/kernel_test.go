package portfwd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func reuseAddress(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}), err)
}

// world is a host and a container with a Manager between them.
type world struct {
	host, guest *space
	m           *Manager
}

// newWorld publishes port 80 of the container as port 8080 of the host, on IPv4
// and IPv6, by the kernel path.
func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{host: newSpace(t, hostAddrs), guest: newGuest(t)}
	cfg := Config{
		Namespace: w.guest, Kernel: true,
		Guest4: guest4, Guest6: guest6, Gateway4: gateway4, Gateway6: gateway6, Prefixes: prefixes,
		Limits: Limits{Sockets: 8},
	}
	if change != nil {
		change(&cfg)
	}
	w.m = New(cfg)
	t.Cleanup(func() { w.m.Close() })
	sockets := files(t, w.host.listen(t, "0.0.0.0:8080", "[::]:8080")...)
	if _, err := w.m.Add(tcp("", 8080, 80), sockets); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) stats() Stats { return w.m.List()[0].Stats }

// counts waits for so many to be counted: a client hears of its end before.
func (w *world) counts(t *testing.T, refused, flows uint64) {
	t.Helper()
	eventually(t, "it is counted", func() bool { s := w.stats(); return s.Refused == refused && s.Flows == flows })
}

// serve accepts on l until the test ends and gives each connection to f.
func serve(t *testing.T, l *net.TCPListener, f func(*net.TCPConn)) {
	t.Helper()
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
}

// sayPeer tells clients who they are.
func sayPeer(c *net.TCPConn) { fmt.Fprint(c, c.RemoteAddr()) }

func readAll(t *testing.T, c *net.TCPConn) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestKernelShowsClient(t *testing.T) {
	w := newWorld(t, nil)
	for _, l := range w.guest.listen(t, "10.0.2.100:80", "[fd00::100]:80") {
		serve(t, l, sayPeer)
	}
	for _, tc := range []struct{ from, to, seen string }{
		{"198.51.100.7:4000", "198.51.100.1:8080", "198.51.100.7:4000"},
		{"127.0.0.1:4001", "127.0.0.1:8080", "10.0.2.2:4001"},
		{"10.0.2.55:4002", "198.51.100.1:8080", "10.0.2.2:4002"},
		{"169.254.9.9:4003", "198.51.100.1:8080", "10.0.2.2:4003"},
		{"[2001:db8::7]:4004", "[2001:db8::1]:8080", "[2001:db8::7]:4004"},
		{"[::1]:4005", "[::1]:8080", "[fd00::2]:4005"},
		{"[fd00::55]:4006", "[2001:db8::1]:8080", "[fd00::2]:4006"},
	} {
		t.Run(tc.from, func(t *testing.T) {
			if got := readAll(t, w.host.dial(t, tc.from, tc.to)); got != tc.seen {
				t.Errorf("the container saw %s, want %s", got, tc.seen)
			}
		})
	}
	p := w.m.List()[0]
	if p.Path != PathKernel || p.Stats.Flows != 7 || p.Stats.FromGuest == 0 {
		t.Errorf("port: %+v", p)
	}
	if got, want := p.String(), "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"; got != want {
		t.Errorf("String: %q, want %q", got, want)
	}
	eventually(t, "no connection is open", func() bool { return w.stats().Open == 0 })
}

// TestKernelOneSocket: a socket of both families shows clients of both as they are.
func TestKernelOneSocket(t *testing.T) {
	w := newWorld(t, nil)
	for _, l := range w.guest.listen(t, "10.0.2.100:80", "[fd00::100]:80") {
		serve(t, l, sayPeer)
	}
	if _, err := w.m.Add(tcp("", 8081, 80), files(t, w.host.listenEverywhere(t, "8081"))); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ from, to, seen string }{
		{"198.51.100.7:4000", "198.51.100.1:8081", "198.51.100.7:4000"},
		{"127.0.0.1:4001", "127.0.0.1:8081", "10.0.2.2:4001"},
		{"[2001:db8::7]:4004", "[2001:db8::1]:8081", "[2001:db8::7]:4004"},
	} {
		if got := readAll(t, w.host.dial(t, tc.from, tc.to)); got != tc.seen {
			t.Errorf("from %s the container saw %s, want %s", tc.from, got, tc.seen)
		}
	}
	if got, want := w.m.List()[1].String(), "0.0.0.0:8081->80/tcp, [::]:8081->80/tcp"; got != want {
		t.Errorf("String: %q, want %q", got, want)
	}
}

// TestKernelSamePort: two flows of one client port, to two addresses of the host,
// cannot have the same source towards the container.
func TestKernelSamePort(t *testing.T) {
	w := newWorld(t, nil)
	for _, l := range w.guest.listen(t, "10.0.2.100:80") {
		serve(t, l, func(c *net.TCPConn) {
			sayPeer(c)
			io.Copy(io.Discard, c)
		})
	}
	var seen []netip.AddrPort
	for _, to := range []string{"198.51.100.1:8080", "198.51.100.2:8080"} {
		c := w.host.dial(t, "198.51.100.7:4000", to)
		b := make([]byte, 100)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, netip.MustParseAddrPort(string(b[:n])))
	}
	if seen[0] != netip.MustParseAddrPort("198.51.100.7:4000") || seen[1].Addr() != seen[0].Addr() || seen[1] == seen[0] {
		t.Errorf("the container saw %v: want the client's port, then another one", seen)
	}
}

// TestKernelOtherFamily: an IPv4-only server is reached from IPv6, as the
// gateway; an IPv6-only one is not reached from IPv4.
func TestKernelOtherFamily(t *testing.T) {
	t.Run("IPv4 server", func(t *testing.T) {
		w := newWorld(t, nil)
		serve(t, w.guest.listen(t, "10.0.2.100:80")[0], sayPeer)
		for _, tc := range []struct{ from, to, seen string }{
			{"[::1]:4005", "[::1]:8080", "10.0.2.2:4005"},
			{"[2001:db8::7]:4006", "[2001:db8::1]:8080", "10.0.2.2:4006"},
		} {
			if got := readAll(t, w.host.dial(t, tc.from, tc.to)); got != tc.seen {
				t.Errorf("the container saw %s, want %s", got, tc.seen)
			}
		}
		if s := w.stats(); s.Refused != 0 || s.Flows != 2 {
			t.Errorf("stats: %+v", s)
		}
	})
	t.Run("IPv6 server", func(t *testing.T) {
		w := newWorld(t, nil)
		serve(t, w.guest.listen(t, "[fd00::100]:80")[0], sayPeer)
		c, err := w.host.tryDial("", "127.0.0.1:8080")
		wantReset(t, c, err)
		if got := readAll(t, w.host.dial(t, "[::1]:4007", "[::1]:8080")); got != "[fd00::2]:4007" {
			t.Errorf("the container saw %s", got)
		}
		w.counts(t, 1, 1)
	})
}

// wantReset takes what a dial has returned: the reset may come that early.
func wantReset(t *testing.T, c *net.TCPConn, err error) {
	t.Helper()
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("dial and read: %v, want ECONNRESET", err)
	}
}

func TestKernelRefused(t *testing.T) {
	w := newWorld(t, nil)
	c, err := w.host.tryDial("", "127.0.0.1:8080")
	wantReset(t, c, err)
	c, err = w.host.tryDial("", "[::1]:8080")
	wantReset(t, c, err)
	w.counts(t, 2, 0)
	// It recovers by itself when the server starts.
	serve(t, w.guest.listen(t, "10.0.2.100:80")[0], sayPeer)
	if got := readAll(t, w.host.dial(t, "127.0.0.1:4000", "127.0.0.1:8080")); got != "10.0.2.2:4000" {
		t.Errorf("the container saw %s", got)
	}
}

func TestKernelTimeout(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.Connect = 300 * time.Millisecond })
	err := w.guest.do(func() error { // a listener whose backlog is full answers no SYN
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		return errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: guest4.As4(), Port: 80}), unix.Listen(fd, 0))
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a connection times out", func() bool {
		if c, err := w.host.tryDial("", "127.0.0.1:8080"); err == nil {
			defer c.Close()
		}
		return w.stats().TimedOut > 0
	})
	eventually(t, "the client of a dead peer is reset", func() bool { return w.stats().Open == w.stats().Flows })
}

func TestKernelBulk(t *testing.T) {
	w := newWorld(t, nil)
	const size = 64 << 20
	type sums struct{ sent, got [sha256.Size]byte }
	exchange := func(c *net.TCPConn, seed int64) (s sums, err error) {
		done := make(chan error, 1)
		go func() {
			h := sha256.New()
			_, err := io.Copy(c, io.TeeReader(io.LimitReader(rand.New(rand.NewSource(seed)), size), h))
			s.sent = [sha256.Size]byte(h.Sum(nil))
			done <- errors.Join(err, c.CloseWrite())
		}()
		h := sha256.New()
		_, err = io.Copy(h, c)
		err = errors.Join(err, <-done)
		s.got = [sha256.Size]byte(h.Sum(nil))
		return s, err
	}
	type result struct {
		sums
		err error
	}
	inside := make(chan result, 1)
	serve(t, w.guest.listen(t, "10.0.2.100:80")[0], func(c *net.TCPConn) {
		s, err := exchange(c, 2)
		inside <- result{s, err}
	})
	outside := make(chan result, 1)
	c := w.host.dial(t, "198.51.100.7:4000", "198.51.100.1:8080")
	c.SetDeadline(time.Time{})
	go func() {
		s, err := exchange(c, 1)
		outside <- result{s, err}
	}()
	// The port's counters move while the connection lasts.
	eventually(t, "bytes are counted in flight", func() bool {
		s := w.stats()
		return s.ToGuest > 0 && s.FromGuest > 0
	})
	if s := w.stats(); s.ToGuest == size && s.FromGuest == size {
		t.Logf("too fast to be seen in flight: %+v", s)
	}
	in, out := <-inside, <-outside
	if err := errors.Join(in.err, out.err); err != nil {
		t.Fatal(err)
	}
	if in.got != out.sent || out.got != in.sent {
		t.Error("what arrived is not what was sent")
	}
	eventually(t, "the connection is over", func() bool { return w.stats().Open == 0 })
	if s := w.stats(); s.ToGuest != size || s.FromGuest != size || s.Flows != 1 {
		t.Errorf("stats: %+v", s)
	}
}

func TestKernelLeaksNothing(t *testing.T) {
	w := newWorld(t, nil)
	serve(t, w.guest.listen(t, "10.0.2.100:80")[0], func(c *net.TCPConn) { io.Copy(c, c) })
	once := func(i int) {
		c := w.host.dial(t, "", "127.0.0.1:8080")
		defer c.Close()
		if _, err := fmt.Fprintf(c, "%d", i); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, c); got != fmt.Sprint(i) {
			t.Fatalf("connection %d: echo of %q", i, got)
		}
	}
	once(0)
	eventually(t, "the first connection is over", func() bool { return w.stats().Open == 0 })
	check := checkLeaks(t, w.m.pools[unix.AF_INET], w.m.pools[unix.AF_INET6])
	for i := range 1000 {
		once(i)
	}
	if s := w.stats(); s.Flows != 1001 {
		t.Errorf("stats: %+v", s)
	}
	check()
}

func TestKernelClose(t *testing.T) {
	t.Cleanup(checkLeaks(t)) // the last of all cleanups
	host, guest := newSpace(t, hostAddrs), newGuest(t)
	l := guest.listen(t, "10.0.2.100:80")[0]
	m := New(Config{Namespace: guest, Kernel: true, Guest4: guest4, Guest6: guest6, Gateway4: gateway4, Gateway6: gateway6})
	if _, err := m.Add(tcp("", 8080, 80), files(t, host.listen(t, "0.0.0.0:8080", "[::]:8080")...)); err != nil {
		t.Fatal(err)
	}
	var clients, servers []*net.TCPConn
	for range 10 {
		c := host.dial(t, "", "127.0.0.1:8080")
		s, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		clients, servers = append(clients, c), append(servers, s)
	}
	go io.Copy(clients[0], rand.New(rand.NewSource(1))) // until the reset
	if _, err := io.ReadFull(servers[0], make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	for _, c := range append(clients[1:], servers...) {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v after Close: %v, want ECONNRESET", c.RemoteAddr(), err)
		}
	}
	if err := host.do(func() error { _, err := dialTCP("", "127.0.0.1:8080"); return err }); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after Close: %v, want ECONNREFUSED", err)
	}
	if _, err := m.Add(tcp("", 8081, 80), files(t, host.listen(t, "127.0.0.1:8081")...)); !errors.Is(err, ErrClosed) {
		t.Errorf("Add after Close: %v, want %v", err, ErrClosed)
	}
	for _, c := range append(clients, servers...) {
		c.Close()
	}
	l.Close()
}

// troubled is a Namespace that fails in several ways before it works.
type troubled struct {
	Namespace
	trouble chan func(family, n int) ([]int, error)
}

func (n troubled) Sockets(ctx context.Context, family, count int) ([]int, error) {
	select {
	case f := <-n.trouble:
		return f(family, count)
	default:
		return n.Namespace.Sockets(ctx, family, count)
	}
}

func TestKernelSocketTrouble(t *testing.T) {
	trouble := make(chan func(int, int) ([]int, error), 10)
	strange := map[int]uint64{} // inodes by descriptor, whose number may be in use again
	open := func(family, kind int) int {
		fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return -1
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Error(err)
		}
		strange[fd] = st.Ino
		return fd
	}
	trouble <- func(int, int) ([]int, error) { return nil, unix.EMFILE }
	trouble <- func(int, int) ([]int, error) { return nil, nil }
	trouble <- func(int, int) ([]int, error) {
		return []int{open(unix.AF_INET, unix.SOCK_DGRAM)}, nil
	}
	trouble <- func(int, int) ([]int, error) {
		return []int{open(unix.AF_UNIX, unix.SOCK_STREAM), open(unix.AF_UNIX, unix.SOCK_STREAM)}, nil
	}
	w := newWorld(t, func(c *Config) {
		c.Namespace = troubled{c.Namespace, trouble}
		c.Guest6, c.Gateway6 = netip.Addr{}, netip.Addr{}
	})
	serve(t, w.guest.listen(t, "10.0.2.100:80")[0], sayPeer)
	if got := readAll(t, w.host.dial(t, "127.0.0.1:4000", "127.0.0.1:8080")); got != "10.0.2.2:4000" {
		t.Errorf("the container saw %s", got)
	}
	if n := w.m.SocketFailures(); n != 4 {
		t.Errorf("SocketFailures: %d, want 4", n)
	}
	for fd, inode := range strange {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && st.Ino == inode {
			t.Errorf("a strange socket was kept: descriptor %d", fd)
		}
	}
}

// TestKernelRush: a pool that is emptied again and again makes more at a time.
func TestKernelRush(t *testing.T) {
	w := newWorld(t, nil)
	serve(t, w.guest.listen(t, "10.0.2.100:80")[0], sayPeer)
	sockets := w.m.pools[unix.AF_INET]
	eventually(t, "the pool has grown", func() bool {
		readAll(t, w.host.dial(t, "", "127.0.0.1:8080"))
		return sockets.size.Load() > sockets.least
	})
	if n := cap(sockets.ready); n != 8*growth {
		t.Errorf("room for %d sockets, want %d", n, 8*growth)
	}
}

// TestKernelNoSockets: a namespace that gives none costs its clients their
// connection, and not more.
func TestKernelNoSockets(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Namespace = never{}
		c.Limits.Connect = 50 * time.Millisecond
	})
	c, err := w.host.tryDial("", "127.0.0.1:8080")
	wantReset(t, c, err)
	eventually(t, "the failure is counted", func() bool { return w.stats().TimedOut == 1 && w.m.SocketFailures() > 0 })
}

type never struct{}

func (never) Sockets(context.Context, int, int) ([]int, error) { return nil, unix.EPERM }
