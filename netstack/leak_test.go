package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/refs"

	ft "slipway/netstack/internal/frametest"
	"slipway/netstack/netns"
	"slipway/netstack/netns/nstest"
	"slipway/netstack/relay"
	"slipway/netstack/tap"
)

// TestMain turns on gVisor's reference checker for the whole package: it must be on
// before the first object that it is to know is made.
func TestMain(m *testing.M) {
	refs.SetLeakMode(refs.LeaksPanic)
	os.Exit(m.Run())
}

// live is what gVisor's reference counts keep alive: packets, segments, addresses.
func live(t testing.TB) (n int, what string) {
	t.Helper()
	defer func() {
		// The checker's only way to tell.
		if r := recover(); r != nil {
			what = fmt.Sprint(r)
			if _, err := fmt.Sscanf(what, "Leak checking detected %d leaked objects", &n); err != nil {
				t.Fatalf("gVisor's leak checker says %q: %v", what, err)
			}
		}
	}()
	refs.DoRepeatedLeakCheck()
	return 0, ""
}

// holdings are what a process can leak.
type holdings struct{ goroutines, descriptors, references int }

func held(t testing.TB) holdings {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n, _ := live(t)
	return holdings{runtime.NumGoroutine(), len(entries), n}
}

// returnsTo waits until no more is held than before.
func returnsTo(t *testing.T, before holdings) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	now := held(t)
	for now.goroutines > before.goroutines || now.descriptors > before.descriptors || now.references > before.references {
		if time.Now().After(deadline) {
			_, what := live(t)
			buf := make([]byte, 1<<16)
			t.Fatalf("held: %+v, before: %+v\n%.8000s\n%s", now, before, what, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond) // between two looks
		now = held(t)
	}
}

// kernelGuest is a stack behind a real TAP, with the kernel's TCP as its guest.
type kernelGuest struct {
	t      *testing.T
	pid    int // in the guest's namespaces
	target netns.Target
	stack  *Stack
	spare  map[int][]*os.File // sockets in the namespace, by family
}

func newKernelGuest(t *testing.T, mode tap.Mode, access HostAccess) *kernelGuest {
	t.Helper()
	n := DefaultNetwork()
	return startKernelGuest(t, mode, netns.Link{
		Addresses: []netip.Prefix{netip.PrefixFrom(n.Guest4(), 24), netip.PrefixFrom(n.Guest6(), 64)},
		Gateways:  []netip.Addr{n.Gateway4(), n.Gateway6()},
	}, Config{
		Network:   n,
		Policy:    Policy{Local: everythingLocal{}, HostAccess: access},
		Resolvers: func(context.Context) ([]netip.AddrPort, error) { return nil, errors.New("no resolvers") },
	})
}

// startKernelGuest configures the guest's end as link says and starts a stack of cfg.
func startKernelGuest(t *testing.T, mode tap.Mode, link netns.Link, cfg Config) *kernelGuest {
	t.Helper()
	ns := nstest.New(t)
	g := &kernelGuest{t: t, pid: ns.PID, target: ns.Target(t), spare: make(map[int][]*os.File)}
	tun, err := g.target.OpenTUN("")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		t.Skipf("no TAP here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	device, err := tap.Attach(tun, "tap0", mode)
	if err != nil {
		t.Fatal(err)
	}
	h, err := g.target.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link.Name, link.MTU = "tap0", 1500
	cfg.MTU, cfg.Device, cfg.Limits = 1500, device, DefaultLimits()
	if cfg.GuestMAC, err = netns.Configure(h, link); err != nil {
		t.Fatal(err)
	}
	g.stack, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.close)
	return g
}

func (g *kernelGuest) close() {
	g.dropSpare()
	if err := g.stack.Close(); err != nil {
		g.t.Errorf("close stack: %v", err)
	}
}

// dropSpare closes the sockets that nobody has used.
func (g *kernelGuest) dropSpare() {
	for family, files := range g.spare {
		for _, f := range files {
			f.Close()
		}
		delete(g.spare, family)
	}
}

