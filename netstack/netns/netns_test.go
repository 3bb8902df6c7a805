package netns_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"slipway/netstack/netns"
	"slipway/netstack/netns/nstest"
)

// attach makes the opened node a plain TAP.
func attach(t *testing.T, tun *os.File, name string) {
	t.Helper()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(int(tun.Fd()), unix.TUNSETIFF, ifr); err != nil {
		t.Fatalf("TUNSETIFF: %v", err)
	}
}

func handle(t *testing.T, target netns.Target) *netlink.Handle {
	t.Helper()
	h, err := target.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// fds lists the process's descriptors with what they are.
func fds(t *testing.T) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			m[e.Name()] = to
		}
	}
	return m
}

// The runtime's own descriptors (epoll, cgroup files) exist before the first test.
func TestMain(m *testing.M) {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	os.Exit(m.Run())
}

func TestOpenTUNConfigure(t *testing.T) {
	path := nstest.TUN(t)
	target := nstest.New(t).Target(t)
	tun, err := target.OpenTUN(path)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	attach(t, tun, "tap0")
	h := handle(t, target)
	link := netns.Link{
		Name: "tap0", MTU: 1400, TxQueueLen: 5000,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24"), netip.MustParsePrefix("fd00::100/64")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")},
	}
	var mac net.HardwareAddr
	for range 2 { // the second round finds everything there
		if mac, err = netns.Configure(h, link); err != nil {
			t.Fatal(err)
		}
	}
	l, err := h.LinkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	a := l.Attrs()
	if a.MTU != 1400 || a.TxQLen != 5000 || a.Flags&net.FlagUp == 0 || len(mac) != 6 || mac.String() != a.HardwareAddr.String() {
		t.Errorf("link is %+v, MAC %v", a, mac)
	}
	lo, err := h.LinkByName("lo")
	if err != nil || lo.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("lo is not up: %v %v", lo, err)
	}
	addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("%v is tentative", a.IPNet)
		}
		got = append(got, a.IPNet.String())
	}
	if d := cmp.Diff([]string{"10.0.2.100/24", "fd00::100/64"}, got); d != "" {
		t.Errorf("addresses (-want +got):\n%s", d)
	}
	for _, want := range []struct {
		family int
		gw     string
	}{{netlink.FAMILY_V4, "10.0.2.2"}, {netlink.FAMILY_V6, "fd00::2"}} {
		routes, err := h.RouteList(l, want.family)
		if err != nil {
			t.Fatal(err)
		}
		var gws []string
		for _, r := range routes {
			if r.Gw != nil {
				gws = append(gws, r.Gw.String())
			}
		}
		if d := cmp.Diff([]string{want.gw}, gws); d != "" {
			t.Errorf("gateways (-want +got):\n%s", d)
		}
	}
}

