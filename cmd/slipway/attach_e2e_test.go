//go:build e2e

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"slipway/netstack/netns"
	"slipway/netstack/netns/nstest"
)

// newTarget starts an agent in a user and a network namespace of its own, as unshare
// -Urn makes them; root gives them to an id that nobody has.
func newTarget(t *testing.T) *agent {
	t.Helper()
	uid, gid := os.Getuid(), os.Getgid()
	attr := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
	}
	// The root of a user namespace that stands for a host has no other id to give.
	if uid == 0 && canMap() {
		uid, gid = nstest.UnprivilegedID, nstest.UnprivilegedID
		attr.GidMappingsEnableSetgroups = true
	}
	attr.Credential = &syscall.Credential{NoSetGroups: !attr.GidMappingsEnableSetgroups} // root inside
	attr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
	return targetWith(t, attr)
}

func targetWith(t *testing.T, attr *syscall.SysProcAttr) *agent {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), helperEnv+"=agent")
	cmd.SysProcAttr = attr
	return startAgent(t, cmd)
}

// attachment is a running slipway attach.
type attachment struct {
	*process
	exit io.Closer // its closing ends the network
}

// attachTo attaches to a namespace, and returns once the network says it is ready.
func attachTo(t *testing.T, args ...string) *attachment {
	t.Helper()
	exitR, exitW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exitW.Close() })
	cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), append([]string{"attach", "--ready-fd", "3", "--exit-fd", "4"}, args...)...)
	p := startReady(t, cmd, exitR)
	exitR.Close()
	return &attachment{process: p, exit: exitW}
}

// end closes the exit descriptor and checks that nothing is left.
func (a *attachment) end() {
	a.t.Helper()
	children := descendants(a.t, a.Process.Pid)
	a.exit.Close()
	a.ended(children)
}

func (a *attachment) ended(children map[int]string) {
	a.t.Helper()
	if status := a.wait(); status != 0 {
		a.t.Errorf("exit status %d, want 0: %s", status, &a.stderr)
	}
	if len(children) == 0 {
		a.t.Error("there was no engine")
	}
	for pid, name := range children {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			a.t.Errorf("%s (%d) outlives the network: %v", name, pid, err)
		}
	}
}

// served checks that the target has a network, both ways.
func served(t *testing.T, target *agent, published int) {
	t.Helper()
	target.do("talk", at(gateway4, hostEcho(t, "tcp4", "127.0.0.1:0")), 0, 100000)
	target.do("talk", at(gateway6, hostEcho(t, "tcp6", "[::1]:0")), 0, 100000)
	target.do("packet", "udp", at(gateway4, hostEcho(t, "udp4", "127.0.0.1:0")), 1000)
	if published != 0 {
		if err := echoed("tcp", at("127.0.0.1", published), 100000, 0); err != nil {
			t.Errorf("published port: %v", err)
		}
	}
}

// unserved checks that the target has none.
func unserved(t *testing.T, target *agent) {
	t.Helper()
	if r := target.try("dial", "tcp", at(gateway4, 80)); r.Errno != unix.ENETUNREACH {
		t.Errorf("without a network: %q, want %v", r.Err, unix.ENETUNREACH)
	}
}

// TestAttach: a namespace that somebody else made gets a network, by any of its names,
// and loses it in order.
func TestAttach(t *testing.T) {
	for _, tt := range []struct {
		name string
		args func(pid string) []string
	}{
		{"pid", func(pid string) []string { return []string{"--pid", pid} }},
		{"netns", func(pid string) []string { return []string{"--netns", "/proc/" + pid + "/ns/net"} }},
		{"netns and userns", func(pid string) []string {
			return []string{"--netns", "/proc/" + pid + "/ns/net", "--userns", "/proc/" + pid + "/ns/user"}
		}},
		{"plain frames", func(pid string) []string { return []string{"--pid", pid, "--offload", "off"} }},
		{"another network", func(pid string) []string { return []string{"--pid", pid, "--mtu", "9000", "--publish-path", "tap"} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := newTarget(t)
			unserved(t, target)
			target.do("echo", "tcp", ":80")
			port := freeTCP(t)
			a := attachTo(t, append(tt.args(strconv.Itoa(target.Process.Pid)),
				"--host-access", "loopback", "-p", at("127.0.0.1", port)+":80")...)
			served(t, target, port)
			a.end()
			unserved(t, target)
		})
	}
}

// TestAttachCIDR: the network can have another address.
func TestAttachCIDR(t *testing.T) {
	target := newTarget(t)
	a := attachTo(t, "--pid", strconv.Itoa(target.Process.Pid), "--host-access", "loopback", "--cidr", "10.77.0.0/16")
	target.do("talk", at("10.77.0.2", hostEcho(t, "tcp4", "127.0.0.1:0")), 0, 1000)
	a.end()
}

