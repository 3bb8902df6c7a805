package relay

import (
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CheckSocket says whether a descriptor that another process handed over is what
// it should be, a TCP socket of family unix.AF_INET or unix.AF_INET6: what comes
// from inside a container's namespaces is not believed unseen.
func CheckSocket(fd, family int) error {
	for _, want := range [...]struct {
		name       string
		opt, value int
	}{
		{"SO_DOMAIN", unix.SO_DOMAIN, family},
		{"SO_TYPE", unix.SO_TYPE, unix.SOCK_STREAM},
		{"SO_PROTOCOL", unix.SO_PROTOCOL, unix.IPPROTO_TCP},
	} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.opt)
		if err != nil {
			return fmt.Errorf("check socket: %w", os.NewSyscallError("getsockopt "+want.name, err))
		}
		if got != want.value {
			return fmt.Errorf("check socket: %s is %d, want %d: %w", want.name, got, want.value, unix.EPROTOTYPE)
		}
	}
	return nil
}

// Addresses returns where a TCP socket is bound: one address, or both unspecified ones
// for an IPv6 socket that serves IPv4 too (IPV6_V6ONLY in ipv6(7)).
func Addresses(fd int) ([]netip.AddrPort, error) {
	var a unix.RawSockaddrInet6
	size := uint32(unsafe.Sizeof(a))
	if _, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&a)), uintptr(unsafe.Pointer(&size))); errno != 0 {
		return nil, os.NewSyscallError("getsockname", errno)
	}
	if a.Family != unix.AF_INET && a.Family != unix.AF_INET6 {
		return nil, fmt.Errorf("address: family %d is no internet one: %w", a.Family, unix.EAFNOSUPPORT)
	}
	at := readAddress(&a)
	if at.Addr() != netip.IPv6Unspecified() {
		return []netip.AddrPort{at}, nil
	}
	only, err := unix.GetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt IPV6_V6ONLY", err)
	}
	if only != 0 {
		return []netip.AddrPort{at}, nil
	}
	return []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()), at}, nil
}

// Reset closes c with a RST, so that its peer does not take a cut stream for a whole one.
func Reset(c Socket) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { lingerNot(int(fd)) }) // fails only on a closed connection, as does Close
	}
	_ = c.Close()
}

// reset is Reset for a descriptor.
func reset(fd int) {
	lingerNot(fd)
	unix.Close(fd)
}

// lingerNot makes the close of a socket a reset, SO_LINGER in socket(7).
func lingerNot(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// acknowledge has the kernel acknowledge at once what was read (TCP_QUICKACK in tcp(7)). Who
// sent much may hold its end back until then (Nagle's algorithm, RFC 9293 section 3.7.4; web
// servers with tcp_nopush do), and where requests go the other way the kernel waits for one to
// acknowledge with, up to 40 ms (TCP_DELACK_MIN in include/net/tcp.h).
func acknowledge(fd int) {
	one := int32(1)
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one), 0)
}
