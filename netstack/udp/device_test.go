package udp

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"slipway/netstack/tap"
)

// kernelGuest is a network namespace with a real TAP device, the NAT behind it.
type kernelGuest struct {
	nat *NAT
	// socket makes a UDP socket in the namespace, connected unless to is the zero value.
	socket func(from, to netip.AddrPort) *net.UDPConn
}

// newKernelGuest moves the test's thread into the namespace, so sockets of the host must
// exist before.
func newKernelGuest(t *testing.T, mode tap.Mode) kernelGuest {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespace for the test: %v", err)
	}
	node, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no /dev/net/tun here: %v", err)
	}
	dev, err := tap.Attach(node, "tap0", mode)
	if err != nil {
		t.Skipf("no TAP device for the test: %v", err)
	}
	if mode == tap.Auto && !dev.Offload().Has(tap.CSum) {
		t.Skipf("no offloads here: %s", dev.Reason())
	}
	var mac net.HardwareAddr
	done := func(what string, err error) {
		t.Helper()
		if err != nil {
			dev.Close()
			t.Fatalf("%s: %v", what, err)
		}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	done("netlink", err)
	defer h.Close()
	link, err := h.LinkByName("tap0")
	done("find link", err)
	mac = link.Attrs().HardwareAddr
	for _, p := range []netip.Prefix{netip.PrefixFrom(guest4, 24), netip.PrefixFrom(guest6, 64)} {
		a, err := netlink.ParseAddr(p.String())
		done("parse", err)
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		done("add address", h.AddrAdd(link, a))
	}
	done("set link up", h.LinkSetUp(link))
	for _, a := range []netip.Addr{gateway4, gateway6} {
		done("add neighbour", h.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: gatewayMAC,
		}))
	}
	// An IPv6 address receives only after work that the kernel does later, also without duplicate
	// address detection (addrconf_dad_work in net/ipv6/addrconf.c adds its route).
	eventually(t, "the address is local", func() bool {
		r, err := h.RouteGet(guest6.AsSlice())
		return err == nil && len(r) == 1 && r[0].Type == unix.RTN_LOCAL
	})

	var mu sync.Mutex
	var w tap.Writer
	cfg := testConfig(nil)
	cfg.GuestMAC, cfg.Offload = mac, dev.Offload()
	cfg.Write = func(h tap.Header, frame [][]byte) error {
		mu.Lock()
		defer mu.Unlock()
		w.Reset(h)
		for _, b := range frame {
			w.Append(b)
		}
		return w.WriteTo(dev)
	}
	// The poller and the RX loop run on other threads, which are the host's.
	n, err := New(cfg)
	done("new NAT", err)
	r, err := tap.NewReader(dev)
	done("new reader", err)
	var stopped atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf, rest := make([]byte, 70000), make([]byte, 70000)
		for turn := 0; ; turn++ {
			var h tap.Header
			var frame []byte
			var size int
			var err error
			if turn%2 == 0 { // as the link reads, in both ways
				h, frame, err = r.TryReadFlat(buf)
			} else {
				h, size, err = r.TryRead(buf, rest)
				frame = buf[:size]
			}
			if errors.Is(err, unix.EAGAIN) {
				n.Flush()
				h, size, err = r.Read(buf, rest)
				frame = buf[:max(size, 0)]
			}
			if err == nil {
				n.Input(h, frame)
			} else if stopped.Load() {
				return
			}
		}
	}()
	t.Cleanup(func() {
		n.Close()
		stopped.Store(true)
		dev.Close()
		<-ended
	})
	return kernelGuest{n, func(from, to netip.AddrPort) *net.UDPConn {
		t.Helper()
		var c *net.UDPConn
		var err error
		if to.IsValid() {
			c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
		} else {
			c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(from))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		return c
	}}
}

func segmented(t *testing.T, c *net.UDPConn, size int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) }); cerr != nil || err != nil {
		t.Skipf("no UDP_SEGMENT here: %v %v", cerr, err)
	}
}

