// Package frametest builds the frames that tests send as a guest.
package frametest

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Addresses of the default network, and of the world (RFC 5737, RFC 3849).
var (
	Guest4 = netip.MustParseAddr("10.0.2.100")
	Guest6 = netip.MustParseAddr("fd00::64")
	Gate4  = netip.MustParseAddr("10.0.2.2")
	Gate6  = netip.MustParseAddr("fd00::2")
	DNS4   = netip.MustParseAddr("10.0.2.3")
	World4 = netip.MustParseAddr("192.0.2.1")
	World6 = netip.MustParseAddr("2001:db8::1")
)

// GuestMAC is the source of every frame.
const GuestMAC = "\x02\x00\x00\x00\x00\x64"

// Ethernet puts the guest's Ethernet header in front of an ARP or IP packet.
func Ethernet(proto tcpip.NetworkProtocolNumber, packet []byte) []byte {
	b := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(packet))
	header.Ethernet(b).Encode(&header.EthernetFields{
		SrcAddr: GuestMAC, DstAddr: "\x52\x55\x0a\x00\x02\x02", Type: proto,
	})
	return append(b, packet...)
}

// IP puts an IP header of src's family in front of a transport header and its
// payload.
func IP(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, transport []byte) []byte {
	s, d := tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(dst.AsSlice())
	if src.Is4() {
		b := make([]byte, header.IPv4MinimumSize)
		ip := header.IPv4(b)
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b) + len(transport)), TTL: 64, Protocol: uint8(proto), SrcAddr: s, DstAddr: d})
		ip.SetChecksum(^ip.CalculateChecksum())
		return append(b, transport...)
	}
	b := make([]byte, header.IPv6MinimumSize)
	header.IPv6(b).Encode(&header.IPv6Fields{PayloadLength: uint16(len(transport)), TransportProtocol: proto, HopLimit: 64, SrcAddr: s, DstAddr: d})
	return append(b, transport...)
}

// Frame is an Ethernet frame of the guest with an IP packet of src's family.
func Frame(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, transport []byte) []byte {
	if src.Is4() {
		return Ethernet(header.IPv4ProtocolNumber, IP(proto, src, dst, transport))
	}
	return Ethernet(header.IPv6ProtocolNumber, IP(proto, src, dst, transport))
}

// TCP is a frame with a TCP segment to port 80, whose checksum is right.
func TCP(src, dst netip.Addr, flags header.TCPFlags, payload string) []byte {
	b := make([]byte, header.TCPMinimumSize+len(payload))
	header.TCP(b).Encode(&header.TCPFields{SrcPort: 40000, DstPort: 80, SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 100})
	copy(b[header.TCPMinimumSize:], payload)
	header.TCP(b).SetChecksum(sum(header.TCPProtocolNumber, src, dst, b))
	return Frame(header.TCPProtocolNumber, src, dst, b)
}

// UDP is a datagram from port 40000, header included, whose checksum is right.
func UDP(src, dst netip.Addr, port uint16, payload string) []byte {
	return datagram(netip.AddrPortFrom(src, 40000), netip.AddrPortFrom(dst, port), payload)
}

// Datagram is a frame with a UDP datagram, whose checksum is right.
func Datagram(src, dst netip.AddrPort, payload string) []byte {
	return Frame(header.UDPProtocolNumber, src.Addr(), dst.Addr(), datagram(src, dst, payload))
}

func datagram(src, dst netip.AddrPort, payload string) []byte {
	b := make([]byte, header.UDPMinimumSize+len(payload))
	header.UDP(b).Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(len(b))})
	copy(b[header.UDPMinimumSize:], payload)
	header.UDP(b).SetChecksum(sum(header.UDPProtocolNumber, src.Addr(), dst.Addr(), b))
	return b
}

// SolicitRouter is a frame with a router solicitation (RFC 4861 section 4.1).
func SolicitRouter(src netip.Addr) []byte {
	routers := netip.MustParseAddr("ff02::2")
	b := make([]byte, 8)
	header.ICMPv6(b).SetType(header.ICMPv6RouterSolicit)
	header.ICMPv6(b).SetChecksum(sum(header.ICMPv6ProtocolNumber, src, routers, b))
	f := Frame(header.ICMPv6ProtocolNumber, src, routers, b)
	header.IPv6(f[header.EthernetMinimumSize:]).SetHopLimit(255)
	return f
}

// Echo is a frame with an ICMP or ICMPv6 echo request.
func Echo(src, dst netip.Addr) []byte {
	b := make([]byte, header.ICMPv4MinimumSize+8)
	b[4], b[7] = 0x12, 1
	if src.Is4() {
		header.ICMPv4(b).SetType(header.ICMPv4Echo)
		header.ICMPv4(b).SetChecksum(^checksum.Checksum(b, 0))
		return Frame(header.ICMPv4ProtocolNumber, src, dst, b)
	}
	header.ICMPv6(b).SetType(header.ICMPv6EchoRequest)
	header.ICMPv6(b).SetChecksum(sum(header.ICMPv6ProtocolNumber, src, dst, b))
	return Frame(header.ICMPv6ProtocolNumber, src, dst, b)
}

// ARP is a frame with an ARP packet from the guest about target.
func ARP(op header.ARPOp, target netip.Addr) []byte {
	b := make([]byte, header.ARPSize)
	arp := header.ARP(b)
	arp.SetIPv4OverEthernet()
	arp.SetOp(op)
	copy(arp.HardwareAddressSender(), GuestMAC)
	copy(arp.ProtocolAddressSender(), Guest4.AsSlice())
	copy(arp.ProtocolAddressTarget(), target.AsSlice())
	return Ethernet(header.ARPProtocolNumber, b)
}

// Solicit is a frame with a neighbour solicitation (RFC 4861 section 4.3).
func Solicit(src, target netip.Addr) []byte {
	b := make([]byte, header.ICMPv6NeighborSolicitMinimumSize)
	header.ICMPv6(b).SetType(header.ICMPv6NeighborSolicit)
	copy(b[8:], target.AsSlice())
	header.ICMPv6(b).SetChecksum(sum(header.ICMPv6ProtocolNumber, src, target, b))
	return Frame(header.ICMPv6ProtocolNumber, src, target, b)
}

func sum(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, b []byte) uint16 {
	pseudo := header.PseudoHeaderChecksum(proto, tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(dst.AsSlice()), uint16(len(b)))
	return ^checksum.Checksum(b, pseudo)
}
