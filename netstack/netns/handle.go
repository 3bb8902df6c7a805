package netns

import (
	"errors"
	"fmt"
	"reflect"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// netlinkTimeout bounds each request: the kernel answers a route request while it
// is being sent, so only a broken namespace ever waits.
const netlinkTimeout = 5 * time.Second

// Netlink returns a handle whose NETLINK_ROUTE socket lives in the namespace. The
// caller closes it. The other families that the library knows are not available.
func (t Target) Netlink() (*netlink.Handle, error) {
	// Blocking: the socket takes the place of one that the runtime's poller knew, and
	// is itself unknown to it, so a read that had to wait would never be woken.
	fds, err := t.run(exchange{op: makeSockets, n: 1, family: unix.AF_NETLINK, kind: unix.SOCK_RAW | unix.SOCK_CLOEXEC, proto: unix.NETLINK_ROUTE}, "")
	if err != nil {
		return nil, err
	}
	defer closeAll(fds)
	if err := checkSocket(fds[0], unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE); err != nil {
		return nil, &Error{Step: StepCheck, Err: err}
	}
	tv := unix.NsecToTimeval(netlinkTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, &Error{Step: StepHandle, Err: err}
	}
	h, err := adoptNetlink(fds[0])
	if err != nil {
		return nil, &Error{Step: StepHandle, Err: err}
	}
	return h, nil
}

// adoptNetlink makes a handle here and puts fd's socket in the place of the
// handle's own. The library has no constructor for a socket that exists, and its
// own way, setns in this process, needs privilege that an ordinary user lacks.
func adoptNetlink(fd int) (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	own, err := routeSocket(h)
	if err == nil {
		err = unix.Dup3(fd, own.GetFd(), unix.O_CLOEXEC)
	}
	if err == nil {
		// The library waits at its poller after the kernel's timeout; without a deadline
		// it would wait there for ever.
		err = h.SetSocketTimeout(netlinkTimeout)
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// routeSocket reaches the socket inside of a handle, the unexported field sockets
// of github.com/vishvananda/netlink v1.3.1.
func routeSocket(h *netlink.Handle) (*nl.NetlinkSocket, error) {
	f := reflect.ValueOf(h).Elem().FieldByName("sockets")
	if !f.IsValid() || f.Type() != reflect.TypeFor[map[int]*nl.SocketHandle]() {
		return nil, errors.New("the netlink library keeps its sockets in an unknown way")
	}
	sockets := *(*map[int]*nl.SocketHandle)(unsafe.Pointer(f.UnsafeAddr()))
	s := sockets[unix.NETLINK_ROUTE]
	if s == nil || s.Socket == nil {
		return nil, fmt.Errorf("the handle has no socket of family %d", unix.NETLINK_ROUTE)
	}
	return s.Socket, nil
}