// TestAttachToMountedNamespace: the namespace may have no process, only a file, as ip
// netns makes it; its owner may be the caller's own user namespace.
func TestAttachToMountedNamespace(t *testing.T) {
	if !onPrivateHost(t) {
		return
	}
	for _, tt := range []struct {
		name   string
		target func() *agent
	}{
		{"of another user namespace", func() *agent { return newTarget(t) }},
		{"of the own user namespace", func() *agent {
			return targetWith(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := tt.target()
			file := filepath.Join(t.TempDir(), "net")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount(fmt.Sprintf("/proc/%d/ns/net", target.Process.Pid), file, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Unmount(file, unix.MNT_DETACH) }()
			a := attachTo(t, "--netns", file, "--host-access", "loopback")
			served(t, target, 0)
			a.end()
			unserved(t, target)
		})
	}
}

// TestAttachEndsBySignal: Ctrl-C and SIGTERM end the network in order.
func TestAttachEndsBySignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		target := newTarget(t)
		a := attachTo(t, "--pid", strconv.Itoa(target.Process.Pid))
		children := descendants(t, a.Process.Pid)
		if err := a.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		a.ended(children)
		unserved(t, target)
	}
}

// TestAttachToPersistentTAP: a TAP device that exists already is used, and is still
// there afterwards.
func TestAttachToPersistentTAP(t *testing.T) {
	for _, offload := range []string{"auto", "off"} {
		t.Run("offload="+offload, func(t *testing.T) {
			target := newTarget(t)
			before := persistentTAP(t, target.Process.Pid)
			for range 2 {
				a := attachTo(t, "--pid", strconv.Itoa(target.Process.Pid), "--host-access", "loopback", "--offload", offload)
				served(t, target, 0)
				a.end()
			}
			after := tapIndex(t, target.Process.Pid)
			if after != before {
				t.Errorf("the device had index %d, it has %d", before, after)
			}
		})
	}
}

// persistentTAP makes tap0 in the namespaces of a process, like ip tuntap add mode tap,
// and returns its index.
func persistentTAP(t *testing.T, pid int) int {
	t.Helper()
	tun := openTAP(t, pid)
	defer tun.Close()
	if err := unix.IoctlSetInt(int(tun.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		t.Fatal(err)
	}
	return tapIndex(t, pid)
}

// tapIndex is the index of tap0 in the namespace of a process, 0 when there is none.
func tapIndex(t *testing.T, pid int) int {
	t.Helper()
	space, err := netns.FromPID(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	h, err := space.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName("tap0")
	if err != nil {
		return 0
	}
	return link.Attrs().Index
}

// TestAttachErrors: what cannot be attached to is named, with status 1, and who has a
// network keeps it.
func TestAttachErrors(t *testing.T) {
	target := newTarget(t)
	pid := strconv.Itoa(target.Process.Pid)
	a := attachTo(t, "--pid", pid, "--host-access", "loopback")
	served(t, target, 0)

	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	dead := strconv.Itoa(gone.Process.Pid)
	port := freeTCP(t)
	go echoStreams(hostListen(t, "tcp", at("127.0.0.1", port)))
	for _, tt := range []struct {
		args []string
		says []string
	}{
		{[]string{"--pid", dead}, []string{dead}},
		{[]string{"--pid", "0"}, []string{"pid 0", "positive"}},
		{[]string{"--pid", "x"}, []string{"pid", "x"}},
		{[]string{}, []string{"pid", "netns"}},
		{[]string{"--pid", pid, "--netns", "/proc/" + pid + "/ns/net"}, []string{"pid", "netns"}},
		{[]string{"--netns", "/nowhere"}, []string{"/nowhere"}},
		{[]string{"--netns", "/dev/null"}, []string{"/dev/null", "network namespace"}},
		{[]string{"--netns", "/proc/" + pid + "/ns/user"}, []string{"network namespace"}},
		{[]string{"--netns", "/proc/" + pid + "/ns/net", "--userns", "/proc/" + pid + "/ns/net"}, []string{"user namespace"}},
		{[]string{"--pid", pid, "--ready-fd", "99"}, []string{"--ready-fd 99"}},
		{[]string{"--pid", pid, "--exit-fd", "99"}, []string{"--exit-fd 99"}},
		{[]string{"--pid", pid, "--mtu", "100"}, []string{"MTU 100"}},
		{[]string{"--pid", pid, "-p", at("127.0.0.1", port) + ":80"}, []string{strconv.Itoa(port), "in use"}},
		{[]string{"--pid", pid}, []string{"tap0", "busy"}},
	} {
		p := slipway(t, append([]string{"attach"}, tt.args...)...)
		if status := p.wait(); status != 1 {
			t.Errorf("attach %q: exit status %d, want 1", tt.args, status)
		}
		stderr := strings.TrimSpace(p.stderr.String())
		if strings.Contains(stderr, "\n") {
			t.Errorf("attach %q: more than one line: %s", tt.args, stderr)
		}
		for _, word := range tt.says {
			if !strings.Contains(stderr, word) {
				t.Errorf("attach %q: it does not say %q: %s", tt.args, word, stderr)
			}
		}
		t.Logf("attach %q: %s", tt.args, stderr)
	}
	served(t, target, 0)
	a.end()
}
