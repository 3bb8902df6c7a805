package relay

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// acceptBatch bounds how many clients are accepted before others have their turn.
	acceptBatch = 16
	// acceptPause is how long nobody is accepted after accept(2) failed for want of
	// descriptors or memory. The clients stay in the backlog.
	acceptPause = 100 * time.Millisecond
	// fullPause is how long nobody is accepted at a full port, unless it is freed before.
	fullPause = time.Second
)

// pause is a listening socket from which a loop does not accept for a while.
type pause struct {
	v   *Serving
	end time.Time
}

// listen has the loop accept the clients of v. The kernel wakes one of the loops that
// wait, and not all (EPOLLEXCLUSIVE in epoll_ctl(2)). Any goroutine may call it.
func (l *loop) listen(v *Serving) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return ErrStopped
	}
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: listenerSlot - v.index}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.set.FD, unix.EPOLL_CTL_ADD, v.fd, &e))
}

// forget ends listen.
func (l *loop) forget(v *Serving) {
	_ = unix.EpollCtl(l.set.FD, unix.EPOLL_CTL_DEL, v.fd, nil) // ENOENT: it is paused
	l.paused = slices.DeleteFunc(l.paused, func(p pause) bool { return p.v == v })
}

// accept connects the clients that wait.
func (l *loop) accept(v *Serving) {
	var now time.Time
	for range acceptBatch {
		if v.port.Full() {
			l.pause(v, fullPause)
			return
		}
		size := uint32(unsafe.Sizeof(l.address))
		fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(v.fd), uintptr(unsafe.Pointer(&l.address)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
		case unix.EAGAIN:
			return
		case unix.ECONNABORTED, unix.EPROTO, unix.EINTR:
			continue // a connection that has gone already, see accept(2)
		default: // EMFILE, ENFILE, ENOBUFS, ENOMEM
			v.port.AcceptFailed(os.NewSyscallError("accept4", errno))
			l.pause(v, acceptPause)
			return
		}
		if now.IsZero() {
			now = time.Now()
		}
		p := &pair{
			loop: l, port: v.port, address: readAddress(&l.address), fd: [2]int{int(fd), -1}, slot: noSlot,
			deadline: now.Add(l.s.cfg.Connect),
		}
		p.admit()
	}
}

// pause has the loop accept nobody at v for a while.
func (l *loop) pause(v *Serving, d time.Duration) {
	_ = unix.EpollCtl(l.set.FD, unix.EPOLL_CTL_DEL, v.fd, nil)
	l.paused = append(l.paused, pause{v, time.Now().Add(d)})
}

// resume ends all pauses.
func (l *loop) resume() {
	for i := range l.paused {
		l.paused[i].end = time.Time{}
	}
}

// readAddress returns an IPv4 or IPv6 address as the kernel wrote it, without its zone.
func readAddress(a *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&a.Port))[:])
	if a.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(a)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), port)
}

// Prepare readies a fresh socket of the container's namespace for Take.
func Prepare(fd int) error {
	// A port that a connection in TIME_WAIT still has may be taken again.
	return errors.Join(
		os.NewSyscallError("fcntl F_SETFL", unix.SetNonblock(fd, true)), // a call that blocks would hold up a loop
		os.NewSyscallError("setsockopt SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)),
		prepare(fd))
}

// prepare sets what the sockets of a pair have, before they are connected or accepted.
func prepare(fd int) error {
	var errs []error
	for _, o := range []struct {
		name                 string
		level, option, value int
	}{
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{"SO_OOBINLINE", unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
		{"TCP_NOTSENT_LOWAT", unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes},
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveIdle},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveInterval},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.option, o.value); err != nil {
			errs = append(errs, os.NewSyscallError("setsockopt "+o.name, err))
		}
	}
	return errors.Join(errs...)
}