// The kernel of the guest accepts what is written to it, and what it writes is
// understood: runs, checksums, fragments and errors, with offloads and without.
func TestKernelGuest(t *testing.T) {
	for _, mode := range []tap.Mode{tap.Auto, tap.Off} {
		for _, family := range []struct {
			name, server   string
			guest, gateway netip.Addr
		}{{"IPv4", "127.0.0.1:0", guest4, gateway4}, {"IPv6", "[::1]:0", guest6, gateway6}} {
			t.Run(string(mode)+" "+family.name, func(t *testing.T) {
				server, addr := hostSocket(t, family.server)
				closed, closedAddr := hostSocket(t, family.server)
				closed.Close()
				g := newKernelGuest(t, mode)
				c := g.socket(at(family.guest, 0), at(family.gateway, addr.Port()))
				exchange := func(to *net.UDPConn, write func([]byte), sizes ...int) {
					t.Helper()
					whole := 0
					for _, n := range sizes {
						whole += n
					}
					payload := make([]byte, whole)
					for i := range payload {
						payload[i] = byte(i*31 + whole)
					}
					write(payload)
					for i, n := range sizes {
						b := make([]byte, 65536)
						size, err := to.Read(b)
						if err != nil {
							t.Fatalf("datagram %d of %d bytes: %v; stats %+v", i, n, err, g.nat.Stats())
						}
						if b = b[:size]; !bytes.Equal(b, payload[:n]) {
							t.Fatalf("datagram %d of %d bytes: %d bytes came", i, n, len(b))
						}
						payload = payload[n:]
					}
				}
				toHost := func(b []byte) {
					if _, err := c.Write(b); err != nil {
						t.Fatal(err)
					}
				}
				toHost([]byte("hello"))
				_, from := read(t, server)
				toGuest := func(b []byte) { writeTo(t, server, b, from) }
				for _, n := range []int{0, 1, 1452} {
					exchange(server, toHost, n)
					exchange(c, toGuest, n)
				}
				for _, n := range []int{1473, 9000, 65000} {
					exchange(server, toHost, n)
					exchange(c, toGuest, n)
				}

				segmented(t, server, 1000)
				exchange(c, toGuest, 1000, 1000, 1000, 1000, 500)
				segmented(t, server, 3000)
				exchange(c, toGuest, 3000, 3000, 1)
				segmented(t, c, 1000)
				exchange(server, toHost, 1000, 1000, 1000, 1000, 500)

				s := g.nat.Stats()
				if s.Dropped.Write+s.Dropped.Checksum+s.Dropped.Malformed != 0 || s.SessionsTotal != 1 {
					t.Errorf("stats %+v", s)
				}

				refused := g.socket(at(family.guest, 0), at(family.gateway, closedAddr.Port()))
				if _, err := refused.Write([]byte("anybody?")); err != nil {
					t.Fatal(err)
				}
				if _, err := refused.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("error %v, want ECONNREFUSED", err)
				}
			})
		}
	}
}

// A published port with a real guest: the server sees the client as the gateway and
// answers it.
func TestKernelGuestPublished(t *testing.T) {
	client, clientAddr := hostSocket(t, "127.0.0.1:0")
	listener, bound := hostSocket(t, "127.0.0.1:0")
	f, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	listener.Close()
	g := newKernelGuest(t, tap.Auto)
	server := g.socket(web4, netip.AddrPort{})
	p, err := g.nat.Publish([]*os.File{f}, web4, web6)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	writeTo(t, client, []byte("ping"), bound)
	b, from := read(t, server)
	if string(b) != "ping" || from != at(gateway4, clientAddr.Port()) {
		t.Fatalf("the server got %q from %v", b, from)
	}
	writeTo(t, server, []byte("pong"), from)
	if b, from := read(t, client); string(b) != "pong" || from != bound {
		t.Errorf("the client got %q from %v, want pong from %v", b, from, bound)
	}
}

