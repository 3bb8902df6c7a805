package link

import (
	"encoding/binary"
	"net/netip"

	"slipway/netstack/tap"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Guard says which frames of the guest are looked at: those from its own
// addresses. ARP and neighbour discovery are answered for the addresses of the
// network's own services only, because gVisor, which speaks for every address in
// the world here, would answer for all of them.
type Guard struct {
	// Sources are the networks that the guest may send from; one that was given its
	// address has a network of that alone. Frames from elsewhere are dropped, and so are
	// those from an address of Own.
	Sources []netip.Prefix
	// Own are the addresses of the gateway and the services beside it. When none of them
	// is an IPv6 address there is no IPv6 on the link.
	Own []netip.Addr
	// DHCP says that there is a DHCP server, which hears clients that have no address yet
	// (RFC 2131 section 4.1).
	DHCP bool
	// Router says that there is an IPv6 router, and a DHCPv6 server beside it, which hear
	// solicitations (RFC 4861 section 4.1) and information requests from link-local
	// addresses (RFC 8415 section 18.2.6).
	Router bool
}

// check looks at a frame of n bytes, of which frame holds all or the first
// 64 KiB. Lengths that lie and checksums that nobody vouches for end here.
func (g *Guard) check(h tap.Header, frame []byte, n int) reason {
	if len(frame) < header.EthernetMinimumSize {
		return badLength
	}
	if frame[6]&1 != 0 { // source address with the group bit (IEEE 802.3)
		return badMAC
	}
	b := frame[header.EthernetMinimumSize:]
	n -= header.EthernetMinimumSize
	switch binary.BigEndian.Uint16(frame[12:]) {
	case uint16(header.IPv4ProtocolNumber):
		return g.checkIPv4(h, b, n)
	case uint16(header.IPv6ProtocolNumber):
		return g.checkIPv6(h, b, n)
	case uint16(header.ARPProtocolNumber):
		return g.checkARP(b)
	}
	return notOurs
}

func (g *Guard) checkIPv4(h tap.Header, b []byte, n int) reason {
	if len(b) < header.IPv4MinimumSize {
		return badLength
	}
	ip := header.IPv4(b)
	hlen, total := int(ip.HeaderLength()), int(ip.TotalLength())
	if b[0]>>4 != 4 || hlen < header.IPv4MinimumSize || hlen > len(b) || total < hlen || total > n {
		return badLength
	}
	if !g.source(netip.AddrFrom4([4]byte(b[12:16]))) && !g.seeksLease(ip, b[:min(total, len(b))]) {
		return badSource
	}
	if h.Trusted() {
		return pass
	}
	if !ip.IsChecksumValid() {
		return badChecksum
	}
	if ip.More() || ip.FragmentOffset() != 0 {
		return pass // the sum is known only when all of it is there
	}
	if ip.TransportProtocol() != header.TCPProtocolNumber {
		return pass // UDP is verified by its own path, ICMP by gVisor
	}
	return checkTCP(ip.SourceAddress(), ip.DestinationAddress(), b, hlen, total)
}

func (g *Guard) checkIPv6(h tap.Header, b []byte, n int) reason {
	if len(b) < header.IPv6MinimumSize {
		return badLength
	}
	ip := header.IPv6(b)
	total := header.IPv6MinimumSize + int(ip.PayloadLength())
	if b[0]>>4 != 6 || total > n {
		return badLength
	}
	if !g.has6() {
		return notOurs
	}
	src := netip.AddrFrom16([16]byte(b[8:24]))
	switch proto := tcpip.TransportProtocolNumber(ip.NextHeader()); {
	case proto == header.ICMPv6ProtocolNumber:
		// Neighbour discovery uses link-local and unspecified sources.
		if !src.IsLinkLocalUnicast() && !src.IsUnspecified() && !g.source(src) {
			return badSource
		}
		return g.checkICMPv6(b[header.IPv6MinimumSize:min(total, len(b))])
	case proto == hopByHop && (src.IsLinkLocalUnicast() || src.IsUnspecified()):
		return notOurs // the kernel's multicast listener reports (RFC 3810 section 5)
	case proto == header.UDPProtocolNumber && src.IsLinkLocalUnicast() && g.seeksInformation(b[:min(total, len(b))]):
		return pass
	case !g.source(src):
		return badSource
	case proto == header.TCPProtocolNumber && !h.Trusted():
		return checkTCP(ip.SourceAddress(), ip.DestinationAddress(), b, header.IPv6MinimumSize, total)
	}
	return pass
}

// hopByHop is the next header of an IPv6 packet with hop-by-hop options (RFC 8200
// section 4.3).
const hopByHop tcpip.TransportProtocolNumber = 0

// Ports of DHCP (RFC 2131 section 4.1) and DHCPv6 (RFC 8415 section 7.2).
const (
	dhcpServer, dhcpClient   = 67, 68
	dhcp6Server, dhcp6Client = 547, 546
)

// dhcp6Servers is All_DHCP_Relay_Agents_and_Servers (RFC 8415 section 7.1).
var dhcp6Servers = netip.MustParseAddr("ff02::1:2")

// seeksLease reports whether b, a packet with the IPv4 header ip, is what a DHCP client
// without an address sends.
func (g *Guard) seeksLease(ip header.IPv4, b []byte) bool {
	return g.DHCP && ip.TransportProtocol() == header.UDPProtocolNumber &&
		ip.SourceAddress() == header.IPv4Any && ip.DestinationAddress() == header.IPv4Broadcast &&
		!ip.More() && ip.FragmentOffset() == 0 &&
		hasPorts(b[min(int(ip.HeaderLength()), len(b)):], dhcpClient, dhcpServer)
}

// seeksInformation reports whether b, an IPv6 packet with a UDP datagram, is for the
// DHCPv6 servers of the link.
func (g *Guard) seeksInformation(b []byte) bool {
	return g.Router && netip.AddrFrom16([16]byte(b[24:40])) == dhcp6Servers &&
		hasPorts(b[header.IPv6MinimumSize:], dhcp6Client, dhcp6Server)
}

// hasPorts looks at a UDP header.
func hasPorts(b []byte, src, dst uint16) bool {
	return len(b) >= header.UDPMinimumSize && binary.BigEndian.Uint16(b) == src && binary.BigEndian.Uint16(b[2:]) == dst
}

// checkICMPv6 drops solicitations for addresses that are not ours (RFC 4861
// section 4.3: the target is at offset 8), and those for a router where there is none.
func (g *Guard) checkICMPv6(b []byte) reason {
	if len(b) < header.ICMPv6MinimumSize {
		return badLength
	}
	switch header.ICMPv6(b).Type() {
	case header.ICMPv6RouterSolicit:
		if !g.Router {
			return notOurs
		}
	case header.ICMPv6NeighborSolicit:
		if len(b) < 24 {
			return badLength
		}
		if !contains(g.Own, netip.AddrFrom16([16]byte(b[8:24]))) {
			return notOurs
		}
	}
	return pass
}

// checkARP passes replies, and requests for our own addresses (RFC 826).
func (g *Guard) checkARP(b []byte) reason {
	arp := header.ARP(b)
	if !arp.IsValid() {
		return badLength
	}
	if arp.Op() == header.ARPRequest && !contains(g.Own, netip.AddrFrom4([4]byte(arp.ProtocolAddressTarget()))) {
		return notOurs
	}
	return pass
}

// checkTCP verifies a whole TCP segment in software. A frame beyond the buffer is
// a segment of 64 KiB that only the kernel's offload makes, and is then trusted.
func checkTCP(src, dst tcpip.Address, b []byte, hlen, total int) reason {
	if total > len(b) || total-hlen < header.TCPMinimumSize {
		return badLength
	}
	segment := b[hlen:total]
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(segment)))
	if checksum.Checksum(segment, sum) != 0xffff {
		return badChecksum
	}
	return pass
}

