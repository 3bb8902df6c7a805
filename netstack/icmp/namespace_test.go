package icmp

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain gives an ordinary user a user namespace, in which it can make the
// network namespaces that the tests need.
func TestMain(m *testing.M) {
	const again = "SLIPWAY_ICMP_TEST_IN_NAMESPACE"
	if os.Getuid() == 0 || os.Getenv(again) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), again+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	}
	os.Exit(m.Run()) // the tests say what is missing
}

// everybody lets the tests' group have ping sockets; nobody is the kernel's default, which an
// ordinary user's namespace cannot set.
const (
	everybody = "0 0"
	nobody    = ""
)

// namespace moves the test's thread into a new network namespace with a working
// loopback. The thread is not used again: it ends with the test.
func namespace(t *testing.T, groups string) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespace for the test: %v", err)
	}
	if groups != nobody {
		allow(t, groups)
	}
	flags(t, "lo")
}

func allow(t *testing.T, groups string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(groups), 0); err != nil {
		t.Skipf("cannot set ping_group_range in a network namespace: %v", err)
	}
}

// flags brings an interface up.
func flags(t *testing.T, name string) {
	t.Helper()
	ifreq(t, name, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil })
}

func ifreq(t *testing.T, name string, request uint, set func(*unix.Ifreq) error) {
	t.Helper()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(set(r), unix.IoctlIfreq(s, request, r)); err != nil {
		t.Fatalf("set up %s: %v", name, err)
	}
}
