package udp

import (
	"encoding/binary"
	"net/netip"

	"slipway/netstack/internal/wire"
)

// fragment is a piece of a UDP datagram of the guest's: RFC 791 section 3.2, RFC 8200 section 4.5.
// Slices alias the frame.
type fragment struct {
	of     datagramID
	ttl    uint8
	offset int    // of data in what IP carries, in bytes
	data   []byte // begins with the UDP header where offset is 0
	more   bool   // more follow, so len(data) is a multiple of 8
}

// datagramID is what tells the fragments of one datagram from those of others.
type datagramID struct {
	src, dst netip.Addr
	id       uint32
}

// parseFragment reads a frame: accepted, malformed, or notOurs, which a frame is that is no
// fragment, or one of another protocol, or that has IPv4 options or other IPv6 extension headers.
// The link checked the source address before.
func parseFragment(frame []byte) (fragment, verdict) {
	if len(frame) < wire.EthernetLen {
		return fragment{}, notOurs
	}
	ip := frame[wire.EthernetLen:]
	var f fragment
	most := 65535
	switch binary.BigEndian.Uint16(frame[12:]) {
	case wire.EtherIPv4:
		if len(ip) < wire.IPv4Len || ip[0] != 4<<4|wire.IPv4Len/4 || ip[9] != wire.ProtoUDP {
			return fragment{}, notOurs
		}
		where := binary.BigEndian.Uint16(ip[6:])
		f.offset, f.more = int(where&0x1fff)*8, where&wire.MoreFragments != 0
		if f.offset == 0 && !f.more {
			return fragment{}, notOurs
		}
		total := int(binary.BigEndian.Uint16(ip[2:]))
		if total < wire.IPv4Len || total > len(ip) || wire.Sum(ip[:wire.IPv4Len], 0) != 0xffff {
			return fragment{}, malformed
		}
		most -= wire.IPv4Len
		f.ttl, f.data = ip[8], ip[wire.IPv4Len:total]
		f.of = datagramID{
			src: netip.AddrFrom4([4]byte(ip[12:16])), dst: netip.AddrFrom4([4]byte(ip[16:20])),
			id: uint32(binary.BigEndian.Uint16(ip[4:])),
		}
	case wire.EtherIPv6:
		if len(ip) < wire.IPv6Len+wire.FragmentLen || ip[0]>>4 != 6 || ip[6] != wire.ProtoFragment {
			return fragment{}, notOurs
		}
		total := wire.IPv6Len + int(binary.BigEndian.Uint16(ip[4:]))
		head := ip[wire.IPv6Len:]
		if head[0] != wire.ProtoUDP {
			return fragment{}, notOurs
		}
		if total < wire.IPv6Len+wire.FragmentLen || total > len(ip) {
			return fragment{}, malformed
		}
		where := binary.BigEndian.Uint16(head[2:])
		f.offset, f.more = int(where&^7), where&1 != 0
		f.ttl, f.data = ip[7], ip[wire.IPv6Len+wire.FragmentLen:total]
		f.of = datagramID{
			src: netip.AddrFrom16([16]byte(ip[8:24])), dst: netip.AddrFrom16([16]byte(ip[24:40])),
			id: binary.BigEndian.Uint32(head[4:]),
		}
	default:
		return fragment{}, notOurs
	}
	switch n := len(f.data); {
	case n == 0, f.more && n%8 != 0, f.offset+n > most, f.offset == 0 && n < wire.UDPLen:
		return fragment{}, malformed
	}
	return f, accepted
}