func TestSockets(t *testing.T) {
	target := nstest.New(t).Target(t)
	tests := []struct {
		name             string
		family           int
		level, transpare int
	}{
		{"ipv4", unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT},
		{"ipv6", unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files, err := target.Sockets(tt.family, netns.MaxSockets)
			if err != nil {
				t.Fatal(err)
			}
			if len(files) != netns.MaxSockets {
				t.Errorf("%d sockets, want %d", len(files), netns.MaxSockets)
			}
			for _, f := range files {
				fd := int(f.Fd())
				for _, o := range []struct{ level, opt, want int }{{unix.SOL_SOCKET, unix.SO_DOMAIN, tt.family}, {unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP}, {tt.level, tt.transpare, 1}} {
					if got, err := unix.GetsockoptInt(fd, o.level, o.opt); err != nil || got != o.want {
						t.Errorf("option %d/%d is %d (%v), want %d", o.level, o.opt, got, err, o.want)
					}
				}
				if tt.family == unix.AF_INET6 {
					if got, err := unix.GetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY); err != nil || got != 1 {
						t.Errorf("V6ONLY is %d (%v)", got, err)
					}
				}
				fl, _ := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
				fdfl, _ := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
				if fl&unix.O_NONBLOCK == 0 || fdfl&unix.FD_CLOEXEC == 0 {
					t.Errorf("flags %#x, descriptor flags %#x", fl, fdfl)
				}
				f.Close()
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	target := nstest.New(t).Target(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	closedUser := netns.Target{Net: target.Net}
	tests := []struct {
		name string
		do   func() error
		step string
		is   error
		text string
	}{
		{"no node", func() error { _, err := target.OpenTUN("/nonexistent/tun"); return err }, netns.StepOpenTUN, unix.ENOENT, "sudo modprobe tun"},
		{"fifo", func() error { _, err := target.OpenTUN(fifo); return err }, netns.StepCheck, nil, "not the TUN driver"},
		{"null device", func() error { _, err := target.OpenTUN("/dev/null"); return err }, netns.StepCheck, nil, "device 1:3"},
		{"long path", func() error { _, err := target.OpenTUN("/" + strings.Repeat("x", 9000)); return err }, netns.StepOpenTUN, unix.ENAMETOOLONG, ""},
		{"too many", func() error { _, err := target.Sockets(unix.AF_INET, netns.MaxSockets+1); return err }, netns.StepSocket, unix.EINVAL, "1 to 512"},
		{"none", func() error { _, err := target.Sockets(unix.AF_INET, 0); return err }, netns.StepSocket, unix.EINVAL, ""},
		{"family", func() error { _, err := target.Sockets(unix.AF_UNIX, 1); return err }, netns.StepSocket, unix.EAFNOSUPPORT, ""},
		{"no namespace", func() error { _, err := netns.Target{}.Sockets(unix.AF_INET, 1); return err }, netns.StepSetnsNet, os.ErrInvalid, ""},
		{"not a namespace", func() error {
			f, err := os.Open("/dev/null")
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = netns.Target{Net: f}.Sockets(unix.AF_INET, 1)
			return err
		}, netns.StepSetnsNet, unix.EINVAL, "/dev/null"},
	}
	if os.Getuid() != 0 {
		tests = append(tests, struct {
			name string
			do   func() error
			step string
			is   error
			text string
		}{"user namespace not given", func() error { _, err := closedUser.Sockets(unix.AF_INET, 1); return err }, netns.StepSetnsNet, unix.EPERM, "another user"})
	}
	before := fds(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.do()
			var e *netns.Error
			if !errors.As(err, &e) || e.Step != tt.step {
				t.Fatalf("got %v, want an Error of step %q", err, tt.step)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %v", err, tt.is)
			}
			if !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%q does not say %q", err, tt.text)
			}
		})
	}
	if d := cmp.Diff(before, fds(t)); d != "" {
		t.Errorf("descriptors left (-before +after):\n%s", d)
	}
}

func TestOpenErrors(t *testing.T) {
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		do   func() (netns.Target, error)
		step string
		is   error
	}{
		{"dead process", func() (netns.Target, error) { return netns.FromPID(gone.Process.Pid) }, netns.StepOpen, os.ErrNotExist},
		{"missing file", func() (netns.Target, error) { return netns.FromPath("/nonexistent", "") }, netns.StepOpen, os.ErrNotExist},
		{"wrong kind", func() (netns.Target, error) { return netns.FromPath("/proc/self/ns/user", "") }, netns.StepNamespace, nil},
		{"wrong kind of user", func() (netns.Target, error) { return netns.FromPath("/proc/self/ns/net", "/proc/self/ns/net") }, netns.StepNamespace, nil},
		{"no namespace", func() (netns.Target, error) { return netns.FromPath("/dev/null", "") }, netns.StepNamespace, nil},
	}
	before := fds(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			target, err := tt.do()
			if err == nil {
				target.Close()
			}
			var e *netns.Error
			if !errors.As(err, &e) || e.Step != tt.step || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want step %q, %v", err, tt.step, tt.is)
			}
		})
	}
	if d := cmp.Diff(before, fds(t)); d != "" {
		t.Errorf("descriptors left (-before +after):\n%s", d)
	}
}

// The own user namespace cannot be joined and need not be.
func TestFromPIDSelf(t *testing.T) {
	target, err := netns.FromPID(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if target.User != nil {
		t.Error("the caller's own user namespace is to be joined")
	}
}

func TestFromPath(t *testing.T) {
	n := nstest.New(t)
	dir := filepath.Join("/proc", strconv.Itoa(n.PID), "ns")
	for _, user := range []string{"", filepath.Join(dir, "user")} {
		target, err := netns.FromPath(filepath.Join(dir, "net"), user)
		if err != nil {
			t.Fatal(err)
		}
		files, err := target.Sockets(unix.AF_INET, 1)
		if err != nil {
			t.Errorf("user namespace %q: %v", user, err)
		}
		for _, f := range files {
			f.Close()
		}
		target.Close()
	}
}

// Root opens a node of mode 0600 for a container whose root is an unprivileged id
// of the host: the container's root could not.
func TestRootOpensPrivateNode(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(nstest.Mknod(t, map[string]os.FileMode{"tun": 0o600}), "tun")
	target := nstest.New(t).Target(t)
	if target.User == nil {
		t.Fatal("the namespace has no user namespace of its own")
	}
	tun, err := target.OpenTUN(path)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	attach(t, tun, "tap0")
	h := handle(t, target)
	if _, err := netns.Configure(h, netns.Link{Name: "tap0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24")}}); err != nil {
		t.Error(err)
	}
}

