package relay

import (
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// A reset is told once, by the kernel (sk_err) and by gVisor (hardError): when the
// direction that writes to a side is told, the one that reads from it only sees an end. It
// must not be passed on as a FIN, which would make a cut stream a whole one.

// tcpClose is TCP_CLOSE in include/net/tcp_states.h.
const tcpClose = 7

// resetUnseen tells whether the end of what a socket receives is that of a reset. After a
// FIN of the peer a socket is in CLOSE_WAIT, until the own FIN, which is noted in finSent
// before it is sent.
func resetUnseen(c syscall.RawConn, finSent *atomic.Bool) bool {
	closed := false
	err := c.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State == tcpClose
	})
	return err == nil && closed && !finSent.Load()
}

// endpointReset is resetUnseen for the guest's side.
func endpointReset(ep tcpip.Endpoint) bool {
	return tcp.EndpointState(ep.State()) == tcp.StateError
}

// guestReset reports whether the guest has reset the connection. A reset in CLOSE_WAIT
// leaves the endpoint closed and not in error; so does an orderly end, after the host's FIN.
func guestReset(f *flow) bool {
	state := tcp.EndpointState(f.ep.State())
	return state == tcp.StateError || state == tcp.StateClose && !f.finSent.Load()
}
