package monitor

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Listen is a group of sockets that belong together: the addresses of one
// published port, or one unix socket.
type Listen struct {
	Network string `json:"network"` // "tcp", "udp" or "unix"
	// Addrs are where to listen, for tcp and udp. When the first has port 0, the kernel
	// chooses, and the other addresses of port 0 get the same one. A [::] is left out
	// on a host without IPv6.
	Addrs []netip.AddrPort `json:"addrs,omitempty"`
	// Path is where a unix socket is made, of mode 0600. One that nobody listens at any
	// more is replaced. It is unlinked at the end.
	Path string `json:"path,omitempty"`
}

// maxUnixPath is what struct sockaddr_un holds beside the final zero (unix(7)).
const maxUnixPath = 107

// portAttempts is how often a group whose port the kernel chooses is tried again
// when another of its addresses has that port taken.
const portAttempts = 16

// ListenError says where listening failed. Err is an errno.
type ListenError struct {
	Network, Addr string
	Err           error
}

// Error names the address and what can be done.
func (e *ListenError) Error() string {
	at := "listen " + e.Network + " " + e.Addr + ": "
	port := uint16(0)
	if a, err := netip.ParseAddrPort(e.Addr); err == nil {
		port = a.Port()
	}
	switch {
	case errors.Is(e.Err, unix.EADDRINUSE) && e.Network == "unix":
		return at + "the path is already in use"
	case errors.Is(e.Err, unix.EADDRINUSE):
		return at + fmt.Sprintf("port is already in use; take another, or see who has it: sudo ss -lnp 'sport = :%d'", port)
	case errors.Is(e.Err, unix.EADDRNOTAVAIL):
		return at + "no interface of this host has the address; those it has: ip address"
	case errors.Is(e.Err, unix.EACCES) && port != 0 && port < 1024:
		return at + fmt.Sprintf("%v: a port below 1024 needs privilege; run: sudo sysctl -w net.ipv4.ip_unprivileged_port_start=%d", e.Err, port)
	case errors.Is(e.Err, unix.EMFILE):
		return at + e.Err.Error() + "; raise the limit of open files: ulimit -n"
	}
	return at + e.Err.Error()
}

// Unwrap returns Err.
func (e *ListenError) Unwrap() error { return e.Err }

// listeners are the bound sockets, in the order of the configuration.
type listeners []group

type group struct {
	fds   []int
	bound []netip.AddrPort
	file  socketFile // of a unix socket
}

// socketFile is a unix socket's file. Its device and inode keep another file of
// the same name from being unlinked.
type socketFile struct {
	Path string `json:"path"`
	Dev  uint64 `json:"dev"`
	Ino  uint64 `json:"ino"`

	dir *os.File // its directory, where Path may not lead there any more; nil: it does
}

// listenPiece is how many groups are worth a goroutine of their own: a range of ports is
// bound by all CPUs.
const listenPiece = 256

// listenAll binds every group, or none. Those whose port the kernel chooses come last, so
// that it does not choose the port of another.
func listenAll(want []Listen) (listeners, error) {
	ls := make(listeners, len(want))
	errs := make([]error, len(want))
	var workers sync.WaitGroup
	for first := 0; first < len(want); first += listenPiece {
		workers.Go(func() {
			for i := first; i < min(first+listenPiece, len(want)); i++ {
				if want[i].chosen() {
					continue
				}
				if ls[i], errs[i] = want[i].listen(); errs[i] != nil {
					return
				}
			}
		})
	}
	workers.Wait()
	if cmp.Or(errs...) == nil {
		for i, w := range want {
			if w.chosen() {
				ls[i], errs[i] = w.listen()
			}
		}
	}
	if err := cmp.Or(errs...); err != nil { // the first
		ls.close()
		return nil, err
	}
	return ls, nil
}

// close closes the sockets and unlinks the files.
func (ls listeners) close() {
	for _, g := range ls {
		closeAll(g.fds)
		g.file.unlink()
	}
}

