package wire

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ExtendedError is an ICMP error about what a host socket sent, from the socket's
// error queue: struct sock_extended_err in include/uapi/linux/errqueue.h, ip(7) IP_RECVERR.
type ExtendedError struct {
	V6         bool // ICMPv6
	Type, Code uint8
	Info       uint32     // the MTU, where the error tells one
	Offender   netip.Addr // who sent it; the zero Addr when unknown
}

// Origins of an extended error.
const (
	originICMP  = 2
	originICMP6 = 3
)

// ParseExtendedError reads a control message of the error queue; false when it is
// something else, or no ICMP error.
func ParseExtendedError(level, kind int32, data []byte) (ExtendedError, bool) {
	var e ExtendedError
	switch {
	case len(data) < 16:
		return e, false
	case level == unix.SOL_IP && kind == unix.IP_RECVERR && data[4] == originICMP:
	case level == unix.SOL_IPV6 && kind == unix.IPV6_RECVERR && data[4] == originICMP6:
		e.V6 = true
	default:
		return e, false
	}
	e.Type, e.Code = data[5], data[6]
	e.Info = binary.NativeEndian.Uint32(data[8:])
	// SO_EE_OFFENDER: a socket address behind the structure.
	switch from := data[16:]; {
	case len(from) >= 8 && binary.NativeEndian.Uint16(from) == unix.AF_INET:
		e.Offender = netip.AddrFrom4([4]byte(from[4:8]))
	case len(from) >= 24 && binary.NativeEndian.Uint16(from) == unix.AF_INET6:
		e.Offender = netip.AddrFrom16([16]byte(from[8:24])).Unmap()
	}
	return e, true
}
