package link

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"slipway/netstack/tap"
)

var (
	guest4 = netip.MustParseAddr("10.0.2.100")
	guest6 = netip.MustParseAddr("fd00::64")
	gate4  = netip.MustParseAddr("10.0.2.2")
	gate6  = netip.MustParseAddr("fd00::2")
	world4 = netip.MustParseAddr("192.0.2.1")
	world6 = netip.MustParseAddr("2001:db8::1")
)

func testGuard() Guard {
	return Guard{Sources: []netip.Addr{guest4, guest6}, Own: []netip.Addr{gate4, gate6}}
}

func ethernet(proto tcpip.NetworkProtocolNumber, payload []byte) []byte {
	b := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(payload))
	header.Ethernet(b).Encode(&header.EthernetFields{
		SrcAddr: "\x02\x00\x00\x00\x00\x64", DstAddr: "\x52\x55\x0a\x00\x02\x02", Type: proto,
	})
	return append(b, payload...)
}

// segment is a TCP segment with a right checksum inside its IP packet.
func segment(src, dst netip.Addr, payload string) []byte {
	s, d := tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(dst.AsSlice())
	tcp := make([]byte, header.TCPMinimumSize+len(payload))
	header.TCP(tcp).Encode(&header.TCPFields{SrcPort: 40000, DstPort: 80, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck, WindowSize: 100})
	copy(tcp[header.TCPMinimumSize:], payload)
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, s, d, uint16(len(tcp)))
	header.TCP(tcp).SetChecksum(^checksum.Checksum(tcp, sum))
	if src.Is4() {
		return append(ipv4Header(s, d, header.TCPProtocolNumber, len(tcp)), tcp...)
	}
	return append(ipv6Header(s, d, header.TCPProtocolNumber, len(tcp)), tcp...)
}

func ipv4Header(s, d tcpip.Address, proto tcpip.TransportProtocolNumber, n int) []byte {
	b := make([]byte, header.IPv4MinimumSize)
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b) + n), TTL: 64, Protocol: uint8(proto), SrcAddr: s, DstAddr: d})
	ip.SetChecksum(^ip.CalculateChecksum())
	return b
}

func ipv6Header(s, d tcpip.Address, proto tcpip.TransportProtocolNumber, n int) []byte {
	b := make([]byte, header.IPv6MinimumSize)
	header.IPv6(b).Encode(&header.IPv6Fields{PayloadLength: uint16(n), TransportProtocol: proto, HopLimit: 64, SrcAddr: s, DstAddr: d})
	return b
}

func arpFor(op header.ARPOp, target netip.Addr) []byte {
	b := make([]byte, header.ARPSize)
	arp := header.ARP(b)
	arp.SetIPv4OverEthernet()
	arp.SetOp(op)
	copy(arp.ProtocolAddressSender(), guest4.AsSlice())
	copy(arp.ProtocolAddressTarget(), target.AsSlice())
	return b
}

func solicit(src, target netip.Addr) []byte {
	b := make([]byte, header.ICMPv6NeighborSolicitMinimumSize)
	header.ICMPv6(b).SetType(header.ICMPv6NeighborSolicit)
	copy(b[8:], target.AsSlice())
	return append(ipv6Header(tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(target.AsSlice()), header.ICMPv6ProtocolNumber, len(b)), b...)
}

func change(b []byte, f func([]byte)) []byte {
	f(b)
	return b
}

