package wire

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Bind binds a socket of a's family to a, with a port that the kernel chooses (bind(2)).
func Bind(fd int, a netip.Addr) error {
	if a.Is4() {
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: a.As4()})
	}
	return unix.Bind(fd, &unix.SockaddrInet6{Addr: a.As16()})
}
