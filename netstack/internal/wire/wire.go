// Package wire reads and writes the Ethernet and IP headers of the paths that do
// not go through gVisor: UDP, echo, and the ICMP errors about both.
//
// It parses only what those paths take (no IPv4 options, no fragments, no IPv6
// extension headers) and says so of everything else, which the full stack then
// gets. Nothing here allocates or keeps a buffer it is given.
package wire

import (
	"encoding/binary"
	"net/netip"
)

// Lengths of headers in bytes.
const (
	EthernetLen = 14
	IPv4Len     = 20 // without options
	IPv6Len     = 40
	FragmentLen = 8 // IPv6's extension header
	UDPLen      = 8
	ICMPLen     = 8
)

// EtherTypes, https://www.iana.org/assignments/ieee-802-numbers.
const (
	EtherIPv4 = 0x0800
	EtherIPv6 = 0x86dd
)

// Protocol numbers, https://www.iana.org/assignments/protocol-numbers.
const (
	ProtoICMP     = 1
	ProtoUDP      = 17
	ProtoFragment = 44
	ProtoICMPv6   = 58
)

// Verdict is what Parse thinks of a frame.
type Verdict int

// What a frame can be.
const (
	Other     Verdict = iota // not for the short paths; nothing is known to be wrong with it
	OK                       // one whole IP packet
	Malformed                // lengths that cannot be, or a wrong IPv4 header checksum; Proto is set
)

// Packet is one IP packet inside a frame. Its slices alias the frame.
type Packet struct {
	Src, Dst netip.Addr
	Proto    uint8 // IPv6: the next header, which may be an extension header's number
	TTL      uint8 // IPv6: the hop limit
	IP       []byte
	Payload  []byte // IP behind its header
}

// Parse reads the headers of an Ethernet frame. Bytes behind the length that IP
// claims are padding and left out.
func Parse(frame []byte) (Packet, Verdict) {
	if len(frame) < EthernetLen {
		return Packet{}, Other
	}
	ip := frame[EthernetLen:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case EtherIPv4:
		return parse4(ip)
	case EtherIPv6:
		return parse6(ip)
	}
	return Packet{}, Other
}

func parse4(ip []byte) (Packet, Verdict) {
	if len(ip) < IPv4Len || ip[0] != 4<<4|IPv4Len/4 {
		return Packet{}, Other
	}
	if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 { // more fragments, or an offset
		return Packet{}, Other
	}
	p := Packet{
		Src:   netip.AddrFrom4([4]byte(ip[12:16])),
		Dst:   netip.AddrFrom4([4]byte(ip[16:20])),
		Proto: ip[9],
		TTL:   ip[8],
	}
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if total < IPv4Len || total > len(ip) || Sum(ip[:IPv4Len], 0) != 0xffff {
		return p, Malformed
	}
	p.IP = ip[:total]
	p.Payload = ip[IPv4Len:total]
	return p, OK
}

func parse6(ip []byte) (Packet, Verdict) {
	if len(ip) < IPv6Len || ip[0]>>4 != 6 {
		return Packet{}, Other
	}
	p := Packet{
		Src:   netip.AddrFrom16([16]byte(ip[8:24])),
		Dst:   netip.AddrFrom16([16]byte(ip[24:40])),
		Proto: ip[6],
		TTL:   ip[7],
	}
	total := IPv6Len + int(binary.BigEndian.Uint16(ip[4:]))
	if total > len(ip) {
		return p, Malformed
	}
	p.IP = ip[:total]
	p.Payload = ip[IPv6Len:total]
	return p, OK
}

// PutEthernet writes an Ethernet header.
func PutEthernet(b []byte, dst, src [6]byte, etherType uint16) {
	_ = b[EthernetLen-1]
	copy(b, dst[:])
	copy(b[6:], src[:])
	binary.BigEndian.PutUint16(b[12:], etherType)
}

// MoreFragments is a flag of IPv4's fragment field.
const MoreFragments = 0x2000

// PutIPv4 writes an IPv4 header without options. total counts the header; frag is
// the flags and the offset in units of 8 bytes.
func PutIPv4(b []byte, src, dst netip.Addr, proto, ttl uint8, total int, id, frag uint16) {
	_ = b[IPv4Len-1]
	b[0], b[1] = 4<<4|IPv4Len/4, 0
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], frag)
	b[8], b[9], b[10], b[11] = ttl, proto, 0, 0
	s, d := src.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint16(b[10:], ^Sum(b[:IPv4Len], 0))
}

// PutIPv6 writes an IPv6 header. length counts what follows it.
func PutIPv6(b []byte, src, dst netip.Addr, next, hop uint8, length int) {
	_ = b[IPv6Len-1]
	b[0], b[1], b[2], b[3] = 6<<4, 0, 0, 0
	binary.BigEndian.PutUint16(b[4:], uint16(length))
	b[6], b[7] = next, hop
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
}

// PutUDP writes a UDP header with the given checksum. length counts the header.
func PutUDP(b []byte, src, dst uint16, length int, sum uint16) {
	_ = b[UDPLen-1]
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	binary.BigEndian.PutUint16(b[4:], uint16(length))
	binary.BigEndian.PutUint16(b[6:], sum)
}
