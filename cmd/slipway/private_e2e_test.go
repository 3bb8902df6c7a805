//go:build e2e

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const privateEnv = "SLIPWAY_E2E_PRIVATE"

// hostAddr is the address other than loopback of a private host.
var hostAddr = netip.MustParseAddr("198.51.100.1")

// unroutable is an address to which a private host has no route.
var unroutable = netip.MustParseAddr("203.0.113.7")

// onPrivateHost runs the test again in a process of its own, with network and mount
// namespaces that stand for a host, and reports false; there, it reports true. The
// host has the addresses 127.0.0.0/8, ::1 and hostAddr, all ports to itself, and an
// /etc/resolv.conf of its own (setResolvConf). The lines of a table that the test prints,
// those that begin with "|", are printed here too.
func onPrivateHost(t *testing.T) bool {
	t.Helper()
	return onPrivateHostWithin(t, 4*patience) // a wait in it ends first, and says what did not
}

// onPrivateHostWithin is onPrivateHost for a test that takes longer.
func onPrivateHostWithin(t *testing.T, within time.Duration) bool {
	t.Helper()
	if isPrivate(t) {
		makePrivate(t)
		return true
	}
	p := privately(t)
	status := p.waitWithin(within)
	out := p.stdout.String() + p.stderr.String()
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "|") {
			fmt.Print(line)
		}
	}
	switch {
	case status != 0:
		t.Errorf("on a private host: exit status %d", status)
	case strings.Contains(out, "--- SKIP"):
		t.Skipf("on a private host: %s", out)
	case !strings.Contains(out, "--- PASS"):
		t.Error("on a private host: the test did not run")
	}
	return false
}

// isPrivate tells whether this process was started to run the test on a private host.
func isPrivate(t *testing.T) bool { return os.Getenv(privateEnv) == t.Name() }

// privately starts the process of onPrivateHost.
func privately(t *testing.T) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range strings.SplitSeq(t.Name(), "/") {
		names = append(names, "^"+regexp.QuoteMeta(name)+"$")
	}
	cmd := exec.Command(exe, "-test.run="+strings.Join(names, "/"), "-test.v", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), privateEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return start(t, cmd)
}

func makePrivate(t *testing.T) {
	t.Helper()
	// Nothing goes to the machine, but the host's mounts are shared with those who follow
	// them, as init makes them (systemd(1)).
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(hostAddr.String() + "/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, addr); err != nil {
		t.Fatal(err)
	}
	// A way to the world, which ends here: the host's address towards it is hostAddr.
	for _, r := range []*netlink.Route{
		{LinkIndex: lo.Attrs().Index, Src: hostAddr.AsSlice(), Scope: netlink.SCOPE_LINK},
		{Dst: &net.IPNet{IP: unroutable.AsSlice(), Mask: net.CIDRMask(32, 32)}, Type: unix.RTN_UNREACHABLE},
	} {
		if err := netlink.RouteAdd(r); err != nil {
			t.Fatalf("add route %v: %v", r, err)
		}
	}
	setResolvConf(t, "")
}

// allowPing lets the engine ping on a private host. Nobody can on a fresh one.
func allowPing(t *testing.T) {
	t.Helper()
	// In a user namespace only the groups that it has can be named.
	groups := "0 0"
	if canMap() {
		groups = "0 2147483647"
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(groups), 0o644); err != nil {
		t.Fatal(err)
	}
}

// canMap tells whether the process's user namespace has more than one group.
func canMap() bool {
	b, err := os.ReadFile("/proc/self/gid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}

// setResolvConf replaces the private host's /etc/resolv.conf.
func setResolvConf(t *testing.T, content string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		t.Skipf("no /etc/resolv.conf to bind over: %v", err)
	}
	_ = unix.Unmount(target, unix.MNT_DETACH) // the one before
	if err := unix.Mount(path, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	// slirp4netns' sandbox would unmount it here, too, with its own root.
	if err := unix.Mount("", target, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}
