package relay

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serving returns where a Splicer serves r, on loopback.
func serving(t *testing.T, s *Splicer, r *record) (netip.AddrPort, *Serving) {
	t.Helper()
	var plain net.ListenConfig
	plain.SetMultipathTCP(false)
	listener, err := plain.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := listener.(*net.TCPListener)
	at := l.Addr().(*net.TCPAddr).AddrPort()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Addresses(fd); err != nil || len(got) != 1 || got[0] != at {
		t.Errorf("Addresses: %v, %v, want %v", got, err, at)
	}
	v, err := s.Serve(fd, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return at, v
}

func dialed(t *testing.T, at netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// mustBeRefused dials at, and is reset: while it connects, or when it reads.
func mustBeRefused(t *testing.T, at netip.AddrPort) {
	t.Helper()
	c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(at))
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	mustBeReset(t, c)
}

func TestServe(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := l.Addr().(*net.TCPAddr).AddrPort()
	shut, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	refusing := shut.Addr().(*net.TCPAddr).AddrPort()
	shut.Close()
	full := fullListener(t)
	here, elsewhere := netip.MustParseAddrPort("127.0.0.2:0"), netip.MustParseAddrPort("192.0.2.1:0")

	for _, tc := range []struct {
		name    string
		ways    Ways
		timeout time.Duration
		want    error
	}{
		{"accepted", Ways{1, [2]Way{{here, open}}}, patience, nil},
		{"refused", Ways{1, [2]Way{{here, refusing}}}, patience, unix.ECONNREFUSED},
		{"refused, accepted", Ways{2, [2]Way{{here, refusing}, {here, open}}}, patience, nil},
		{"no such address", Ways{1, [2]Way{{elsewhere, open}}}, patience, unix.EADDRNOTAVAIL},
		{"no such address, accepted", Ways{2, [2]Way{{elsewhere, open}, {here, open}}}, patience, nil},
		{"silence", Ways{1, [2]Way{{here, full}}}, 200 * time.Millisecond, os.ErrDeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRecord(nil)
			r.ways = tc.ways
			at, v := serving(t, newSplicer(t, &fresh{}, tc.timeout), r)
			if tc.want != nil {
				mustBeRefused(t, at)
				select {
				case err := <-r.failed:
					if !errors.Is(err, tc.want) {
						t.Errorf("ended with %v, want %v", err, tc.want)
					}
				case <-time.After(patience):
					t.Error("the pair has not ended")
				}
				return
			}
			c := dialed(t, at)
			peer, err := l.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			if got := peer.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != here.Addr() {
				t.Errorf("connected from %v, want %v", got, here.Addr())
			}
			mustWrite(t, c, "hello")
			mustRead(t, peer, "hello")
			// The address is free at once, and the connection stays.
			if err := v.Close(); err != nil {
				t.Error(err)
			}
			again, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			again.Close()
			mustWrite(t, peer, "still there")
			mustRead(t, c, "still there")
			c.Close()
			peer.Close()
			if o := wait(t, r.ended); o.counts != (Counts{ToGuest: 5, FromGuest: 11}) {
				t.Errorf("ended with %+v, %v", o.counts, o.err)
			}
		})
	}
}

