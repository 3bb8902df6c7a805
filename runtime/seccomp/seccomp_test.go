package seccomp

import (
	"encoding/json"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	sb "github.com/elastic/go-seccomp-bpf"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const childEnv = "SLIPWAY_TEST_SECCOMP"

func TestMain(m *testing.M) {
	if bounding, ok := os.LookupEnv(childEnv); ok {
		os.Exit(filtered(strings.Fields(bounding)))
	}
	os.Exit(m.Run())
}

// filtered makes calls behind the filter and prints what came of them.
func filtered(bounding []string) int {
	runtime.LockOSThread()
	p, err := Default(bounding)
	if err == nil {
		err = Load(p)
	}
	if err != nil {
		os.Stderr.WriteString(err.Error())
		return 1
	}
	raw := func(nr, a uintptr) string {
		_, _, e := unix.RawSyscall(nr, a, 0, 0)
		return unix.ErrnoName(e)
	}
	got := map[string]string{
		"clone3":         raw(unix.SYS_CLONE3, 0),
		"unshare user":   raw(unix.SYS_UNSHARE, unix.CLONE_NEWUSER),
		"keyctl":         raw(unix.SYS_KEYCTL, 0),
		"mount":          raw(unix.SYS_MOUNT, 0),
		"bpf":            raw(unix.SYS_BPF, ^uintptr(0)),
		"io_uring":       raw(unix.SYS_IO_URING_SETUP, 0),
		"socket vsock":   raw(unix.SYS_SOCKET, unix.AF_VSOCK),
		"socket inet":    raw(unix.SYS_SOCKET, unix.AF_INET), // type 0 is the kernel's refusal
		"personality 0":  raw(unix.SYS_PERSONALITY, 0),
		"personality ad": raw(unix.SYS_PERSONALITY, 0x40000), // ADDR_NO_RANDOMIZE
		"getpid":         raw(unix.SYS_GETPID, 0),
	}
	if err := json.NewEncoder(os.Stdout).Encode(got); err != nil {
		return 1
	}
	return 0
}

func observe(t *testing.T, bounding string) map[string]string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+bounding)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var got map[string]string
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// The kernel's answers, not the filter's text: errno values of the profile
// pass through a library that does not promise it.
func TestDefault(t *testing.T) {
	want := map[string]string{
		"clone3": "ENOSYS", "unshare user": "EPERM", "keyctl": "EPERM", "mount": "EPERM", "bpf": "EPERM", "io_uring": "EPERM",
		"socket vsock": "EPERM", "socket inet": "ESOCKTNOSUPPORT", "personality 0": "", "personality ad": "EPERM", "getpid": "",
	}
	if diff := cmp.Diff(want, observe(t, "CAP_CHOWN CAP_SETUID")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A capability opens the calls that need it, and no others.
func TestDefaultWithAdmin(t *testing.T) {
	got := observe(t, "CAP_SYS_ADMIN")
	for name, want := range map[string]string{"clone3": "EINVAL", "mount": "EFAULT", "keyctl": "EPERM", "io_uring": "EPERM"} {
		// Without the capability itself the kernel may refuse first; ENOSYS and EPERM would be the filter's for clone3.
		if name == "mount" && got[name] == "EPERM" && os.Geteuid() != 0 {
			continue
		}
		if got[name] != want {
			t.Errorf("%s: %s, want %s", name, got[name], want)
		}
	}
}

func TestConvertRefuses(t *testing.T) {
	nosys := uint(unix.ENOSYS)
	good := specs.LinuxSyscall{Names: []string{"read", "no_such_call"}, Action: specs.ActAllow}
	for name, p := range map[string]specs.LinuxSeccomp{
		"default allow":  {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{good}},
		"default nosys":  {DefaultAction: specs.ActErrno, DefaultErrnoRet: &nosys, Syscalls: []specs.LinuxSyscall{good}},
		"unknown action": {DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActNotify}}},
		"masked with value": {DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{
			Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: specs.OpMaskedEqual, Value: 3, ValueTwo: 1}},
		}}},
		"one argument twice": {DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{
			Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: specs.OpEqualTo}, {Op: specs.OpNotEqual}},
		}}},
		"unknown operator": {DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{
			Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: "SCMP_CMP_WISH"}},
		}}},
	} {
		if got, err := convert(&p); err == nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
	p := specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{good}}
	got, err := convert(&p)
	want := sb.Policy{DefaultAction: sb.ActionErrno, Syscalls: []sb.SyscallGroup{{Names: []string{"read"}, Action: sb.ActionAllow}}}
	if diff := cmp.Diff(want.Syscalls[0].Names, got.Syscalls[0].Names); err != nil || diff != "" {
		t.Errorf("%v, (-want +got)\n%s", err, diff)
	}
}
