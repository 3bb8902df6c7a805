package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	ft "slipway/netstack/internal/frametest"
	"slipway/netstack/tap"
)

// guest is the other end of a stack's device: a socket pair in place of the TAP,
// which keeps frames apart as a TAP does.
type guest struct {
	t     testing.TB
	file  *os.File
	stack *Stack
}

const allOffloads = tap.CSum | tap.TSO4 | tap.TSO6 | tap.USO4 | tap.USO6

// newGuest starts a stack whose host is p's.
func newGuest(t testing.TB, p Policy) *guest {
	t.Helper()
	return startGuest(t, Config{
		Network: DefaultNetwork(), Policy: p,
		Resolvers: func(context.Context) ([]netip.AddrPort, error) { return nil, errors.New("no resolvers") },
	})
}

// startGuest starts a stack of cfg.
func startGuest(t testing.TB, cfg Config) *guest {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := tap.Adopt(os.NewFile(uintptr(fds[0]), "ours"), "tap0", allOffloads)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, file: os.NewFile(uintptr(fds[1]), "guest")}
	cfg.MTU, cfg.Device, cfg.GuestMAC = 1500, dev, net.HardwareAddr(ft.GuestMAC)
	if cfg.Limits == (Limits{}) {
		cfg.Limits = DefaultLimits()
	}
	g.stack, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.stack.Close(); err != nil {
			t.Errorf("close stack: %v", err)
		}
		g.file.Close()
	})
	return g
}

// closed is a policy under which nothing can be reached.
func closed() Policy { return Policy{Local: everythingLocal{}} }

type everythingLocal struct{}

func (everythingLocal) IsLocal(netip.Addr) bool       { return true }
func (everythingLocal) Primary(netip.Addr) netip.Addr { return netip.Addr{} }

// send hands over a frame as the kernel would: behind a virtio-net header.
func (g *guest) send(h tap.Header, frame []byte) {
	g.t.Helper()
	b := make([]byte, tap.HeaderLen, tap.HeaderLen+len(frame))
	h.Put(b)
	g.write(append(b, frame...))
}

func (g *guest) write(b []byte) {
	g.t.Helper()
	if err := g.file.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		g.t.Fatal(err)
	}
	if _, err := g.file.Write(b); err != nil {
		g.t.Fatalf("send frame: %v", err)
	}
}

// until reads frames until want likes one.
func (g *guest) until(what string, want func(frame []byte) bool) []byte {
	g.t.Helper()
	if err := g.file.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		g.t.Fatal(err)
	}
	b := make([]byte, 1<<17)
	for {
		n, err := g.file.Read(b)
		if err != nil {
			g.t.Fatalf("wait for %s: %v", what, err)
		}
		if n >= tap.HeaderLen && want(b[tap.HeaderLen:n]) {
			return b[tap.HeaderLen:n]
		}
	}
}

// settle returns when every frame sent so far has been looked at: the stack
// answers ARP in order.
func (g *guest) settle() {
	g.t.Helper()
	g.send(tap.Header{}, ft.ARP(header.ARPRequest, ft.Gate4))
	g.until("an ARP reply", isARPReply)
}

func isARPReply(f []byte) bool {
	if len(f) < header.EthernetMinimumSize+header.ARPSize || header.Ethernet(f).Type() != header.ARPProtocolNumber {
		return false
	}
	arp := header.ARP(f[header.EthernetMinimumSize:])
	return arp.IsValid() && arp.Op() == header.ARPReply
}

func TestARPIsAnsweredForOurAddressesOnly(t *testing.T) {
	g := newGuest(t, closed())
	for _, a := range []netip.Addr{ft.Guest4, ft.World4, netip.MustParseAddr("10.0.2.50")} {
		g.send(tap.Header{}, ft.ARP(header.ARPRequest, a))
	}
	g.send(tap.Header{}, ft.ARP(header.ARPRequest, ft.DNS4))
	f := g.until("an ARP reply", isARPReply)
	arp := header.ARP(f[header.EthernetMinimumSize:])
	if got := netip.AddrFrom4([4]byte(arp.ProtocolAddressSender())); got != ft.DNS4 {
		t.Errorf("the first answer is about %s, want %s", got, ft.DNS4)
	}
	if got, want := net.HardwareAddr(arp.HardwareAddressSender()).String(), "52:55:0a:00:02:03"; got != want {
		t.Errorf("%s is at %s, want %s", ft.DNS4, got, want)
	}
	if got := g.stack.Stats().Link.Dropped["not_answered"]; got != 3 {
		t.Errorf("counted %d requests that are not answered, want 3", got)
	}
}