func TestGuard(t *testing.T) {
	trusted := tap.Header{Flags: tap.FlagNeedsCsum}
	v4, v6, arp := header.IPv4ProtocolNumber, header.IPv6ProtocolNumber, header.ARPProtocolNumber
	linkLocal, unspecified := netip.MustParseAddr("fe80::1"), netip.IPv6Unspecified()
	tests := map[string]struct {
		h     tap.Header
		frame []byte
		want  reason
	}{
		"tcp":                             {frame: ethernet(v4, segment(guest4, world4, "x")), want: pass},
		"tcp over IPv6":                   {frame: ethernet(v6, segment(guest6, world6, "xy")), want: pass},
		"no frame":                        {frame: nil, want: badLength},
		"half an Ethernet header":         {frame: make([]byte, 13), want: badLength},
		"group source address":            {frame: change(ethernet(v4, segment(guest4, world4, "")), func(b []byte) { b[6] = 1 }), want: badMAC},
		"other EtherType":                 {frame: ethernet(0x88cc, make([]byte, 50)), want: notOurs},
		"IPv4 cut":                        {frame: ethernet(v4, segment(guest4, world4, ""))[:30], want: badLength},
		"IPv4 version 5":                  {frame: change(ethernet(v4, segment(guest4, world4, "")), func(b []byte) { b[14] = 0x55 }), want: badLength},
		"IPv4 header of 4 bytes":          {frame: change(ethernet(v4, segment(guest4, world4, "")), func(b []byte) { b[14] = 0x41 }), want: badLength},
		"IPv4 header beyond the frame":    {frame: change(ethernet(v4, segment(guest4, world4, "")), func(b []byte) { b[14] = 0x4f }), want: badLength},
		"IPv4 total length beyond frame":  {frame: change(ethernet(v4, segment(guest4, world4, "")), func(b []byte) { binary.BigEndian.PutUint16(b[16:], 1500) }), want: badLength},
		"IPv4 total length below header":  {frame: change(ethernet(v4, segment(guest4, world4, "")), func(b []byte) { binary.BigEndian.PutUint16(b[16:], 10) }), want: badLength},
		"IPv4 foreign source":             {frame: ethernet(v4, segment(world4, gate4, "")), want: badSource},
		"IPv4 the gateway's source":       {frame: ethernet(v4, segment(gate4, world4, "")), want: badSource},
		"IPv4 header checksum":            {frame: change(ethernet(v4, segment(guest4, world4, "")), func(b []byte) { b[24]++ }), want: badChecksum},
		"TCP checksum":                    {frame: change(ethernet(v4, segment(guest4, world4, "x")), func(b []byte) { b[len(b)-1]++ }), want: badChecksum},
		"TCP checksum left to us":         {h: trusted, frame: change(ethernet(v4, segment(guest4, world4, "x")), func(b []byte) { b[len(b)-1]++ }), want: pass},
		"TCP header cut":                  {frame: ethernet(v4, append(ipv4Header(tcpip.AddrFrom4(guest4.As4()), tcpip.AddrFrom4(world4.As4()), header.TCPProtocolNumber, 10), make([]byte, 10)...)), want: badLength},
		"fragment of TCP":                 {frame: change(ethernet(v4, segment(guest4, world4, "x")), func(b []byte) { b[len(b)-1]++; fragment(b) }), want: pass},
		"IPv6 cut":                        {frame: ethernet(v6, segment(guest6, world6, ""))[:50], want: badLength},
		"IPv6 version 4":                  {frame: change(ethernet(v6, segment(guest6, world6, "")), func(b []byte) { b[14] = 0x40 }), want: badLength},
		"IPv6 payload beyond the frame":   {frame: change(ethernet(v6, segment(guest6, world6, "")), func(b []byte) { b[18] = 9 }), want: badLength},
		"IPv6 foreign source":             {frame: ethernet(v6, segment(world6, gate6, "")), want: badSource},
		"TCP over IPv6 from link-local":   {frame: ethernet(v6, segment(linkLocal, world6, "")), want: badSource},
		"TCP checksum over IPv6":          {frame: change(ethernet(v6, segment(guest6, world6, "x")), func(b []byte) { b[len(b)-1]++ }), want: badChecksum},
		"ARP for the gateway":             {frame: ethernet(arp, arpFor(header.ARPRequest, gate4)), want: pass},
		"ARP for another":                 {frame: ethernet(arp, arpFor(header.ARPRequest, guest4)), want: notOurs},
		"ARP reply":                       {frame: ethernet(arp, arpFor(header.ARPReply, guest4)), want: pass},
		"ARP cut":                         {frame: ethernet(arp, arpFor(header.ARPRequest, gate4)[:20]), want: badLength},
		"solicitation for the gateway":    {frame: ethernet(v6, solicit(guest6, gate6)), want: pass},
		"solicitation from link-local":    {frame: ethernet(v6, solicit(linkLocal, gate6)), want: pass},
		"duplicate address detection":     {frame: ethernet(v6, solicit(unspecified, guest6)), want: notOurs},
		"solicitation from a foreigner":   {frame: ethernet(v6, solicit(world6, gate6)), want: badSource},
		"ICMPv6 of 4 bytes":               {frame: ethernet(v6, append(ipv6Header(tcpip.AddrFrom16(guest6.As16()), tcpip.AddrFrom16(gate6.As16()), header.ICMPv6ProtocolNumber, 4), 135, 0, 0, 0)), want: badLength},
		"solicitation without its target": {frame: ethernet(v6, append(ipv6Header(tcpip.AddrFrom16(guest6.As16()), tcpip.AddrFrom16(gate6.As16()), header.ICMPv6ProtocolNumber, 8), 135, 0, 0, 0, 0, 0, 0, 0)), want: badLength},
	}
	g := testGuard()
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := g.check(tt.h, tt.frame, len(tt.frame)); got != tt.want {
				t.Errorf("got %q, want %q", reasonNames[got], reasonNames[tt.want])
			}
		})
	}
}

// fragment sets the more-fragments flag and mends the header checksum.
func fragment(frame []byte) {
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	ip.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
}

func TestGuardDoesNotAllocate(t *testing.T) {
	g := testGuard()
	frame := ethernet(header.IPv4ProtocolNumber, segment(guest4, world4, "payload"))
	if n := testing.AllocsPerRun(100, func() { g.check(tap.Header{}, frame, len(frame)) }); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}