// The same tests as an ordinary user, who has to join the user namespace first.
func TestAsOrdinaryUser(t *testing.T) {
	nstest.RunAsOrdinaryUser(t, "TestOpenTUNConfigure", "TestKeepReplies", "TestForbiddenNode", "TestChildNotDumpable")
}

func TestForbiddenNode(t *testing.T) {
	path := nstest.ClosedTUN(t)
	target := nstest.New(t).Target(t)
	_, err := target.OpenTUN(path)
	if !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "sudo chmod 0666 "+path) {
		t.Errorf("got %v, want EACCES and the command that mends it", err)
	}
}

// While the child is in the container's namespaces nobody but root sees what it
// holds. A lease makes its open wait (fcntl(2), F_SETLEASE), so that it can be
// looked at.
func TestChildNotDumpable(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("needs an ordinary user: root's processes look the same either way")
	}
	n := nstest.New(t)
	target := n.Target(t)
	path := filepath.Join(t.TempDir(), "leased")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skipf("no leases here: %v", err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := target.OpenTUN(path)
		result <- err
	}()
	var st unix.Stat_t
	for deadline := time.Now().Add(3 * time.Second); ; {
		if pid := openingChild(t, n.PID); pid != 0 && unix.Stat(fmt.Sprintf("/proc/%d/fd", pid), &st) == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the child was not seen")
		}
	}
	if st.Uid != 0 { // task_dump_owner in fs/proc/base.c
		t.Errorf("the child's descriptors belong to uid %d, want 0", st.Uid)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Error(err)
	}
	var e *netns.Error
	if err := <-result; !errors.As(err, &e) || e.Step != netns.StepCheck {
		t.Errorf("got %v, want step %q", err, netns.StepCheck)
	}
}

// openingChild is the child of this process that is not other and sleeps, 0 if
// there is none.
func openingChild(t *testing.T, other int) int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, after, _ := strings.Cut(string(b), ") ")
		var state string
		var parent, pid int
		if _, err := fmt.Sscan(after, &state, &parent); err != nil || parent != os.Getpid() {
			continue
		}
		if _, err := fmt.Sscan(string(b), &pid); err == nil && pid != other && (state == "S" || state == "D") {
			return pid
		}
	}
	return 0
}

// A busy process: garbage collection, other goroutines, other children, and many
// joins at once must not disturb the child or leave anything.
func TestManyJoins(t *testing.T) {
	target := nstest.New(t).Target(t)
	before := fds(t)
	stop := make(chan struct{})
	var churn, joins sync.WaitGroup
	for range 2 {
		churn.Go(func() {
			var keep [][]byte
			for {
				select {
				case <-stop:
					return
				default:
				}
				if keep = append(keep, make([]byte, 4096)); len(keep) > 2000 {
					keep = nil
					runtime.Gosched()
				}
			}
		})
	}
	for range 4 {
		joins.Go(func() {
			for i := range 25 {
				files, err := target.Sockets(unix.AF_INET, 1+i)
				if err != nil {
					t.Error(err)
					return
				}
				for _, f := range files {
					f.Close()
				}
			}
		})
	}
	joins.Wait()
	close(stop)
	churn.Wait()
	if d := cmp.Diff(before, fds(t)); d != "" {
		t.Errorf("descriptors left (-before +after):\n%s", d)
	}
}

func TestOutOfDescriptors(t *testing.T) {
	target := nstest.New(t).Target(t)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	before := fds(t)
	low := old
	low.Cur = 64
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	_, err := target.Sockets(unix.AF_INET, netns.MaxSockets)
	if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("got %v, want EMFILE", err)
	}
	if d := cmp.Diff(before, fds(t)); d != "" {
		t.Errorf("descriptors left (-before +after):\n%s", d)
	}
}

func TestNetlinkHandleOutlivesNamespaceErrors(t *testing.T) {
	h := handle(t, nstest.New(t).Target(t))
	if _, err := h.LinkByName("nosuch0"); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("got %v, want LinkNotFoundError", err)
	}
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() != "device" && l.Attrs().Name != "lo" && l.Attrs().Flags&net.FlagUp != 0 {
			t.Errorf("link %v: the handle is not in the new namespace", l.Attrs())
		}
	}
	if _, err := netns.Configure(h, netns.Link{Name: "nosuch0"}); err == nil || !strings.Contains(err.Error(), "nosuch0") {
		t.Errorf("got %v, want an error that names the link", err)
	}
}