func TestGatewayAnswersEcho(t *testing.T) {
	g := newGuest(t, closed())
	for _, tt := range []struct{ src, dst netip.Addr }{{ft.Guest4, ft.Gate4}, {ft.Guest4, ft.DNS4}, {ft.Guest6, ft.Gate6}} {
		g.send(tap.Header{}, ft.Echo(tt.src, tt.dst))
		g.until("an echo reply from "+tt.dst.String(), func(f []byte) bool {
			p := f[header.EthernetMinimumSize:]
			switch header.Ethernet(f).Type() {
			case header.IPv4ProtocolNumber:
				ip := header.IPv4(p)
				return ip.Protocol() == uint8(header.ICMPv4ProtocolNumber) && header.ICMPv4(ip.Payload()).Type() == header.ICMPv4EchoReply &&
					addrPort(ip.SourceAddress(), 0).Addr() == tt.dst
			case header.IPv6ProtocolNumber:
				ip := header.IPv6(p)
				return ip.NextHeader() == uint8(header.ICMPv6ProtocolNumber) && header.ICMPv6(ip.Payload()).Type() == header.ICMPv6EchoReply &&
					addrPort(ip.SourceAddress(), 0).Addr() == tt.dst
			}
			return false
		})
	}
}

// TestNobodyAnswersForTheWorld: gVisor would, in promiscuous mode.
func TestNobodyAnswersForTheWorld(t *testing.T) {
	g := newGuest(t, closed())
	g.send(tap.Header{}, ft.Echo(ft.Guest4, ft.World4))
	g.send(tap.Header{}, ft.Echo(ft.Guest6, ft.World6))
	g.send(tap.Header{}, ft.Solicit(ft.Guest6, ft.World6))
	g.send(tap.Header{}, ft.ARP(header.ARPRequest, ft.Gate4))
	g.until("an ARP reply", func(f []byte) bool {
		if p := f[header.EthernetMinimumSize:]; header.Ethernet(f).Type() == header.IPv4ProtocolNumber {
			ip := header.IPv4(p)
			if ip.Protocol() == uint8(header.ICMPv4ProtocolNumber) && header.ICMPv4(ip.Payload()).Type() == header.ICMPv4EchoReply {
				t.Errorf("an echo reply from %s", ip.SourceAddress())
			}
		}
		if p := f[header.EthernetMinimumSize:]; header.Ethernet(f).Type() == header.IPv6ProtocolNumber {
			ip := header.IPv6(p)
			switch header.ICMPv6(ip.Payload()).Type() {
			case header.ICMPv6EchoReply, header.ICMPv6NeighborAdvert:
				t.Errorf("an ICMPv6 answer from %s", ip.SourceAddress())
			}
		}
		return isARPReply(f)
	})
}

// TestClosedDestinationIsUnreachable: connect(2) in the guest must fail at once.
func TestClosedDestinationIsUnreachable(t *testing.T) {
	g := newGuest(t, closed())
	g.send(tap.Header{}, ft.TCP(ft.Guest4, ft.World4, header.TCPFlagSyn, ""))
	g.until("ICMP destination unreachable", func(f []byte) bool {
		ip := header.IPv4(f[header.EthernetMinimumSize:])
		return header.Ethernet(f).Type() == header.IPv4ProtocolNumber && ip.Protocol() == uint8(header.ICMPv4ProtocolNumber) &&
			header.ICMPv4(ip.Payload()).Type() == header.ICMPv4DstUnreachable
	})
	g.send(tap.Header{}, ft.TCP(ft.Guest6, ft.World6, header.TCPFlagSyn, ""))
	g.until("ICMPv6 destination unreachable", func(f []byte) bool {
		ip := header.IPv6(f[header.EthernetMinimumSize:])
		return header.Ethernet(f).Type() == header.IPv6ProtocolNumber && ip.NextHeader() == uint8(header.ICMPv6ProtocolNumber) &&
			header.ICMPv6(ip.Payload()).Type() == header.ICMPv6DstUnreachable
	})
	stats := g.stack.Stats()
	if got := stats.DialErrors["policy"]; got != 2 {
		t.Errorf("counted %d dials refused by policy, want 2", got)
	}
	want := map[string]uint64{"host_access": 2, "metadata": 0, "own_network": 0, "own_listener": 0, "invalid_destination": 0}
	if diff := cmp.Diff(want, stats.PolicyRefusals); diff != "" {
		t.Errorf("refusals by reason (-want +got):\n%s", diff)
	}
}