func (g *Guard) source(a netip.Addr) bool {
	for _, p := range g.Sources {
		if p.Contains(a) {
			return !contains(g.Own, a)
		}
	}
	return false
}

func (g *Guard) has6() bool {
	for _, a := range g.Own {
		if a.Is6() {
			return true
		}
	}
	return false
}

// sender is the address that a frame which the guard has passed is from; none where that
// tells nothing about who has the address.
func (g *Guard) sender(frame []byte) (netip.Addr, bool) {
	b := frame[header.EthernetMinimumSize:]
	var a netip.Addr
	switch binary.BigEndian.Uint16(frame[12:]) {
	case uint16(header.IPv4ProtocolNumber):
		a = netip.AddrFrom4([4]byte(b[12:16]))
	case uint16(header.IPv6ProtocolNumber):
		a = netip.AddrFrom16([16]byte(b[8:24]))
		if a.IsLinkLocalUnicast() {
			return a, !contains(g.Own, a)
		}
	case uint16(header.ARPProtocolNumber):
		a = netip.AddrFrom4([4]byte(header.ARP(b).ProtocolAddressSender()))
		return a, g.source(a) // which the guard has not looked at
	}
	return a, a.IsValid() && !a.IsUnspecified()
}

func contains(list []netip.Addr, a netip.Addr) bool {
	for _, b := range list {
		if a == b {
			return true
		}
	}
	return false
}
