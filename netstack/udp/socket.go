package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"slipway/netstack/internal/wire"
)

// socketBuffer is asked for in each direction of a host socket, in bytes; the
// kernel gives what net.core.rmem_max and wmem_max allow. It holds a burst of 16
// full messages while the reader is busy with other sockets.
const socketBuffer = 1 << 20

// owner knows which flow a received message belongs to.
type owner interface {
	// accept says between whom the guest shall see the message, or refuses (and
	// counts) it. The message is valid only during the call.
	accept(m *message) (from, to netip.AddrPort, ok bool)
	// failed takes an ICMP error about what was sent by the socket.
	failed(e *sendError)
}

// socket is a descriptor on the host's side, registered with the poller.
type socket struct {
	owner owner
	id    int32 // the poller's

	overflowed uint32 // datagrams that its receive buffer had no room for, as last heard; the poller's

	mu sync.RWMutex // held for reading while fd is used, for writing to close it
	fd int          // -1 once closed
}

// open makes an unconnected socket for the family of to, bound to from where that is
// valid.
func open(to, from netip.Addr) (int, error) {
	family := unix.AF_INET6
	if to.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open UDP socket: %w", err)
	}
	if family == unix.AF_INET6 {
		// The address that policy passed is the one that is sent to, never an IPv4 address in disguise.
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1),
			unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1))
	} else {
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1)
	}
	if err == nil && from.IsValid() {
		err = os.NewSyscallError("bind to "+from.String(), wire.Bind(fd, from))
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set up UDP socket: %w", err)
	}
	tune(fd)
	return fd, nil
}

// tune asks for what is only faster, or tells more: it works without.
func tune(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) // Linux 5.0
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
}

// send sends one message: one datagram, or with a segment size a run of them (udp(7)
// UDP_SEGMENT). It never blocks.
func (s *socket) send(name *sockaddr, c *control, payload []byte, segment int) error {
	var ctl [64]byte // unix.CmsgSpace of a control and of UDP_SEGMENT's uint16
	n := copy(ctl[:], c.raw[:c.n])
	if segment > 0 {
		binary.NativeEndian.PutUint16(putCmsg(ctl[n:], unix.SOL_UDP, unix.UDP_SEGMENT, 2), uint16(segment))
		n += unix.CmsgSpace(2)
	}
	var iov unix.Iovec
	var msg unix.Msghdr
	if len(payload) > 0 {
		iov.Base = &payload[0]
		iov.SetLen(len(payload))
	}
	msg.Name, msg.Namelen = &name.raw[0], uint32(name.n)
	msg.Iov = &iov
	msg.SetIovlen(1)
	if n > 0 {
		msg.Control = &ctl[0]
		msg.SetControllen(n)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return errClosed
	}
	// A raw call: the socket does not block, so the scheduler need not know.
	_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
	if errno == 0 {
		return nil
	}
	return errno
}

var errClosed = errors.New("socket is closed")

// message is what was received: where from, on which of our addresses, and whether
// it is a run of datagrams. The poller uses its messages again.
type message struct {
	name    sockaddr
	src     netip.AddrPort
	local   netip.Addr // by IP_PKTINFO, where asked for
	ifindex uint32
	segment int // 0: one datagram
	n       int
	// overflowed is what the socket had dropped when the message came, 0 also when unknown: socket(7)
	// SO_RXQ_OVFL.
	overflowed uint32

	control  [256]byte
	controls int // bytes of control
	iov      unix.Iovec
}

// aim makes h receive m into b.
func (m *message) aim(h *unix.Msghdr, b []byte) {
	m.iov.Base = &b[0]
	m.iov.SetLen(len(b))
	*h = unix.Msghdr{Name: &m.name.raw[0], Namelen: uint32(len(m.name.raw)), Iov: &m.iov, Control: &m.control[0]}
	h.SetIovlen(1)
	h.SetControllen(len(m.control))
}

// took takes over what h says of the n bytes that have come.
func (m *message) took(h *unix.Msghdr, n int) {
	m.n = n
	m.name.n = uint8(h.Namelen)
	m.src = m.name.addrPort()
	m.controls = min(int(h.Controllen), len(m.control))
	m.local, m.ifindex, m.segment, m.overflowed = netip.Addr{}, 0, 0, 0
}

// receiveError reads one message of the error queue (ip(7) IP_RECVERR) into b. It returns EAGAIN when
// there is none.
func (s *socket) receiveError(m *message, b []byte) error {
	var h unix.Msghdr
	m.aim(&h, b)
	s.mu.RLock()
	if s.fd < 0 {
		s.mu.RUnlock()
		return errClosed
	}
	n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&h)), unix.MSG_ERRQUEUE)
	s.mu.RUnlock()
	if errno != 0 {
		return errno
	}
	m.took(&h, int(n))
	return nil
}

// each calls f with every control message of m.
func (m *message) each(f func(level, kind int32, data []byte)) {
	b := m.control[:m.controls]
	for len(b) >= cmsgHeader {
		n := binary.NativeEndian.Uint64(b)
		if n < cmsgHeader || n > uint64(len(b)) {
			return
		}
		f(int32(binary.NativeEndian.Uint32(b[8:])), int32(binary.NativeEndian.Uint32(b[12:])), b[cmsgHeader:n])
		b = b[min(len(b), int(n+7)&^7):]
	}
}

// readControl takes over what the control messages of a datagram say.
func (m *message) readControl() {
	m.each(func(level, kind int32, data []byte) {
		switch {
		case level == unix.SOL_UDP && kind == unix.UDP_GRO && len(data) >= 4:
			// A run of one is a datagram.
			if seg := int(int32(binary.NativeEndian.Uint32(data))); seg > 0 && seg < m.n {
				m.segment = seg
			}
		case level == unix.SOL_SOCKET && kind == unix.SO_RXQ_OVFL && len(data) >= 4:
			m.overflowed = binary.NativeEndian.Uint32(data)
		case level == unix.SOL_IP && kind == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// ipi_spec_dst is an address of ours also when the datagram was a broadcast.
			m.ifindex = binary.NativeEndian.Uint32(data)
			m.local = netip.AddrFrom4([4]byte(data[4:8]))
		case level == unix.SOL_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			m.local = netip.AddrFrom16([16]byte(data[:16]))
			m.ifindex = binary.NativeEndian.Uint32(data[16:])
		}
	})
}

// sendError is an ICMP error about a datagram that was sent.
type sendError struct {
	wire.ExtendedError
	to     netip.AddrPort // where the datagram was sent
	length int            // bytes of the payload that the error has of the datagram
}

// readError takes an error from what MSG_ERRQUEUE returned; false when it is not
// about an ICMP message.
func (m *message) readError(e *sendError) bool {
	found := false
	*e = sendError{to: m.src, length: m.n}
	m.each(func(level, kind int32, data []byte) {
		if x, ok := wire.ParseExtendedError(level, kind, data); ok {
			e.ExtendedError, found = x, true
		}
	})
	return found
}

// datagrams is how many datagrams the message holds.
func (m *message) datagrams() int {
	if m.segment == 0 {
		return 1
	}
	return (m.n + m.segment - 1) / m.segment
}