// TestFragmentedUDP: a datagram in two fragments reaches its host socket whole; those with options
// by way of gVisor, the others without it.
func TestFragmentedUDP(t *testing.T) {
	for name, options := range map[string][]byte{"plain": nil, "IPv4 options": {1, 1, 1, 0}} {
		t.Run(name, func(t *testing.T) { sendInFragments(t, options) })
	}
}

func sendInFragments(t *testing.T, options []byte) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	g := newGuest(t, Policy{Local: everythingLocal{}, HostAccess: HostAccess{Loopback: Grant{Open: true}}})
	payload := make([]byte, 2000)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	port := netip.MustParseAddrPort(conn.LocalAddr().String()).Port()
	datagram := ft.UDP(ft.Guest4, ft.Gate4, port, string(payload))
	const cut = 1024
	for i, part := range [][]byte{datagram[:cut], datagram[cut:]} {
		f := ft.Frame(header.UDPProtocolNumber, ft.Guest4, ft.Gate4, part)
		const data = header.EthernetMinimumSize + header.IPv4MinimumSize
		f = slices.Insert(f, data, options...)
		ip := header.IPv4(f[header.EthernetMinimumSize:])
		ip.SetHeaderLength(uint8(header.IPv4MinimumSize + len(options)))
		ip.SetTotalLength(uint16(len(f) - header.EthernetMinimumSize))
		ip.SetID(77)
		var flags uint8 = header.IPv4FlagMoreFragments
		if i == 1 {
			flags = 0
		}
		ip.SetFlagsFragmentOffset(flags, uint16(i*cut))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		g.send(tap.Header{}, f)
	}
	got := make([]byte, 4096)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, from, err := conn.ReadFromUDPAddrPort(got)
	if err != nil || string(got[:n]) != string(payload) {
		t.Fatalf("the host got %d bytes, %v; want the %d sent", n, err, len(payload))
	}
	if _, err := conn.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	g.until("the answer", func(f []byte) bool {
		ip := header.IPv4(f[header.EthernetMinimumSize:])
		return header.Ethernet(f).Type() == header.IPv4ProtocolNumber && ip.Protocol() == uint8(header.UDPProtocolNumber) &&
			string(header.UDP(ip.Payload()).Payload()) == "answer"
	})
	s := g.stack.Stats()
	byGVisor := uint64(0)
	if options != nil {
		byGVisor = 1
	}
	if s.Reassembled != byGVisor || s.UDP.Reassembled != 1-byGVisor || s.Link.RxFragments != 2*byGVisor || s.UDP.Fragments != 2-2*byGVisor {
		t.Errorf("put together by gVisor %d of %d fragments, without it %d of %d",
			s.Reassembled, s.Link.RxFragments, s.UDP.Reassembled, s.UDP.Fragments)
	}
}

// TestUDPWithOptions: a datagram with IPv4 options, whose checksum the guest left to the
// device, arrives.
func TestUDPWithOptions(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	g := newGuest(t, Policy{Local: everythingLocal{}, HostAccess: HostAccess{Loopback: Grant{Open: true}}})
	datagram := header.UDP(ft.UDP(ft.Guest4, ft.Gate4, netip.MustParseAddrPort(conn.LocalAddr().String()).Port(), "payload"))
	datagram.SetChecksum(1) // whatever: the sum of the pseudo-header
	f := ft.Frame(header.UDPProtocolNumber, ft.Guest4, ft.Gate4, datagram)
	const data = header.EthernetMinimumSize + header.IPv4MinimumSize
	f = slices.Insert(f, data, 1, 1, 1, 0)
	ip := header.IPv4(f[header.EthernetMinimumSize:])
	ip.SetHeaderLength(header.IPv4MinimumSize + 4)
	ip.SetTotalLength(uint16(len(ip)))
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	g.send(tap.Header{Flags: tap.FlagNeedsCsum, CsumStart: data + 4, CsumOffset: 6}, f)
	got := make([]byte, 100)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := conn.Read(got); err != nil || string(got[:n]) != "payload" {
		t.Errorf("the host got %q, %v", got[:n], err)
	}
}

