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
	// Sources are the guest's addresses. Frames from another are dropped.
	Sources []netip.Addr
	// Own are the addresses of the gateway and the services beside it.
	Own []netip.Addr
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
	if !g.source(netip.AddrFrom4([4]byte(b[12:16]))) {
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

// checkICMPv6 drops solicitations for addresses that are not ours (RFC 4861
// section 4.3: the target is at offset 8).
func (g *Guard) checkICMPv6(b []byte) reason {
	if len(b) < header.ICMPv6MinimumSize {
		return badLength
	}
	if header.ICMPv6(b).Type() != header.ICMPv6NeighborSolicit {
		return pass
	}
	if len(b) < 24 {
		return badLength
	}
	if !contains(g.Own, netip.AddrFrom16([16]byte(b[8:24]))) {
		return notOurs
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

func (g *Guard) source(a netip.Addr) bool { return contains(g.Sources, a) }

func contains(list []netip.Addr, a netip.Addr) bool {
	for _, b := range list {
		if a == b {
			return true
		}
	}
	return false
}
