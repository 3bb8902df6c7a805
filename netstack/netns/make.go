package netns

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// TUNPath is where the TUN driver's node is.
const TUNPath = "/dev/net/tun"

// MaxSockets is how many sockets one call of Sockets makes at most.
const MaxSockets = maxMade

// OpenTUN opens the TUN driver's node in the namespace; TUNSETIFF on the result
// makes or joins a device there, whoever calls it. An empty path is TUNPath. The
// file is blocking and not known to the runtime's poller.
func (t Target) OpenTUN(path string) (*os.File, error) {
	if path == "" {
		path = TUNPath
	}
	fds, err := t.run(exchange{op: makeTUN}, path)
	if err != nil {
		return nil, err
	}
	if err := checkTUN(fds[0]); err != nil {
		closeAll(fds)
		return nil, &Error{Step: StepCheck, Path: path, Err: err}
	}
	return os.NewFile(uintptr(fds[0]), path), nil
}

// checkTUN refuses whatever is not the TUN driver: character device 10:200
// (Documentation/admin-guide/devices.txt).
func checkTUN(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(uint64(st.Rdev)) != 10 || unix.Minor(uint64(st.Rdev)) != 200 {
		return fmt.Errorf("not the TUN driver's node (mode %#o, device %d:%d)", st.Mode, unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	}
	return nil
}

// Sockets makes n non-blocking TCP sockets of the family (unix.AF_INET or
// unix.AF_INET6) in the namespace, 1 <= n <= MaxSockets. They are transparent
// (IP_TRANSPARENT, IPV6_TRANSPARENT): they may be bound to an address that is not
// the namespace's own. IPv6 sockets are V6ONLY. The caller owns the files.
func (t Target) Sockets(family, n int) ([]*os.File, error) {
	if n < 1 || n > MaxSockets {
		return nil, &Error{Step: StepSocket, Err: fmt.Errorf("%d sockets, want 1 to %d: %w", n, MaxSockets, unix.EINVAL)}
	}
	x := exchange{op: makeSockets, n: int32(n), family: uintptr(family), kind: unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC, proto: unix.IPPROTO_TCP}
	switch family {
	case unix.AF_INET:
		x.level, x.option = unix.SOL_IP, unix.IP_TRANSPARENT
	case unix.AF_INET6:
		x.level, x.option, x.v6option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, unix.IPV6_V6ONLY
	default:
		return nil, &Error{Step: StepSocket, Err: fmt.Errorf("family %d: %w", family, unix.EAFNOSUPPORT)}
	}
	fds, err := t.run(x, "")
	if err != nil {
		return nil, err
	}
	for _, fd := range fds {
		if err := checkSocket(fd, family, unix.SOCK_STREAM, unix.IPPROTO_TCP); err != nil {
			closeAll(fds)
			return nil, &Error{Step: StepCheck, Err: err}
		}
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "namespace socket")
	}
	return files, nil
}

// checkSocket refuses a descriptor that is no socket of the domain, type and
// protocol.
func checkSocket(fd, domain, typ, proto int) error {
	for _, o := range []struct {
		name      string
		opt, want int
	}{{"SO_DOMAIN", unix.SO_DOMAIN, domain}, {"SO_TYPE", unix.SO_TYPE, typ}, {"SO_PROTOCOL", unix.SO_PROTOCOL, proto}} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.opt)
		if err != nil {
			return fmt.Errorf("%s: %w", o.name, err)
		}
		if got != o.want {
			return fmt.Errorf("%s is %d, want %d", o.name, got, o.want)
		}
	}
	return nil
}
