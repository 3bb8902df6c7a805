package udp

import (
	"encoding/binary"
	"net/netip"

	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

// maxSegments is the largest number of datagrams in one frame or message:
// UDP_MAX_SEGMENTS in include/linux/udp.h, raised to 128 in Linux 6.9. What is sent
// stays within the older limit, what the guest's kernel sends may reach the newer.
const (
	maxSegments     = 64
	maxSegmentsFrom = 128
)

// datagram is a UDP frame of the guest: one datagram, or a run of them of segment
// bytes each of which only the last may be shorter. Slices alias the frame.
type datagram struct {
	src, dst netip.AddrPort
	payload  []byte
	segment  int // 0 unless a run
	ttl      uint8
	ip       []byte // the IP packet, for an ICMP error about it
}

// count is the number of datagrams on the wire.
func (d *datagram) count() int {
	if d.segment == 0 {
		return 1
	}
	return (len(d.payload) + d.segment - 1) / d.segment
}

type verdict int

const (
	notOurs   verdict = iota // the full stack's
	accepted                 // a datagram
	malformed                // lengths, ports or segmentation that cannot be
	corrupt                  // wrong checksum
	multicast                // broadcast and multicast
)

// parse reads a frame. The link checked the source address before.
func parse(h tap.Header, frame []byte) (datagram, verdict) {
	p, v := wire.Parse(frame)
	if v == wire.Other || p.Proto != wire.ProtoUDP {
		return datagram{}, notOurs
	}
	if v == wire.Malformed || len(p.Payload) < wire.UDPLen {
		return datagram{}, malformed
	}
	u := p.Payload
	sport, dport := binary.BigEndian.Uint16(u), binary.BigEndian.Uint16(u[2:])
	n := int(binary.BigEndian.Uint16(u[4:]))
	sum := binary.BigEndian.Uint16(u[6:])
	// A length below that of IP leaves padding behind the datagram, as for Linux' __udp4_lib_rcv.
	if n < wire.UDPLen || n > len(u) || sport == 0 || dport == 0 {
		return datagram{}, malformed
	}
	d := datagram{
		src:     netip.AddrPortFrom(p.Src, sport),
		dst:     netip.AddrPortFrom(p.Dst, dport),
		payload: u[wire.UDPLen:n],
		ttl:     p.TTL,
		ip:      p.IP,
	}
	switch h.GSOType &^ tap.GSOECN {
	case tap.GSONone:
	case tap.GSOUDPL4:
		// A run has no finished checksum, so one that nobody vouches for cannot be checked.
		if !h.Trusted() || h.GSOSize == 0 || len(d.payload) > maxSegmentsFrom*int(h.GSOSize) {
			return datagram{}, malformed
		}
		if len(d.payload) > int(h.GSOSize) {
			d.segment = int(h.GSOSize)
		}
	default:
		return datagram{}, malformed
	}
	if p.Dst.IsMulticast() || p.Dst == broadcast || frame[0]&1 != 0 {
		return datagram{}, multicast
	}
	if !h.Trusted() && !checksumOK(p, u[:n], sum) {
		return datagram{}, corrupt
	}
	return d, accepted
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// checksumOK verifies the checksum of a UDP header and its payload. None at all is
// allowed for IPv4 (RFC 768), not for IPv6 (RFC 8200 section 8.1).
func checksumOK(p wire.Packet, u []byte, sum uint16) bool {
	if sum == 0 {
		return p.Src.Is4()
	}
	return wire.Sum(u, wire.PseudoSum(p.Src, p.Dst, wire.ProtoUDP, len(u))) == 0xffff
}
