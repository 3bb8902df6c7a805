package monitor

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func addrs(s ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range s {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

// TestListenMany: where one of many groups, which several goroutines bind, is in use, the
// error names it, and nothing stays bound.
func TestListenMany(t *testing.T) {
	const many = 2*listenPiece + 1
	want := make([]Listen, many)
	for i := range want {
		want[i] = Listen{Network: "tcp", Addrs: addrs("127.0.0.77:0")} // where nobody else looks for a port
	}
	ls, err := listenAll(want)
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range ls {
		want[i].Addrs = g.bound
	}
	taken := want[many-1].Addrs[0]
	for _, g := range ls[:many-1] {
		closeAll(g.fds)
	}
	defer ls[many-1:].close()
	var failed *ListenError
	if got, err := listenAll(want); !errors.As(err, &failed) || failed.Addr != taken.String() || got != nil {
		t.Fatalf("listen where %v is taken: %v, want an error that names it", taken, err)
	}
	again, err := listenAll(want[:many-1])
	if err != nil {
		t.Fatalf("after a failure: %v", err)
	}
	again.close()
}

func TestListenOptions(t *testing.T) {
	somaxconn, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Fatal(err)
	}
	want, err := strconv.Atoi(strings.TrimSpace(string(somaxconn)))
	if err != nil {
		t.Fatal(err)
	}
	type option struct{ level, name, want int }
	tests := []struct {
		network, addr string
		options       []option
	}{
		{"tcp", "127.0.0.1:0", []option{{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}, {unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP}, {unix.SOL_SOCKET, unix.SO_ACCEPTCONN, 1}}},
		{"tcp", "[::1]:0", []option{{unix.SOL_IPV6, unix.IPV6_V6ONLY, 1}, {unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}}},
		{"udp", "127.0.0.1:0", []option{{unix.SOL_IP, unix.IP_PKTINFO, 1}, {unix.SOL_SOCKET, unix.SO_REUSEADDR, 0}}},
		{"udp", "[::1]:0", []option{{unix.SOL_IPV6, unix.IPV6_V6ONLY, 1}, {unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.network+tt.addr, func(t *testing.T) {
			ls, err := listenAll([]Listen{{Network: tt.network, Addrs: addrs(tt.addr)}})
			if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
				t.Skip("no IPv6 here")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer ls.close()
			fd := ls[0].fds[0]
			for _, o := range tt.options {
				if got, err := unix.GetsockoptInt(fd, o.level, o.name); err != nil || got != o.want {
					t.Errorf("option %d/%d is %d (%v), want %d", o.level, o.name, got, err, o.want)
				}
			}
			if fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || fl&unix.O_NONBLOCK != 0 {
				t.Errorf("flags %#x (%v): with O_NONBLOCK every os.File of it goes to the runtime's poller", fl, err)
			}
			if tt.network != "tcp" {
				return
			}
			info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
			if err != nil {
				t.Fatal(err)
			}
			if int(info.Sacked) != want { // the backlog, of a listener (tcp_get_info in net/ipv4/tcp.c)
				t.Errorf("backlog %d, want %d", info.Sacked, want)
			}
		})
	}
}

// All sockets of a group have the same port.
func TestListenGroup(t *testing.T) {
	ls, err := listenAll([]Listen{{Network: "tcp", Addrs: addrs("0.0.0.0:0", "[::]:0", "127.0.0.5:0")}, {Network: "udp", Addrs: addrs("0.0.0.0:0", "[::]:0")}})
	// 0.0.0.0 with SO_REUSEADDR and another listener at 127.0.0.5 do not go together.
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("got %v, want EADDRINUSE", err)
		ls.close()
	}
	ls, err = listenAll([]Listen{{Network: "tcp", Addrs: addrs("127.0.0.1:0", "[::]:0", "127.0.0.5:0")}, {Network: "udp", Addrs: addrs("0.0.0.0:0", "[::]:0")}})
	if err != nil {
		t.Fatal(err)
	}
	defer ls.close()
	for i, bound := range ls.bound() {
		for _, b := range bound {
			if b.Port() == 0 || b.Port() != bound[0].Port() {
				t.Errorf("group %d is bound to %v", i, bound)
			}
		}
		if len(bound) != len(ls[i].fds) {
			t.Errorf("%d addresses, %d sockets", len(bound), len(ls[i].fds))
		}
	}
}

// TestListenEverywhere: one TCP socket serves both families where it can be had, two do
// where only the IPv4 one is free.
func TestListenEverywhere(t *testing.T) {
	ls, err := listenAll([]Listen{{Network: "tcp", Addrs: addrs("0.0.0.0:0", "[::]:0")}})
	if err != nil {
		t.Fatal(err)
	}
	defer ls.close()
	bound := ls[0].bound
	if len(bound) != 2 || bound[0].Addr() != netip.IPv4Unspecified() || bound[1].Addr() != netip.IPv6Unspecified() || bound[0].Port() == 0 || bound[0].Port() != bound[1].Port() {
		t.Fatalf("bound to %v", bound)
	}
	if len(ls[0].fds) != 1 {
		t.Errorf("%d sockets, want 1", len(ls[0].fds))
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr(host), bound[0].Port()).String())
		if err != nil {
			t.Error(err)
			continue
		}
		c.Close()
	}
	at := bound[0].String()
	_, err = listenAll([]Listen{{Network: "tcp", Addrs: addrs(at, bound[1].String())}})
	var failure *ListenError
	if !errors.As(err, &failure) || failure.Addr != at || !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listen once more: %v, want EADDRINUSE at %s", err, at)
	}
}

func TestListenErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	takenUDP, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer takenUDP.Close()
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	live := filepath.Join(dir, "live")
	l, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tests := []struct {
		name string
		l    Listen
		is   error
		text string
	}{
		{"tcp port in use", Listen{Network: "tcp", Addrs: addrs(taken.Addr().String())}, unix.EADDRINUSE, "listen tcp " + taken.Addr().String() + ": port is already in use"},
		{"udp port in use", Listen{Network: "udp", Addrs: addrs(takenUDP.LocalAddr().String())}, unix.EADDRINUSE, "listen udp " + takenUDP.LocalAddr().String() + ": port is already in use"},
		{"not our address", Listen{Network: "tcp", Addrs: addrs("192.0.2.1:8080")}, unix.EADDRNOTAVAIL, "192.0.2.1:8080: no interface"},
		{"unknown zone", Listen{Network: "tcp", Addrs: addrs("[fe80::1%nosuch0]:8080")}, unix.ENODEV, "nosuch0"},
		{"no address", Listen{Network: "tcp"}, unix.EDESTADDRREQ, ""},
		{"network", Listen{Network: "sctp", Addrs: addrs("127.0.0.1:1")}, unix.EPROTONOSUPPORT, "sctp"},
		{"a file of somebody's", Listen{Network: "unix", Path: plain}, unix.EADDRINUSE, "already in use"},
		{"a live socket", Listen{Network: "unix", Path: live}, unix.EADDRINUSE, "already in use"},
		{"no directory", Listen{Network: "unix", Path: filepath.Join(dir, "no", "x")}, unix.ENOENT, ""},
		{"long path", Listen{Network: "unix", Path: filepath.Join(dir, strings.Repeat("x", 108))}, unix.ENAMETOOLONG, "at most 107"},
	}
	before := openFDs(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// The good ones before it are closed again.
			other := filepath.Join(dir, "other")
			ls, err := listenAll([]Listen{{Network: "tcp", Addrs: addrs("127.0.0.1:0")}, {Network: "unix", Path: other}, tt.l})
			ls.close()
			var e *ListenError
			if !errors.As(err, &e) || !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v, %q", err, tt.is, tt.text)
			}
			if _, err := os.Lstat(other); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a unix socket is left: %v", err)
			}
		})
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	if b, err := os.ReadFile(plain); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

func TestPrivilegedPortText(t *testing.T) {
	err := &ListenError{"tcp", "0.0.0.0:80", unix.EACCES}
	if !strings.Contains(err.Error(), "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=80") {
		t.Errorf("got %q", err)
	}
	if err := (&ListenError{"tcp", "0.0.0.0:8080", unix.EACCES}).Error(); strings.Contains(err, "sudo") {
		t.Errorf("got %q", err)
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old := unix.Umask(0)
	ls, err := listenAll([]Listen{{Network: "unix", Path: path}})
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", fi.Mode(), err)
	}
	// A monitor that is killed leaves the file; the next one takes its place, and the
	// first one's end does not unlink what is not its own.
	closeAll(ls[0].fds)
	ls[0].fds = nil
	next, err := listenAll([]Listen{{Network: "unix", Path: path}})
	if err != nil {
		t.Fatal(err)
	}
	if ls[0].file.Ino != next[0].file.Ino {
		ls.close()
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("another's socket was unlinked: %v", err)
		}
	}
	next.close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}