// TestCloseLeavesNothing: no goroutine and no descriptor outlives a stack.
func TestCloseLeavesNothing(t *testing.T) {
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	cycle := func() {
		sub := newGuest(&subTest{TB: t}, closed())
		sub.send(tap.Header{}, ft.TCP(ft.Guest4, ft.World4, header.TCPFlagSyn, ""))
		sub.settle()
		sub.t.(*subTest).cleanup()
	}
	cycle() // what is made once stays
	goroutines, files := runtime.NumGoroutine(), open()
	for range 5 {
		cycle()
	}
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > goroutines && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines, %d before:\n%s", n, goroutines, buf[:runtime.Stack(buf, true)])
	}
	if n := open(); n > files {
		t.Errorf("%d descriptors, %d before", n, files)
	}
}

// subTest runs cleanups when it is told to.
type subTest struct {
	testing.TB
	cleanups []func()
}

func (s *subTest) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

func (s *subTest) cleanup() {
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		s.cleanups[i]()
	}
}

// FuzzFrames feeds two frames, virtio-net header and all, to a whole stack: the
// parsers of the header, the guard and the fast paths, and gVisor behind them. It
// fails when the stack panics or answers no more.
func FuzzFrames(f *testing.F) {
	with := func(h tap.Header, frame []byte) []byte {
		b := make([]byte, tap.HeaderLen)
		h.Put(b)
		return append(b, frame...)
	}
	plain := func(frame []byte) []byte { return with(tap.Header{}, frame) }
	syn4, syn6 := ft.TCP(ft.Guest4, ft.World4, header.TCPFlagSyn, ""), ft.TCP(ft.Guest6, ft.World6, header.TCPFlagSyn, "")
	udp4 := ft.Frame(header.UDPProtocolNumber, ft.Guest4, ft.World4, ft.UDP(ft.Guest4, ft.World4, 9, "payload"))
	udp6 := ft.Frame(header.UDPProtocolNumber, ft.Guest6, ft.World6, ft.UDP(ft.Guest6, ft.World6, 9, "payload"))
	query := ft.Frame(header.UDPProtocolNumber, ft.Guest4, ft.DNS4, ft.UDP(ft.Guest4, ft.DNS4, 53, "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"))
	tso := tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOTCPv4, GSOSize: 1400, HdrLen: 54, CsumStart: 34, CsumOffset: 16}
	uso := tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: 3, HdrLen: 42, CsumStart: 34, CsumOffset: 6}
	hopByHop := ft.Frame(0, ft.Guest6, ft.World6, append([]byte{byte(header.UDPProtocolNumber), 0, 5, 2, 0, 0, 1, 0}, ft.UDP(ft.Guest6, ft.World6, 9, "x")...))
	for _, seed := range [][2][]byte{
		{plain(syn4), plain(ft.TCP(ft.Guest4, ft.World4, header.TCPFlagAck, "data"))},
		{plain(syn6), plain(ft.TCP(ft.Guest6, ft.World6, header.TCPFlagRst, ""))},
		{plain(udp4), plain(udp6)},
		{plain(query), plain(ft.TCP(ft.Guest4, ft.DNS4, header.TCPFlagSyn, ""))},
		{with(tso, ft.TCP(ft.Guest4, ft.World4, header.TCPFlagAck, string(make([]byte, 3000)))), with(uso, udp4)},
		{plain(ft.Echo(ft.Guest4, ft.World4)), plain(ft.Echo(ft.Guest6, ft.World6))},
		{plain(ft.Echo(ft.Guest4, ft.Gate4)), plain(ft.Echo(ft.Guest6, ft.Gate6))},
		{plain(ft.ARP(header.ARPRequest, ft.Gate4)), plain(ft.ARP(header.ARPReply, ft.Gate4))},
		{plain(ft.Solicit(ft.Guest6, ft.Gate6)), plain(ft.Solicit(ft.Guest6, ft.Guest6))},
		{plain(fragmentOf(udp4, header.IPv4FlagMoreFragments, 0)), plain(fragmentOf(udp4, 0, 8))},
		{plain(hopByHop), plain(ft.Ethernet(0x88cc, make([]byte, 46)))},
		{with(tap.Header{GSOType: 9}, udp4), with(tap.Header{Flags: tap.FlagNeedsCsum, CsumStart: 60000}, udp4)},
		{{1, 2, 3}, plain(nil)},
		{plain(ft.TCP(ft.World4, ft.Gate4, header.TCPFlagSyn, "")), plain(syn4[:40])},
	} {
		f.Add(seed[0], seed[1])
	}
	for _, frame := range refusedFrames() {
		f.Add(plain(frame), plain(syn4))
	}
	linkLocal := netip.MustParseAddr("fe80::64")
	f.Add(plain(ft.Datagram(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), discoverMessage())), plain(ft.SolicitRouter(linkLocal)))
	f.Add(plain(ft.Datagram(netip.AddrPortFrom(linkLocal, 546), netip.MustParseAddrPort("[ff02::1:2]:547"), informMessage)), plain(ft.Solicit(linkLocal, router6)))
	f.Add(plain(from("\x02\x00\x00\x00\x00\x77", ft.Echo(netip.MustParseAddr("10.0.2.50"), ft.Gate4))), plain(from("\x02\x00\x00\x00\x00\x78", ft.ARP(header.ARPReply, ft.Gate4))))
	cfg := selfConfiguring()
	cfg.Policy = closed()
	g := startGuest(f, cfg)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		g.t = t
		for _, frame := range [][]byte{a, b} {
			// A TAP hands over neither nothing nor more than one frame's worth.
			if len(frame) > 0 && len(frame) <= tap.HeaderLen+1<<16 {
				g.write(frame)
			}
		}
		g.settle()
	})
}