// TestServeWaitsForSockets: clients wait while there is no socket, and no longer.
func TestServeWaitsForSockets(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, sockets := newRecord(nil), &fresh{}
	r.ways = Ways{1, [2]Way{{netip.MustParseAddrPort("127.0.0.2:0"), l.Addr().(*net.TCPAddr).AddrPort()}}}
	sockets.none.Store(true)
	s := newSplicer(t, sockets, patience)
	at, _ := serving(t, s, r)
	const clients = 5
	for range clients {
		dialed(t, at)
	}
	eventually(t, "all wait", func() bool { return s.waiting.Load() == clients })
	sockets.none.Store(false)
	s.Refilled()
	for range clients {
		c, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if n := s.waiting.Load(); n != 0 {
		t.Errorf("%d still wait", n)
	}
}

// TestServeWithoutDescriptors: a client waits in the backlog until there are some.
func TestServeWithoutDescriptors(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := newRecord(nil)
	r.ways = Ways{1, [2]Way{{netip.MustParseAddrPort("127.0.0.2:0"), l.Addr().(*net.TCPAddr).AddrPort()}}}
	at, _ := serving(t, newSplicer(t, &fresh{}, patience), r)
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)
	var files unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &files); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &files, nil); err != nil {
			t.Error(err)
		}
	}
	defer restore()
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: files.Max}, nil); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(client, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "accept fails", func() bool { return r.accepts.Load() > 0 })
	restore()
	peer, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	eventually(t, "the connection is counted", func() bool { return r.connected.Load() == 1 })
}

// TestServeWaitsForAdmission: a client that waits is served once it is admitted.
func TestServeWaitsForAdmission(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := newRecord(nil)
	r.ways = Ways{1, [2]Way{{netip.MustParseAddrPort("127.0.0.2:0"), l.Addr().(*net.TCPAddr).AddrPort()}}}
	r.waiters = make(chan Waiter, 1)
	at, _ := serving(t, newSplicer(t, &fresh{}, patience), r)
	c := dialed(t, at)
	mustWrite(t, c, "early")
	w := <-r.waiters
	if n := r.connected.Load(); n != 0 {
		t.Errorf("%d connections to the container before the client is admitted", n)
	}
	w.Admitted()
	peer, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	mustRead(t, peer, "early")
	mustWrite(t, peer, "answer")
	mustRead(t, c, "answer")
}

// TestServeWaitsInVain: a client that is not admitted in time is reset, and one that waits when
// the Splicer is closed as well.
func TestServeWaitsInVain(t *testing.T) {
	for _, tc := range []struct {
		name    string
		patient time.Duration
		want    error
	}{
		{"in time", 50 * time.Millisecond, os.ErrDeadlineExceeded},
		{"before the end", patience, ErrStopped},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRecord(nil)
			r.ways, r.waiters = Ways{N: 1}, make(chan Waiter, 1)
			s := newSplicer(t, &fresh{}, tc.patient)
			at, _ := serving(t, s, r)
			c := dialed(t, at)
			w := <-r.waiters
			if errors.Is(tc.want, ErrStopped) {
				s.Close()
			}
			mustBeReset(t, c)
			if err := <-r.left; !errors.Is(err, tc.want) {
				t.Errorf("the client left for %v, want %v", err, tc.want)
			}
			w.Admitted() // too late: nothing comes of it
		})
	}
}

// TestServeFull: nobody is accepted at a port that is full, until it is freed.
func TestServeFull(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := newRecord(nil)
	r.ways = Ways{1, [2]Way{{netip.MustParseAddrPort("127.0.0.2:0"), l.Addr().(*net.TCPAddr).AddrPort()}}}
	r.full.Store(true)
	s := newSplicer(t, &fresh{}, patience)
	at, _ := serving(t, s, r)
	c := dialed(t, at)
	mustWrite(t, c, "early")
	eventually(t, "the port was asked", func() bool { return r.held.Load() > 0 })
	if n := r.connected.Load(); n != 0 {
		t.Errorf("%d connections of a full port", n)
	}
	r.full.Store(false)
	s.Freed()
	peer, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	mustRead(t, peer, "early")
}

// TestServeNobody: a client that is not admitted is reset.
func TestServeNobody(t *testing.T) {
	at, _ := serving(t, newSplicer(t, &fresh{}, patience), newRecord(nil))
	mustBeRefused(t, at)
}

// fullListener returns the address of a listener that answers no more SYNs.
func fullListener(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(
		unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
		unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
	d := net.Dialer{Timeout: 200 * time.Millisecond}
	for range 4 {
		c, err := d.Dial("tcp4", addr.String())
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Skip("a backlog of 0 takes more than four connections here")
	return addr
}
