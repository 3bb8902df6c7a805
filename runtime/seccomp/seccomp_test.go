package seccomp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// capsEnv makes the test binary a process under the filter for these capabilities.
const capsEnv = "SLIPWAY_TEST_CAPS"

func TestMain(m *testing.M) {
	if list, ok := os.LookupEnv(capsEnv); ok {
		os.Unsetenv(capsEnv)
		if err := filtered(strings.Fields(list)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// calls are looked at under the filter. Where the filter lets one through, the
// kernel answers with another error or with success, and nothing happens.
var calls = []struct {
	name string
	args [4]uintptr
	trap uintptr
	want string
}{
	// An errno of the rule's own: glibc falls back to clone.
	{"clone3", [4]uintptr{}, unix.SYS_CLONE3, "ENOSYS"},
	// The kernel refuses CLONE_FS with a new user or mount namespace, and CLONE_SIGHAND
	// without CLONE_VM: EINVAL (clone(2)).
	{"clone NEWUSER", [4]uintptr{unix.CLONE_NEWUSER | unix.CLONE_FS}, unix.SYS_CLONE, "EPERM"},
	{"clone NEWNS", [4]uintptr{unix.CLONE_NEWNS | unix.CLONE_FS}, unix.SYS_CLONE, "EPERM"},
	{"clone", [4]uintptr{unix.CLONE_SIGHAND}, unix.SYS_CLONE, "EINVAL"},
	{"unshare NEWUSER", [4]uintptr{unix.CLONE_NEWUSER}, unix.SYS_UNSHARE, "EPERM"},
	{"mount", [4]uintptr{}, unix.SYS_MOUNT, "EPERM"},
	{"keyctl", [4]uintptr{}, unix.SYS_KEYCTL, "EPERM"},
	{"bpf", [4]uintptr{}, unix.SYS_BPF, "EPERM"},
	{"io_uring_setup", [4]uintptr{}, unix.SYS_IO_URING_SETUP, "EPERM"},
	{"socket AF_VSOCK", [4]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}, unix.SYS_SOCKET, "EPERM"},
	{"socket AF_INET", [4]uintptr{unix.AF_INET, unix.SOCK_STREAM}, unix.SYS_SOCKET, "0"},
	{"socket AF_NETLINK", [4]uintptr{unix.AF_NETLINK, unix.SOCK_RAW}, unix.SYS_SOCKET, "0"},
	{"personality PER_LINUX", [4]uintptr{0}, unix.SYS_PERSONALITY, "0"},
	{"personality query", [4]uintptr{0xffffffff}, unix.SYS_PERSONALITY, "0"},
	{"personality ADDR_NO_RANDOMIZE", [4]uintptr{0x40000}, unix.SYS_PERSONALITY, "EPERM"},
	{"personality READ_IMPLIES_EXEC", [4]uintptr{0x400000}, unix.SYS_PERSONALITY, "EPERM"},
	{"personality in the upper half", [4]uintptr{1 << 32}, unix.SYS_PERSONALITY, "EPERM"},
	{"getpid", [4]uintptr{}, unix.SYS_GETPID, "0"},
}

// filtered makes the calls, prints what came of each, and becomes a shell.
func filtered(bounding []string) error {
	runtime.LockOSThread()
	p, err := Default(bounding)
	if err != nil {
		return err
	}
	if err := Load(p); err != nil {
		return err
	}
	for _, c := range calls {
		_, _, errno := unix.RawSyscall6(c.trap, c.args[0], c.args[1], c.args[2], c.args[3], 0, 0)
		result := "0"
		if errno != 0 {
			result = unix.ErrnoName(errno)
		}
		fmt.Printf("%s=%s\n", c.name, result)
	}
	return unix.Exec("/bin/sh", []string{"sh", "-c", "echo shell=$(echo runs | cat)"}, nil)
}

func underFilter(t *testing.T, bounding ...string) map[string]string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), capsEnv+"="+strings.Join(bounding, " "))
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, result, _ := strings.Cut(strings.TrimSpace(line), "=")
		got[name] = result
	}
	return got
}

func TestDefault(t *testing.T) {
	want := map[string]string{"shell": "runs"}
	for _, c := range calls {
		want[c.name] = c.want
	}
	if diff := cmp.Diff(want, underFilter(t, "CAP_CHOWN", "CAP_NET_RAW")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A capability brings the calls that it is for; they now fail in the kernel.
func TestDefaultWithCapability(t *testing.T) {
	got := underFilter(t, "CAP_SYS_ADMIN")
	for name, refused := range map[string]string{"clone3": "ENOSYS", "clone NEWUSER": "EPERM", "unshare NEWUSER": "EPERM", "bpf": "EPERM"} {
		if got[name] == refused {
			t.Errorf("%s is %s with CAP_SYS_ADMIN, too", name, got[name])
		}
	}
	for name, want := range map[string]string{"keyctl": "EPERM", "io_uring_setup": "EPERM", "socket AF_INET": "0", "shell": "runs"} {
		if got[name] != want {
			t.Errorf("%s is %s, want %s", name, got[name], want)
		}
	}
}