// fragmentOf marks the IPv4 packet of a frame as a fragment.
func fragmentOf(frame []byte, flags uint8, offset uint16) []byte {
	b := append([]byte(nil), frame...)
	ip := header.IPv4(b[header.EthernetMinimumSize:])
	ip.SetFlagsFragmentOffset(flags, offset)
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	return b
}

func TestLimitsWithin(t *testing.T) {
	def := DefaultLimits()
	const others = 34406
	if got, rest := def.Within(1<<20, others); got != def || rest != others {
		t.Errorf("a million files: %+v and %d, want the limits as they are", got, rest)
	}
	for _, files := range []uint64{0, 1024, 4096, 20000} {
		for _, others := range []int{0, 1, others} {
			got, rest := def.Within(files, others)
			if n := uint64(got.Flows + got.PendingDials + got.UDPSessions + rest); n > max(files, 2*spareFiles)-spareFiles {
				t.Errorf("%d files: %+v and %d need %d", files, got, rest, n)
			}
			if got.Flows < 1 || got.PendingDials < 1 || got.UDPSessions < 1 {
				t.Errorf("%d files: %+v closes a kind of flow", files, got)
			}
			if others > 1 && (rest < got.Flows || rest > 5*got.Flows) {
				t.Errorf("%d files: %d flows and %d others, which were 8192 and %d", files, got.Flows, rest, others)
			}
		}
	}
}

func TestSnake(t *testing.T) {
	for in, want := range map[string]string{
		"TCP": "tcp", "CurrentEstablished": "current_established", "RTO": "rto", "SpuriousRTORecovery": "spurious_rto_recovery",
		"ICMP": "icmp", "V4": "v4", "IPTablesForwardDropped": "ip_tables_forward_dropped", "TxPacketsDroppedNoBufferSpace": "tx_packets_dropped_no_buffer_space",
	} {
		if got := snake(in); got != want {
			t.Errorf("snake(%s) = %s, want %s", in, got, want)
		}
	}
}

// TestCloseUnderLoad: a guest that sends all the time does not keep a stack from closing.
func TestCloseUnderLoad(t *testing.T) {
	g := newGuest(t, closed())
	b := make([]byte, tap.HeaderLen)
	(&tap.Header{}).Put(b)
	b = append(b, ft.TCP(ft.Guest4, ft.Gate4, header.TCPFlagAck, "")...)
	sent := make(chan error, 1)
	go func() {
		for {
			if _, err := g.file.Write(b); err != nil {
				sent <- err
				return
			}
		}
	}()
	g.until("a reset", func(f []byte) bool {
		return header.IPv4(f[header.EthernetMinimumSize:]).TransportProtocol() == header.TCPProtocolNumber
	})
	done := make(chan error, 1)
	go func() { done <- g.stack.Close() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the stack has not closed after 10 s")
	}
	if err := <-sent; !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
}