// A datagram above the MTU goes on behind the guest, as fragments, which the kernel makes there: of
// IPv6, too, where a router may not; of IPv4 also where the MTU is smaller still.
func TestKernelGuestForwards(t *testing.T) {
	for _, mode := range []tap.Mode{tap.Auto, tap.Off} {
		for _, family := range []struct {
			name, server            string
			router, behind, gateway netip.Addr
			forward                 string
			mtu                     int
		}{
			{"IPv4", "127.0.0.1:0", netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2"), gateway4, "/proc/sys/net/ipv4/ip_forward", 1400},
			{"IPv6", "[::1]:0", netip.MustParseAddr("fd09::1"), netip.MustParseAddr("fd09::2"), gateway6, "/proc/sys/net/ipv6/conf/all/forwarding", 1500},
		} {
			t.Run(string(mode)+" "+family.name, func(t *testing.T) {
				server, addr := hostSocket(t, family.server)
				g := newKernelGuest(t, mode)
				if err := os.WriteFile(family.forward, []byte("1"), 0); err != nil {
					t.Skipf("no forwarding here: %v", err)
				}
				nest(t, family.router, family.behind, family.mtu)
				c := g.socket(at(family.behind, 0), at(family.gateway, addr.Port()))
				for _, n := range []int{1, 3000, 9000, 65000} {
					payload := make([]byte, n)
					for i := range payload {
						payload[i] = byte(i * 31)
					}
					if _, err := c.Write(payload); err != nil {
						t.Fatal(err)
					}
					b, from := read(t, server)
					if !bytes.Equal(b, payload) {
						t.Fatalf("%d bytes from behind the guest: %d came", n, len(b))
					}
					writeTo(t, server, payload, from)
					b, _ = read(t, c)
					if !bytes.Equal(b, payload) {
						t.Fatalf("%d bytes to behind the guest: %d came", n, len(b))
					}
				}
				segmented(t, server, 3000) // a run
				payload := bytes.Repeat([]byte("0123456789"), 900)
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				_, from := read(t, server)
				writeTo(t, server, payload, from)
				for i := range 3 {
					if b, _ := read(t, c); !bytes.Equal(b, payload[i*3000:][:3000]) {
						t.Fatalf("datagram %d of a run: %d bytes came", i, len(b))
					}
				}
				// What is written is counted after it.
				eventually(t, "all datagrams are counted", func() bool {
					s := g.nat.Stats()
					return s.RxDatagrams == 5 && s.TxDatagrams == 7
				})
				if s := g.nat.Stats(); s.Dropped != (Dropped{}) {
					t.Errorf("stats %+v", s)
				}
			})
		}
	}
}

// nest moves the test's thread into a namespace behind the one that it is in.
func nest(t *testing.T, router, behind netip.Addr, mtu int) {
	t.Helper()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	outer, err := os.Open("/proc/thread-self/ns/net")
	must("open namespace", err)
	defer outer.Close()
	outside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must("netlink", err)
	defer outside.Close()
	must("unshare", unix.Unshare(unix.CLONE_NEWNET))
	inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must("netlink", err)
	defer inside.Close()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "inner", MTU: mtu}, PeerName: "outer", PeerMTU: uint32(mtu),
		PeerNamespace: netlink.NsFd(int(outer.Fd())),
	}
	if err := inside.LinkAdd(veth); err != nil {
		t.Skipf("no veth here: %v", err)
	}
	length := 24
	if behind.Is6() {
		length = 64
	}
	end := func(h *netlink.Handle, name string, own netip.Addr) netlink.Link {
		t.Helper()
		link, err := h.LinkByName(name)
		must("find "+name, err)
		a, err := netlink.ParseAddr(netip.PrefixFrom(own, length).String())
		must("parse", err)
		if own.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		must("add address", h.AddrAdd(link, a))
		must("set link up", h.LinkSetUp(link))
		return link
	}
	end(outside, "outer", router)
	link := end(inside, "inner", behind)
	eventually(t, "the address is local", func() bool {
		r, err := inside.RouteGet(behind.AsSlice())
		return err == nil && len(r) == 1 && r[0].Type == unix.RTN_LOCAL
	})
	must("add route", inside.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: router.AsSlice()}))
}
