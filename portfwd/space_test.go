package portfwd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"slipway/netstack/netns"
)

const patience = 20 * time.Second

// Addresses of the tests. The host's ones are documentation addresses (RFC 5737,
// RFC 3849) and some that a stranger may not appear with.
var (
	guest4, gateway4 = netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("10.0.2.2")
	guest6, gateway6 = netip.MustParseAddr("fd00::100"), netip.MustParseAddr("fd00::2")
	prefixes         = []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fd00::/64")}

	hostAddrs = []string{
		"198.51.100.1/32", "198.51.100.2/32", "198.51.100.7/32", "10.0.2.55/32", "169.254.9.9/32",
		"2001:db8::1/128", "2001:db8::7/128", "fd00::55/128",
	}
	guestAddrs = []string{"10.0.2.100/32", "fd00::100/128"}
)

// space is a network namespace of its own, with a thread that lives in it.
type space struct{ calls chan func() }

// newSpace makes a namespace with addrs on its loopback interface.
func newSpace(t *testing.T, addrs []string) *space {
	t.Helper()
	s := &space{calls: make(chan func())}
	unshared := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		unshared <- err
		if err != nil {
			return
		}
		for call := range s.calls {
			call()
		}
	}()
	if err := <-unshared; err != nil {
		t.Skipf("a network namespace cannot be made (needs root): %v", err)
	}
	t.Cleanup(func() { close(s.calls) })
	if err := s.do(func() error { return configure(addrs) }); err != nil {
		t.Fatalf("set the namespace up: %v", err)
	}
	return s
}

// do runs f in the namespace: sockets that f makes belong to it.
func (s *space) do(f func() error) error {
	done := make(chan error)
	s.calls <- func() { done <- f() }
	return <-done
}

func configure(addrs []string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(lo); err != nil {
		return err
	}
	for _, text := range addrs {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(lo, a); err != nil {
			return err
		}
		// The kernel enters the route of an IPv6 address later (addrconf_dad_work in
		// net/ipv6/addrconf.c).
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			r, err := h.RouteGet(a.IP)
			if err == nil && len(r) == 1 && r[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("no route to %v: %v, %w", a.IP, r, err)
			}
		}
	}
	return nil
}

// newGuest makes the container's namespace, where replies of ports 80 to 89 stay.
func newGuest(t *testing.T) *space {
	t.Helper()
	s := newSpace(t, guestAddrs)
	err := s.do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return netns.KeepReplies(h, []netip.Addr{guest4, guest6}, []netns.PortRange{{First: 80, Last: 89}})
	})
	if err != nil {
		t.Fatalf("set the guest's namespace up: %v", err)
	}
	return s
}

// Sockets implements Namespace.
func (s *space) Sockets(_ context.Context, family, n int) (fds []int, err error) {
	err = s.do(func() error {
		for range n {
			fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
			if family == unix.AF_INET {
				err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			} else {
				err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1),
					unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return fds, err
}

// listen opens TCP listeners in the namespace, of the family of each address.
func (s *space) listen(t *testing.T, addrs ...string) []*net.TCPListener {
	t.Helper()
	var out []*net.TCPListener
	err := s.do(func() error {
		for _, a := range addrs {
			l, err := listenTCP(a)
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			out = append(out, l)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// listenEverywhere opens one listener of both families.
func (s *space) listenEverywhere(t *testing.T, port string) *net.TCPListener {
	t.Helper()
	var out net.Listener
	err := s.do(func() (err error) {
		var plain net.ListenConfig
		plain.SetMultipathTCP(false)
		out, err = plain.Listen(t.Context(), "tcp", ":"+port)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	return out.(*net.TCPListener)
}

func listenTCP(addr string) (*net.TCPListener, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	network := "tcp4"
	if a.Addr().Is6() {
		network = "tcp6"
	}
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // nor are the monitor's listeners
	l, err := plain.Listen(context.Background(), network, a.String())
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// files gives the descriptors of listeners away, as the monitor does.
func files(t *testing.T, listeners ...*net.TCPListener) []*os.File {
	t.Helper()
	var out []*os.File
	for _, l := range listeners {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		out = append(out, f)
	}
	return out
}

// dial connects inside the namespace; from may be empty.
func (s *space) dial(t *testing.T, from, to string) *net.TCPConn {
	t.Helper()
	c, err := s.tryDial(from, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (s *space) tryDial(from, to string) (c *net.TCPConn, err error) {
	err = s.do(func() (err error) {
		c, err = dialTCP(from, to)
		return err
	})
	return c, err
}

func dialTCP(from, to string) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: patience}
	if from != "" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
		// The tests want the same source port for different destinations.
		d.Control = reuseAddress
	}
	c, err := d.Dial("tcp", to)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c.(*net.TCPConn), nil
}

// eventually polls what no event tells.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// descriptors counts the open ones of the process.
func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// checkLeaks returns a function that fails when goroutines or descriptors have
// come that do not go. Sockets ready in pools are no leak.
func checkLeaks(t *testing.T, pools ...*pool) func() {
	t.Helper()
	settle := func() (goroutines, fds int) {
		time.Sleep(time.Millisecond)
		fds = descriptors(t)
		for _, p := range pools {
			fds -= len(p.ready)
		}
		return runtime.NumGoroutine(), fds
	}
	goroutines, fds := settle()
	return func() {
		t.Helper()
		g, f := settle()
		for end := time.Now().Add(patience); g > goroutines || f > fds; g, f = settle() {
			if time.Now().After(end) {
				t.Fatalf("%d goroutines and %d descriptors, before %d and %d", g, f, goroutines, fds)
			}
		}
	}
}
