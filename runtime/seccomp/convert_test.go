package seccomp

import (
	"testing"

	sb "github.com/elastic/go-seccomp-bpf"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

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