func (ls listeners) bound() [][]netip.AddrPort {
	out := make([][]netip.AddrPort, len(ls))
	for i, g := range ls {
		out[i] = g.bound
	}
	return out
}

func (ls listeners) files() []socketFile {
	var out []socketFile
	for _, g := range ls {
		if g.file.Path != "" {
			out = append(out, g.file)
		}
	}
	return out
}

// flat is all descriptors one after another, and how many each group has.
func (ls listeners) flat() (fds, sizes []int) {
	for _, g := range ls {
		fds = append(fds, g.fds...)
		sizes = append(sizes, len(g.fds))
	}
	return fds, sizes
}

// chosen says whether the kernel chooses the port.
func (l Listen) chosen() bool { return len(l.Addrs) > 0 && l.Addrs[0].Port() == 0 }

func (l Listen) listen() (group, error) {
	switch l.Network {
	case "unix":
		return listenUnix(l.Path)
	case "tcp", "udp":
	default:
		return group{}, &ListenError{l.Network, l.Path, unix.EPROTONOSUPPORT}
	}
	for attempt := 1; ; attempt++ {
		g, err := listenGroup(l.Network, l.Addrs)
		again := l.chosen() && errors.Is(err, unix.EADDRINUSE)
		if err == nil || !again || attempt == portAttempts {
			return g, err
		}
	}
}

func listenGroup(network string, addrs []netip.AddrPort) (group, error) {
	if network == "tcp" && everywhere(addrs) {
		// One socket serves both families: half the descriptors and half the time of a range.
		// Where that fails, two say why.
		fd, bound, err := listenInet(network, addrs[1], bothFamilies)
		if err == nil {
			return group{fds: []int{fd}, bound: []netip.AddrPort{netip.AddrPortFrom(addrs[0].Addr(), bound.Port()), bound}}, nil
		}
	}
	var g group
	var skipped error
	for _, a := range addrs {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if a.Port() == 0 && len(g.bound) > 0 {
			a = netip.AddrPortFrom(a.Addr(), g.bound[0].Port())
		}
		fd, bound, err := listenInet(network, a, oneFamily)
		if err != nil {
			err = &ListenError{network, a.String(), err}
			if a.Addr() == netip.IPv6Unspecified() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
				skipped = err
				continue
			}
			closeAll(g.fds)
			return group{}, err
		}
		g.fds, g.bound = append(g.fds, fd), append(g.bound, bound)
	}
	if len(g.fds) == 0 {
		if skipped == nil {
			skipped = &ListenError{network, "nowhere", unix.EDESTADDRREQ}
		}
		return group{}, skipped
	}
	return g, nil
}

// everywhere tells the unspecified addresses of both families, with one port.
func everywhere(addrs []netip.AddrPort) bool {
	return len(addrs) == 2 && addrs[0].Addr() == netip.IPv4Unspecified() && addrs[1].Addr() == netip.IPv6Unspecified() &&
		addrs[0].Port() == addrs[1].Port()
}

// families is what an IPv6 socket serves, the value of IPV6_V6ONLY.
type families int

const (
	bothFamilies families = iota
	oneFamily
)

// listenInet makes a socket bound to a. Its port is real.
func listenInet(network string, a netip.AddrPort, serves families) (fd int, bound netip.AddrPort, err error) {
	family, typ := unix.AF_INET, unix.SOCK_STREAM
	if a.Addr().Is6() {
		family = unix.AF_INET6
	}
	if network == "udp" {
		typ = unix.SOCK_DGRAM
	}
	sa, err := sockaddr(a)
	if err != nil {
		return -1, bound, err
	}
	// Protocol 0 is TCP or UDP, never multipath TCP, which splice must not meet.
	// Blocking, so that an os.File of it is no business of the runtime's poller: of a range
	// of 10,000 ports that alone takes 60 ms. Who serves it makes it non-blocking.
	fd, err = unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, bound, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
		}
	}()
	if err = setInetOptions(fd, family, typ, serves); err != nil {
		return fd, bound, err
	}
	if err = unix.Bind(fd, sa); err != nil {
		return fd, bound, err
	}
	if typ == unix.SOCK_STREAM {
		// The kernel makes it net.core.somaxconn.
		if err = unix.Listen(fd, math.MaxInt32); err != nil {
			return fd, bound, err
		}
	}
	got, err := unix.Getsockname(fd)
	if err != nil {
		return fd, bound, err
	}
	switch got := got.(type) {
	case *unix.SockaddrInet4:
		return fd, netip.AddrPortFrom(a.Addr(), uint16(got.Port)), nil
	case *unix.SockaddrInet6:
		return fd, netip.AddrPortFrom(a.Addr(), uint16(got.Port)), nil
	}
	err = fmt.Errorf("bound to a %T", got)
	return fd, bound, err
}

