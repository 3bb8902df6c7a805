package udp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// sockaddr is struct sockaddr_in or sockaddr_in6 as the kernel has it, comparable
// and made once for each peer rather than for each datagram.
type sockaddr struct {
	raw [unix.SizeofSockaddrInet6]byte
	n   uint8
}

// sockaddrOf encodes a, which has no zone.
func sockaddrOf(a netip.AddrPort) sockaddr {
	var s sockaddr
	binary.BigEndian.PutUint16(s.raw[2:], a.Port())
	if a.Addr().Is4() {
		binary.NativeEndian.PutUint16(s.raw[0:], unix.AF_INET)
		b := a.Addr().As4()
		copy(s.raw[4:], b[:])
		s.n = unix.SizeofSockaddrInet4
		return s
	}
	binary.NativeEndian.PutUint16(s.raw[0:], unix.AF_INET6)
	b := a.Addr().As16()
	copy(s.raw[8:], b[:])
	s.n = unix.SizeofSockaddrInet6
	return s
}

// addrPort decodes s; the zero value for another family. A v4-mapped address is
// returned as the IPv4 address that it is, a scope is left out.
func (s *sockaddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(s.raw[2:])
	switch binary.NativeEndian.Uint16(s.raw[0:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.raw[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s.raw[8:24])).Unmap(), port)
	}
	return netip.AddrPort{}
}

// control is ancillary data that goes with a datagram: from which of our addresses
// the reply to a client leaves, or another TTL than usual.
type control struct {
	raw [40]byte // unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	n   uint8
}

// cmsgHeader is the size of struct cmsghdr on 64-bit machines, the only ones that
// Slipway is built for; data behind it and the next header are aligned to 8 bytes.
const cmsgHeader = unix.SizeofCmsghdr

func putCmsg(b []byte, level, kind int32, data int) []byte {
	binary.NativeEndian.PutUint64(b, uint64(cmsgHeader+data))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(kind))
	return b[cmsgHeader : cmsgHeader+data]
}

// source makes the control message by which a reply leaves from local: ip(7)
// IP_PKTINFO, ipv6(7) IPV6_PKTINFO. The interface is named only where the address
// needs it, so that routing stays free to choose.
func source(local netip.Addr, ifindex uint32) control {
	var c control
	if !local.IsValid() {
		return c
	}
	if local.Is4() {
		d := putCmsg(c.raw[:], unix.SOL_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		b := local.As4()
		copy(d[4:], b[:]) // ipi_spec_dst
		c.n = uint8(unix.CmsgSpace(unix.SizeofInet4Pktinfo))
		return c
	}
	d := putCmsg(c.raw[:], unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
	b := local.As16()
	copy(d, b[:])
	if local.IsLinkLocalUnicast() {
		binary.NativeEndian.PutUint32(d[16:], ifindex)
	}
	c.n = uint8(unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	return c
}

// usualTTL is what a guest's kernel sends with unless told otherwise
// (net.ipv4.ip_default_ttl). Such a datagram gets the host's own.
const usualTTL = 64

// hopLimit makes the control message for a datagram that came with ttl: SOL_IP and
// IP_TTL, or SOL_IPV6 and IPV6_HOPLIMIT.
func hopLimit(ttl uint8, level, kind int32) control {
	var c control
	binary.NativeEndian.PutUint32(putCmsg(c.raw[:], level, kind, 4), uint32(max(ttl, 2)-1))
	c.n = uint8(unix.CmsgSpace(4))
	return c
}
