package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// CheckSocket says whether a descriptor that another process handed over is what
// it should be, a TCP socket of family unix.AF_INET or unix.AF_INET6: what comes
// from inside a container's namespaces is not believed unseen.
func CheckSocket(sock *os.File, family int) error {
	rc, err := sock.SyscallConn()
	if err != nil {
		return fmt.Errorf("check socket: %w", err)
	}
	var bad error
	err = rc.Control(func(fd uintptr) {
		for _, want := range []struct {
			name       string
			opt, value int
		}{
			{"SO_DOMAIN", unix.SO_DOMAIN, family},
			{"SO_TYPE", unix.SO_TYPE, unix.SOCK_STREAM},
			{"SO_PROTOCOL", unix.SO_PROTOCOL, unix.IPPROTO_TCP},
		} {
			got, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, want.opt)
			if err != nil {
				bad = fmt.Errorf("check socket: %w", os.NewSyscallError("getsockopt "+want.name, err))
				return
			}
			if got != want.value {
				bad = fmt.Errorf("check socket: %s is %d, want %d: %w", want.name, got, want.value, unix.EPROTOTYPE)
				return
			}
		}
	})
	if err != nil {
		return fmt.Errorf("check socket: %w", err)
	}
	return bad
}

// Connect binds a fresh TCP socket to from, which need not be an address of its
// namespace when the socket is transparent (IP_TRANSPARENT in ip(7)), and connects
// it to to. Port 0 in from lets the kernel choose. It takes sock over: sock is
// closed when Connect returns. The error wraps the errno of bind or connect, or
// ctx's error when ctx ended first.
func Connect(ctx context.Context, sock *os.File, from, to netip.AddrPort) (*net.TCPConn, error) {
	defer sock.Close()
	if err := connect(ctx, sock, from, to); err != nil {
		return nil, fmt.Errorf("connect %v from %v: %w", to, from, err)
	}
	// A copy of the descriptor: the original goes with sock.
	c, err := net.FileConn(sock)
	if err != nil {
		return nil, fmt.Errorf("connect %v from %v: %w", to, from, err)
	}
	conn, ok := c.(*net.TCPConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("connect %v from %v: %T: %w", to, from, c, unix.EPROTOTYPE)
	}
	return conn, nil
}

func connect(ctx context.Context, sock *os.File, from, to netip.AddrPort) error {
	rc, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	if err := sock.SetWriteDeadline(time.Time{}); err != nil {
		return err // not pollable: a blocking descriptor would hang the caller
	}
	stop := context.AfterFunc(ctx, func() { _ = sock.SetWriteDeadline(longAgo) })
	defer stop()
	var result error
	started := false
	err = rc.Write(func(fd uintptr) bool {
		if !started {
			started = true
			if result = begin(int(fd), from, to); !errors.Is(result, unix.EINPROGRESS) {
				return true
			}
			// Inside one machine the handshake is usually over by now.
		}
		if result = socketError(fd); result != nil {
			return true
		}
		// A socket that is not connecting yet reports EPOLLHUP: writable is not connected.
		_, err := unix.Getpeername(int(fd))
		return err == nil
	})
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return result
}

// begin binds and starts to connect; EINPROGRESS is the good answer.
func begin(fd int, from, to netip.AddrPort) error {
	// A port that a connection in TIME_WAIT still has may be taken again.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEADDR", err)
	}
	if err := unix.Bind(fd, sockaddr(from)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return os.NewSyscallError("connect", unix.Connect(fd, sockaddr(to)))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if ip := a.Addr().Unmap(); ip.Is4() {
		return &unix.SockaddrInet4{Addr: ip.As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