// socket is a socket of the guest.
func (g *kernelGuest) socket(like netip.Addr) *os.File {
	g.t.Helper()
	family := unix.AF_INET
	if like.Is6() {
		family = unix.AF_INET6
	}
	if len(g.spare[family]) == 0 {
		files, err := g.target.Sockets(family, netns.MaxSockets)
		if err != nil {
			g.t.Fatal(err)
		}
		g.spare[family] = files
	}
	f := g.spare[family][0]
	g.spare[family] = g.spare[family][1:]
	return f
}

// dial connects from the guest, from a port that its kernel chooses.
func (g *kernelGuest) dial(dst netip.AddrPort) (*net.TCPConn, error) {
	g.t.Helper()
	src := DefaultNetwork().Guest4()
	if dst.Addr().Is6() {
		src = DefaultNetwork().Guest6()
	}
	return g.dialFrom(netip.AddrPortFrom(src, 0), dst)
}

// dialFrom connects from src, an address of the guest.
func (g *kernelGuest) dialFrom(src, dst netip.AddrPort) (*net.TCPConn, error) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 20*time.Second)
	defer cancel()
	sock := g.socket(dst.Addr())
	defer sock.Close() // the connection has a copy
	if err := connect(ctx, sock, src, dst); err != nil {
		return nil, fmt.Errorf("connect %v from %v: %w", dst, src, err)
	}
	c, err := net.FileConn(sock)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// connect binds sock and connects it, and returns the errno, or ctx's error.
func connect(ctx context.Context, sock *os.File, src, dst netip.AddrPort) error {
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { sock.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var result error
	bound := false
	err = raw.Write(func(fd uintptr) bool {
		if !bound {
			bound = true
			// A port that a connection in TIME_WAIT still has may be taken again.
			if result = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(int(fd), sockaddr(src))); result != nil {
				return true
			}
		}
		// Called again, it says how the first call ended, connect(2).
		result = unix.Connect(int(fd), sockaddr(dst))
		return !errors.Is(result, unix.EINPROGRESS) && !errors.Is(result, unix.EALREADY)
	})
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return errors.Join(err, result)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// listen listens in the guest.
func (g *kernelGuest) listen(a netip.AddrPort) net.Listener {
	g.t.Helper()
	f := g.socket(a.Addr())
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		g.t.Fatal(err)
	}
	var serr error
	if err := raw.Control(func(fd uintptr) {
		serr = errors.Join(unix.Bind(int(fd), &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}), unix.Listen(int(fd), 64))
	}); err != nil || serr != nil {
		g.t.Fatalf("listen in the guest: %v, %v", err, serr)
	}
	l, err := net.FileListener(f)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close() })
	return l
}

// serve is the other side of talk.
func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			b := make([]byte, 1)
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			switch b[0] {
			case acceptorCloses:
				c.Write(b)
			case acceptorResets:
				c.(*net.TCPConn).SetLinger(0)
			default:
				c.Write(b)
				io.Copy(io.Discard, c)
			}
		}()
	}
}

// How a flow ends.
const (
	dialerCloses = byte(iota)
	acceptorCloses
	dialerResets
	acceptorResets
	endings
)

// talk passes a byte each way and ends the flow.
func talk(t *testing.T, c *net.TCPConn, how byte) {
	t.Helper()
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte{how}); err != nil {
		t.Fatalf("write: %v", err)
	}
	b := make([]byte, 2)
	n, err := c.Read(b)
	if how == acceptorResets {
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("read after the acceptor's reset: %d bytes, %v", n, err)
		}
		return
	}
	if err != nil || n != 1 || b[0] != how {
		t.Fatalf("got %v, %v; want the byte %d back", b[:n], err, how)
	}
	switch how {
	case acceptorCloses:
		if n, err := c.Read(b); n != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("read after the acceptor's FIN: %d bytes, %v", n, err)
		}
	case dialerResets:
		c.SetLinger(0)
	}
}

