// Package epoll makes an epoll(7) instance that other goroutines can wake.
package epoll

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Set is such an instance. Its user adds descriptors to FD and waits for them, in one
// goroutine; Wake may be called by any, until Close.
type Set struct {
	FD   int
	wake int // eventfd(2)
}

// New makes an empty Set. id is what the event of Wake has as its Fd.
func New(id int32) (Set, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return Set{}, fmt.Errorf("epoll_create1: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return Set{}, fmt.Errorf("eventfd: %w", err)
	}
	s := Set{fd, wake}
	if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: id}); err != nil {
		s.Close()
		return Set{}, fmt.Errorf("epoll_ctl: %w", err)
	}
	return s, nil
}

// Wake ends a wait, or the next one.
func (s Set) Wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(s.wake, one[:]) // EAGAIN: it is signalled already
}

// Woken takes the event of Wake.
func (s Set) Woken() {
	var b [8]byte
	_, _ = unix.Read(s.wake, b[:])
}

// Close closes the instance, not what was added to it.
func (s Set) Close() {
	unix.Close(s.FD)
	unix.Close(s.wake)
}