func setInetOptions(fd, family, typ int, serves families) error {
	type option struct{ level, name, value int }
	var options []option
	if family == unix.AF_INET6 {
		options = append(options, option{unix.SOL_IPV6, unix.IPV6_V6ONLY, int(serves)})
	}
	switch {
	case typ == unix.SOCK_STREAM:
		// Connections in TIME_WAIT from an earlier run do not hold the port. For UDP the
		// option would mean something else: that others may take the port too.
		options = append(options, option{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
	case family == unix.AF_INET6:
		options = append(options, option{unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1})
	default:
		options = append(options, option{unix.SOL_IP, unix.IP_PKTINFO, 1})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return err
		}
	}
	return nil
}

func sockaddr(a netip.AddrPort) (unix.Sockaddr, error) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}, nil
	}
	sa := &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	if zone := a.Addr().Zone(); zone != "" {
		index, err := zoneIndex(zone)
		if err != nil {
			return nil, err
		}
		sa.ZoneId = uint32(index)
	}
	return sa, nil
}

// zoneIndex is the interface's index for a zone, a name or a number.
func zoneIndex(zone string) (int, error) {
	if i, err := net.InterfaceByName(zone); err == nil {
		return i.Index, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 31); err == nil {
		return int(n), nil
	}
	return 0, unix.ENODEV
}

// listenUnix makes a socket at path that only its owner may connect to.
func listenUnix(path string) (group, error) {
	g, err := bindUnix(path)
	if errors.Is(err, unix.EADDRINUSE) && stale(path) {
		if err := os.Remove(path); err != nil {
			return group{}, &ListenError{"unix", path, err}
		}
		g, err = bindUnix(path)
	}
	if err != nil {
		return group{}, &ListenError{"unix", path, err}
	}
	return g, nil
}

func bindUnix(path string) (group, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return group{}, err
	}
	if len(path) > maxUnixPath {
		return group{}, fmt.Errorf("%w: %d bytes, at most %d", unix.ENAMETOOLONG, len(path), maxUnixPath)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return group{}, err
	}
	// The file gets the socket's mode less the umask (unix_bind_bsd in
	// net/unix/af_unix.c), so nobody else can connect at any moment.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		unix.Close(fd)
		return group{}, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return group{}, err
	}
	var st unix.Stat_t
	err = unix.Lstat(path, &st)
	if err == nil {
		err = unix.Listen(fd, math.MaxInt32)
	}
	if err != nil {
		unix.Close(fd)
		return group{}, errors.Join(err, os.Remove(path))
	}
	return group{fds: []int{fd}, file: socketFile{Path: path, Dev: st.Dev, Ino: st.Ino}}, nil
}

// stale reports whether path is a unix socket that nobody listens at: what a
// monitor that was killed leaves.
func stale(path string) bool {
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Type() != os.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

// unlink removes the file if it is still the one that was made.
func (f socketFile) unlink() {
	if f.Path == "" {
		return
	}
	dir, name := unix.AT_FDCWD, f.Path
	if f.dir != nil {
		defer f.dir.Close()
		dir, name = int(f.dir.Fd()), filepath.Base(f.Path)
	}
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Dev == f.Dev && st.Ino == f.Ino {
		_ = unix.Unlinkat(dir, name, 0)
	}
}
