package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	ft "slipway/netstack/internal/frametest"
	"slipway/netstack/netns"
	"slipway/netstack/tap"
)

// selfConfiguring is a stack whose guest chooses its addresses, and whose host has an IPv6
// resolver.
func selfConfiguring() Config {
	n := DefaultNetwork()
	return Config{
		Network: n, Sources: n.Prefixes(), Services: Services{DHCP: true, Router: true},
		Policy: Policy{Local: everythingLocal{}, HostAccess: HostAccess{Loopback: Grant{Open: true}}},
		Resolvers: func(context.Context) ([]netip.AddrPort, error) {
			return []netip.AddrPort{netip.MustParseAddrPort("[::1]:53")}, nil
		},
	}
}

// run runs a program in the guest and returns what it writes.
func (g *kernelGuest) run(name string, args ...string) (string, error) {
	g.t.Helper()
	for _, program := range []string{"nsenter", name} {
		if _, err := exec.LookPath(program); err != nil {
			g.t.Skip(err)
		}
	}
	enter := []string{"-t", strconv.Itoa(g.pid), "-U", "-n"}
	if os.Getuid() != 0 {
		enter = append(enter, "--preserve-credentials") // the only ones that are mapped
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append(append(enter, "--", name), args...)...)
	// The guest's root may not enter the directory of the test.
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must is run for what has to succeed.
func (g *kernelGuest) must(name string, args ...string) string {
	g.t.Helper()
	out, err := g.run(name, args...)
	if err != nil {
		g.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// everybodysFile makes a program that the guest's root may run.
func everybodysFile(t *testing.T, text string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "slipway-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "script")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDHCPClient: busybox' client gets an address, with which the guest then has a network.
func TestDHCPClient(t *testing.T) {
	g := startKernelGuest(t, tap.Auto, netns.Link{}, selfConfiguring())
	script := everybodysFile(t, `#!/bin/sh
[ "$1" = bound ] || exit 0
echo "got $ip/$mask router=$router dns=$dns lease=$lease server=$serverid domain=$domain mtu=$mtu"
busybox ip address add "$ip/$mask" dev "$interface"
busybox ip route add default via "$router"
`)
	out := g.must("busybox", "udhcpc", "-i", "tap0", "-n", "-q", "-f", "-s", script)
	if want := "got 10.0.2.15/24 router=10.0.2.2 dns=10.0.2.3 lease=86400 server=10.0.2.2 domain= mtu=\n"; !strings.Contains(out, want) {
		t.Errorf("the client says\n%s\nwant %s", out, want)
	}
	g.must("busybox", "ping", "-c", "1", "-W", "5", "10.0.2.2")
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serve(l)
	c, err := g.dialFrom(netip.MustParseAddrPort("10.0.2.15:0"), netip.AddrPortFrom(ft.Gate4, netip.MustParseAddrPort(l.Addr().String()).Port()))
	if err != nil {
		t.Fatal(err)
	}
	talk(t, c, dialerCloses)
	if s := g.stack.Stats().DHCP; s.Leases != 1 || s.Acks != 1 || s.Malformed != 0 {
		t.Errorf("%+v", s)
	}
	// Again, by the same machine.
	out = g.must("busybox", "udhcpc", "-i", "tap0", "-n", "-q", "-f", "-s", "/bin/true")
	if !strings.Contains(out, "lease of 10.0.2.15 obtained from 10.0.2.2") {
		t.Errorf("when asked again the client says\n%s\nwant the same address", out)
	}
	if s := g.stack.Stats().DHCP; s.Leases != 1 || s.Acks != 2 || s.Naks != 0 {
		t.Errorf("%+v", s)
	}
}

// TestAutoconfiguration: the guest's kernel makes its address and its route from the
// router's advertisement.
func TestAutoconfiguration(t *testing.T) {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skip("no IPv6 here")
	}
	g := startKernelGuest(t, tap.Auto, netns.Link{}, selfConfiguring())
	a := g.awaitAddress6()
	h, err := g.target.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	if want := eui64(link.Attrs().HardwareAddr); a != want {
		t.Errorf("the guest has %s, want %s", a, want)
	}
	routes, err := h.RouteListFiltered(unix.AF_INET6, &netlink.Route{LinkIndex: link.Attrs().Index, Protocol: unix.RTPROT_RA},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		t.Fatal(err)
	}
	gateways := 0
	for _, r := range routes {
		if r.Gw.String() == "fe80::2" {
			gateways++
		}
	}
	if gateways != 1 {
		t.Errorf("routes of the advertisement %v, want one by fe80::2", routes)
	}
	for _, dst := range []string{"fd00::2", "fd00::3", "fe80::2%tap0"} {
		g.must("busybox", "ping", "-6", "-c", "1", "-W", "5", dst)
	}
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("no ::1 here: %v", err)
	}
	defer l.Close()
	go serve(l)
	c, err := g.dialFrom(netip.AddrPortFrom(a, 0), netip.AddrPortFrom(ft.Gate6, netip.MustParseAddrPort(l.Addr().String()).Port()))
	if err != nil {
		t.Fatal(err)
	}
	talk(t, c, dialerCloses)
}

// eui64 is the address that a kernel makes of an Ethernet address (RFC 4291 appendix A).
func eui64(mac net.HardwareAddr) netip.Addr {
	b := DefaultNetwork().Prefix6.Addr().As16()
	copy(b[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	return netip.AddrFrom16(b)
}

// awaitAddress6 waits for an address of the network that the kernel is done with.
func (g *kernelGuest) awaitAddress6() netip.Addr {
	g.t.Helper()
	h, err := g.target.Netlink()
	if err != nil {
		g.t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName("tap0")
	if err != nil {
		g.t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		addresses, err := h.AddrList(link, unix.AF_INET6)
		if err != nil {
			g.t.Fatal(err)
		}
		for _, x := range addresses {
			a, _ := netip.AddrFromSlice(x.IP)
			if DefaultNetwork().Prefix6.Contains(a) && x.Flags&unix.IFA_F_TENTATIVE == 0 {
				return a
			}
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
	g.t.Fatalf("no address; %+v", g.stack.Stats().Router)
	return netip.Addr{}
}

// TestGuestMovesToAnotherEthernetAddress: flows both ways go on when the guest changes its
// Ethernet address after the start.
func TestGuestMovesToAnotherEthernetAddress(t *testing.T) {
	g := newKernelGuest(t, tap.Auto, HostAccess{Loopback: Grant{Open: true}})
	n := DefaultNetwork()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serve(l)
	echo, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		b := make([]byte, 100)
		for {
			k, from, err := echo.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteToUDPAddrPort(b[:k], from)
		}
	}()
	port := func(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }
	works := func() {
		t.Helper()
		c, err := g.dial(netip.AddrPortFrom(n.Gateway4(), port(l.Addr())))
		if err != nil {
			t.Fatal(err)
		}
		talk(t, c, acceptorCloses)
		g.must("busybox", "ping", "-c", "1", "-W", "5", n.Gateway4().String())
		out := g.must("bash", "-c", fmt.Sprintf("exec 3<>/dev/udp/%s/%d; echo hello >&3; timeout 10 dd bs=100 count=1 <&3 2>/dev/null", n.Gateway4(), port(echo.LocalAddr())))
		if out != "hello\n" {
			t.Errorf("UDP brought %q back", out)
		}
	}
	works()
	before, err := g.dial(netip.AddrPortFrom(n.Gateway4(), port(l.Addr())))
	if err != nil {
		t.Fatal(err)
	}
	h, err := g.target.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetHardwareAddr(link, net.HardwareAddr{2, 0, 0, 0, 0, 0x77}); err != nil {
		t.Fatal(err)
	}
	works()
	talk(t, before, acceptorCloses)
	if got := g.stack.Stats().Link.Neighbours; got == 0 {
		t.Error("no address was seen elsewhere")
	}
}

// from changes the sender's Ethernet address of a frame.
func from(mac string, frame []byte) []byte {
	copy(frame[6:12], mac)
	return frame
}

// TestMachinesBehindABridge: each gets what is for it, by every path.
func TestMachinesBehindABridge(t *testing.T) {
	g := startGuest(t, selfConfiguring())
	for i := range 3 {
		mac := fmt.Sprintf("\x02\x00\x00\x00\x02%c", i)
		a4 := netip.AddrFrom4([4]byte{10, 0, 2, byte(50 + i)})
		a6 := netip.MustParseAddr("fd00::50").Next()
		for range i {
			a6 = a6.Next()
		}
		for what, frame := range map[string][]byte{
			"ICMP echo":                 ft.Echo(a4, ft.Gate4),
			"ICMPv6 echo":               ft.Echo(a6, ft.Gate6),
			"TCP to a closed place":     ft.TCP(a4, ft.World4, header.TCPFlagSyn, ""),
			"TCP to a closed place, v6": ft.TCP(a6, ft.World6, header.TCPFlagSyn, ""),
			"UDP to a closed place":     ft.Datagram(netip.AddrPortFrom(a4, 9), netip.AddrPortFrom(ft.World4, 9), "x"),
			"echo to a closed place":    ft.Echo(a4, ft.World4),
		} {
			g.send(tap.Header{}, from(mac, frame))
			got := g.until("an answer to "+what, func(f []byte) bool {
				b := f[header.EthernetMinimumSize:]
				switch header.Ethernet(f).Type() {
				case header.IPv4ProtocolNumber:
					return addrPort(header.IPv4(b).DestinationAddress(), 0).Addr() == a4
				case header.IPv6ProtocolNumber:
					return addrPort(header.IPv6(b).DestinationAddress(), 0).Addr() == a6
				}
				return false
			})
			if string(got[:6]) != mac {
				t.Errorf("the answer to %s went to % x, want % x", what, got[:6], mac)
			}
		}
	}
}

// TestServicesAnswer: what a guest without an address sends has an answer where the
// services are on, and none where they are not.
func TestServicesAnswer(t *testing.T) {
	linkLocal := netip.MustParseAddr("fe80::64")
	discover := ft.Datagram(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), discoverMessage())
	inform := ft.Datagram(netip.AddrPortFrom(linkLocal, 546), netip.MustParseAddrPort("[ff02::1:2]:547"), informMessage)
	solicit := ft.Solicit(linkLocal, router6)
	header.IPv6(solicit[header.EthernetMinimumSize:]).SetHopLimit(255) // RFC 4861 section 7.1.1
	frames := [][]byte{discover, ft.SolicitRouter(linkLocal), inform, solicit}

	g := startGuest(t, selfConfiguring())
	for _, f := range frames {
		g.send(tap.Header{}, f)
	}
	udpFrom := func(port uint16) func([]byte) bool {
		return func(f []byte) bool {
			p := f[header.EthernetMinimumSize:]
			if header.Ethernet(f).Type() == header.IPv4ProtocolNumber {
				ip := header.IPv4(p)
				return ip.Protocol() == uint8(header.UDPProtocolNumber) && header.UDP(ip.Payload()).SourcePort() == port
			}
			ip := header.IPv6(p)
			return ip.NextHeader() == uint8(header.UDPProtocolNumber) && header.UDP(ip.Payload()).SourcePort() == port
		}
	}
	icmp6 := func(kind header.ICMPv6Type) func([]byte) bool {
		return func(f []byte) bool {
			ip := header.IPv6(f[header.EthernetMinimumSize:])
			return header.Ethernet(f).Type() == header.IPv6ProtocolNumber && ip.NextHeader() == uint8(header.ICMPv6ProtocolNumber) &&
				header.ICMPv6(ip.Payload()).Type() == kind && addrPort(ip.SourceAddress(), 0).Addr() == router6
		}
	}
	// The router answers beside the receive loop, so the answers come in any order.
	waiting := map[string]func([]byte) bool{
		"an offer": udpFrom(67), "a DHCPv6 reply": udpFrom(547),
		"an advertisement": icmp6(header.ICMPv6RouterAdvert), "the router's Ethernet address": icmp6(header.ICMPv6NeighborAdvert),
	}
	for len(waiting) > 0 {
		g.until(fmt.Sprint(len(waiting), " more answers"), func(f []byte) bool {
			for what, is := range waiting {
				if is(f) {
					delete(waiting, what)
					return true
				}
			}
			return false
		})
	}

	fixed := newGuest(t, closed())
	for _, f := range frames {
		fixed.send(tap.Header{}, f)
	}
	fixed.settle()
	if d := fixed.stack.Stats().Link.Dropped; d["foreign_source"] != 2 || d["not_answered"] != 2 {
		t.Errorf("without services: %v; want two from foreign sources, two not answered", d)
	}
}

// informMessage is a DHCPv6 request for information about resolvers.
const informMessage = "\x0b\x01\x02\x03\x00\x06\x00\x02\x00\x17"

// discoverMessage is the least that a DHCP client sends.
func discoverMessage() string {
	b := make([]byte, 236, 300)
	b[0], b[1], b[2] = 1, 1, 6
	copy(b[28:], ft.GuestMAC)
	return string(append(b, 99, 130, 83, 99, 53, 1, 1, 255))
}

// TestNetworkWithoutIPv6: nothing of IPv6 is answered, and IPv4 is as ever.
func TestNetworkWithoutIPv6(t *testing.T) {
	cfg := selfConfiguring()
	cfg.Network.Prefix6 = netip.Prefix{}
	cfg.Sources, cfg.Services.Router = nil, false
	g := startGuest(t, cfg)
	for _, a := range []netip.Addr{cfg.Network.Guest6(), cfg.Network.Gateway6(), cfg.Network.DNS6(), cfg.Network.Router6()} {
		if a.IsValid() {
			t.Errorf("%s is in a network without IPv6", a)
		}
	}
	frames := [][]byte{
		ft.Echo(ft.Guest6, ft.Gate6), ft.Solicit(ft.Guest6, ft.Gate6), ft.TCP(ft.Guest6, ft.World6, header.TCPFlagSyn, ""),
		ft.SolicitRouter(netip.MustParseAddr("fe80::1")), ft.Solicit(netip.IPv6Unspecified(), ft.Guest6),
	}
	for _, f := range frames {
		g.send(tap.Header{}, f)
	}
	g.send(tap.Header{}, ft.Echo(ft.Guest4, ft.Gate4))
	g.until("an echo reply", func(f []byte) bool {
		if header.Ethernet(f).Type() == header.IPv6ProtocolNumber {
			t.Errorf("an IPv6 packet: % x", f)
		}
		return header.Ethernet(f).Type() == header.IPv4ProtocolNumber
	})
	if got := g.stack.Stats().Link.Dropped["not_answered"]; got != uint64(len(frames)) {
		t.Errorf("%d frames were not answered, want %d", got, len(frames))
	}
	if _, err := g.stack.policy.Route(netip.AddrPortFrom(ft.Gate6, 80)); errors.Is(err, ErrOwnNetwork) {
		t.Errorf("fd00::2 is of the guest's own network: %v", err)
	}
}

func TestRouterNeedsIPv6(t *testing.T) {
	var fds [2]int
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	dev, err := tap.Adopt(os.NewFile(uintptr(fds[0]), "ours"), "tap0", allOffloads)
	if err != nil {
		t.Fatal(err)
	}
	cfg := selfConfiguring()
	cfg.Network.Prefix6 = netip.Prefix{}
	cfg.MTU, cfg.Device, cfg.GuestMAC, cfg.Limits = 1500, dev, net.HardwareAddr(ft.GuestMAC), DefaultLimits()
	if s, err := New(cfg); err == nil {
		s.Close()
		t.Error("a router advertises a network that there is not")
	}
}

// TestWithoutResolver: the resolver's address answers pings and no queries.
func TestWithoutResolver(t *testing.T) {
	cfg := selfConfiguring()
	cfg.Resolvers = nil
	g := startGuest(t, cfg)
	g.send(tap.Header{}, ft.Echo(ft.Guest4, ft.DNS4))
	g.until("an echo reply", func(f []byte) bool {
		return header.Ethernet(f).Type() == header.IPv4ProtocolNumber && header.IPv4(f[header.EthernetMinimumSize:]).Protocol() == 1
	})
	g.send(tap.Header{}, ft.Datagram(netip.AddrPortFrom(ft.Guest4, 9), netip.AddrPortFrom(ft.DNS4, 53), "query"))
	g.until("an ICMP error", func(f []byte) bool {
		ip := header.IPv4(f[header.EthernetMinimumSize:])
		return header.Ethernet(f).Type() == header.IPv4ProtocolNumber && ip.Protocol() == 1 &&
			header.ICMPv4(ip.Payload()).Type() == header.ICMPv4DstUnreachable
	})
	g.send(tap.Header{}, ft.Datagram(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), discoverMessage()))
	f := g.until("an offer", func(f []byte) bool {
		ip := header.IPv4(f[header.EthernetMinimumSize:])
		return header.Ethernet(f).Type() == header.IPv4ProtocolNumber && ip.Protocol() == uint8(header.UDPProtocolNumber)
	})
	if strings.Contains(string(f), "\x06\x04\x0a\x00\x02\x03") {
		t.Error("the offer tells of a resolver")
	}
}