// TestFlowsLeakNothing: connections one after the other, both ways, ended in every
// way, leave no goroutine, no descriptor and none of gVisor's references behind.
func TestFlowsLeakNothing(t *testing.T) {
	for _, tt := range []struct {
		mode          tap.Mode
		out, in, each int
	}{
		{tap.Auto, 10000, 2000, 500},
		{tap.Off, 500, 500, 100},
	} {
		t.Run("offload="+string(tt.mode), func(t *testing.T) {
			atFirst, _ := live(t)
			g := newKernelGuest(t, tt.mode, HostAccess{Loopback: Grant{Open: true}})
			l4, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l4.Close()
			go serve(l4)
			inside := g.listen(netip.AddrPortFrom(DefaultNetwork().Guest4(), 80))
			go serve(inside)

			to := func(a netip.Addr, l net.Listener) netip.AddrPort {
				return netip.AddrPortFrom(a, netip.MustParseAddrPort(l.Addr().String()).Port())
			}
			out := []netip.AddrPort{to(DefaultNetwork().Gateway4(), l4)}
			if l6, err := net.Listen("tcp6", "[::1]:0"); err == nil {
				defer l6.Close()
				go serve(l6)
				out = append(out, to(DefaultNetwork().Gateway6(), l6))
			}
			outward := func(n int) {
				for i := range n {
					c, err := g.dial(out[i/int(endings)%len(out)])
					if err != nil {
						t.Fatalf("connection %d: %v; dial errors %v", i, err, g.stack.Stats().DialErrors)
					}
					talk(t, c, byte(i)%endings)
				}
			}
			front, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer front.Close()
			inward := func(n int) {
				for i := range n {
					client, err := net.Dial("tcp4", front.Addr().String())
					if err != nil {
						t.Fatal(err)
					}
					accepted, err := front.Accept()
					if err != nil {
						t.Fatal(err)
					}
					done := make(chan error, 1)
					go func() {
						src := netip.AddrPortFrom(ft.World4, uint16(20000+i%100))
						done <- g.stack.ForwardTCP(t.Context(), accepted.(*net.TCPConn), src, netip.AddrPortFrom(DefaultNetwork().Guest4(), 80), new(relay.Bytes))
					}()
					talk(t, client.(*net.TCPConn), byte(i)%endings)
					if err := <-done; err != nil {
						t.Fatalf("forward %d: %v", i, err)
					}
				}
			}
			refused := func(n int) {
				closedPort := netip.AddrPortFrom(DefaultNetwork().Gateway4(), 1)
				far := netip.MustParseAddrPort("169.254.169.254:80") // by policy
				for range n {
					if c, err := g.dial(closedPort); !errors.Is(err, syscall.ECONNREFUSED) {
						t.Fatalf("dial %s: %v, %v", closedPort, c, err)
					}
					if c, err := g.dial(far); !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EHOSTUNREACH) {
						t.Fatalf("dial %s: %v, %v", far, c, err)
					}
				}
			}
			outward(64) // what is made once stays
			inward(64)
			refused(16)
			g.idle()
			before := held(t)

			outward(tt.out)
			inward(tt.in)
			refused(tt.each)
			g.idle()
			returnsTo(t, before)
			if s := g.stack.Stats(); s.GVisor["tcp_current_established"] != 0 || s.DialsPending != 0 {
				t.Errorf("%d established, %d dials pending; want none", s.GVisor["tcp_current_established"], s.DialsPending)
			}
			if got, want := g.stack.Stats().FlowsTotal, uint64(tt.out+tt.in+128); got != want {
				t.Errorf("%d flows were counted, want %d", got, want)
			}

			g.close()
			deadline := time.Now().Add(20 * time.Second)
			for n, what := live(t); n > atFirst; n, what = live(t) {
				if time.Now().After(deadline) {
					t.Fatalf("%d references outlive the stack, %d before it:\n%.8000s", n, atFirst, what)
				}
				time.Sleep(10 * time.Millisecond) // between two looks
			}
		})
	}
}

// idle waits until no flow is open, and makes descriptors comparable.
func (g *kernelGuest) idle() {
	g.t.Helper()
	g.dropSpare()
	deadline := time.Now().Add(20 * time.Second)
	for {
		s := g.stack.Stats()
		if s.FlowsOpen == 0 && s.GVisor["tcp_current_established"] == 0 {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("%d flows are open, %d connections established", s.FlowsOpen, s.GVisor["tcp_current_established"])
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}
