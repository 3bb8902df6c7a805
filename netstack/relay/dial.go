package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// longAgo is a deadline that wakes whoever waits on a connection.
var longAgo = time.Unix(1, 0)

// Socket is the host's end of a flow, a connected TCP socket: a [net.TCPConn], or what
// [Dial] returns.
type Socket interface {
	syscall.Conn
	SetDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	Close() error
}

// Dial connects a new TCP socket to to, and sets opts and TCP_NODELAY (tcp(7)) before. It
// comes from from; invalid: the kernel's choice. A socket of IPv6 is of that alone. The
// error wraps the errno, os.ErrDeadlineExceeded after timeout, or is ctx's cause when that
// ended first.
//
// [net.Dialer] makes twice as many system calls, and waits for the poller where the
// connection stands already.
func Dial(ctx context.Context, from netip.Addr, to netip.AddrPort, timeout time.Duration, opts net.KeepAliveConfig) (*os.File, error) {
	sock, err := dial(ctx, from, to, timeout, opts)
	if err != nil {
		return nil, fmt.Errorf("dial %v: %w", to, err)
	}
	return sock, nil
}

func dial(ctx context.Context, from netip.Addr, to netip.AddrPort, timeout time.Duration, opts net.KeepAliveConfig) (*os.File, error) {
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := tune(fd, family, opts); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if from.IsValid() {
		if errno := bindTo(fd, netip.AddrPortFrom(from, 0)); errno != 0 {
			return nil, errors.Join(os.NewSyscallError("bind", errno), unix.Close(fd))
		}
	}
	if errno := connectTo(fd, to); errno != 0 && errno != unix.EINPROGRESS && errno != unix.EINTR {
		return nil, errors.Join(os.NewSyscallError("connect", errno), unix.Close(fd))
	}
	sock := os.NewFile(uintptr(fd), "tcp")
	// Inside one machine the handshake is over by now.
	if _, err := unix.Getpeername(fd); err == nil {
		return sock, nil
	}
	if err := connected(ctx, sock, timeout); err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	return sock, nil
}

func tune(fd, family int, keep net.KeepAliveConfig) error {
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	for _, o := range [...]struct {
		name              string
		level, opt, value int
	}{
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keep.Idle / time.Second)},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keep.Interval / time.Second)},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keep.Count},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			return os.NewSyscallError("setsockopt "+o.name, err)
		}
	}
	return nil
}

// connected waits until sock is connected.
func connected(ctx context.Context, sock *os.File, timeout time.Duration) error {
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	if err := sock.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = sock.SetWriteDeadline(longAgo) })
	defer stop()
	var result error
	err = raw.Write(func(fd uintptr) bool {
		if result = socketError(int(fd)); result != nil {
			result = os.NewSyscallError("connect", result)
			return true
		}
		// A socket that is not connecting yet reports EPOLLHUP: writable is not connected.
		_, err := unix.Getpeername(int(fd))
		return err == nil
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case result != nil:
		return result
	}
	return sock.SetWriteDeadline(time.Time{})
}
