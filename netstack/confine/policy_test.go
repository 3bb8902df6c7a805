package confine

import (
	"encoding/binary"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"slipway/netstack/confine/filter"
)

// call is a system call as a filter sees it: struct seccomp_data of
// include/uapi/linux/seccomp.h.
type call struct {
	nr   int
	arch uint32
	args [6]uint64
}

// packet is the call in the byte order of the interpreter, which is the network's;
// the program reads the high half of an argument at its address plus four.
func (c call) packet() []byte {
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b[0:], uint32(c.nr))
	binary.BigEndian.PutUint32(b[4:], c.arch)
	for i, a := range c.args {
		binary.BigEndian.PutUint32(b[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(b[20+8*i:], uint32(a>>32))
	}
	return b
}

const pid = 4711

func decider(t *testing.T) (decide func(call) bool, info *arch.Info) {
	t.Helper()
	p := policy(pid)
	program, err := filter.Assemble(p)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	if info, err = arch.GetInfo(""); err != nil {
		t.Fatal(err)
	}
	return func(c call) bool {
		if c.arch == 0 {
			c.arch = uint32(info.ID)
		}
		out, err := vm.Run(c.packet())
		if err != nil {
			t.Fatal(err)
		}
		switch uint32(out) {
		case unix.SECCOMP_RET_ALLOW:
			return true
		case unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM), unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS):
			return false
		}
		t.Fatalf("call %d: the filter returns %#x", c.nr, out)
		return false
	}, info
}

// Of all calls that the architecture has, those that are listed are allowed with any
// arguments, and no others.
func TestEveryCall(t *testing.T) {
	decide, info := decider(t)
	always := map[string]bool{}
	for _, list := range [][]string{allowed, allowedHere[info.Name], allowedHere["amd64"], allowedHere["arm64"]} {
		for _, name := range list {
			always[name] = true
		}
	}
	weird := [6]uint64{1 << 40, 1 << 40, 1<<40 | unix.PROT_EXEC, 1 << 40, 1 << 40, 1 << 40}
	for nr, name := range info.SyscallNumbers {
		if got := decide(call{nr: nr, args: weird}); got != always[name] {
			t.Errorf("%s: allowed %v, want %v", name, got, always[name])
		}
		if decide(call{nr: nr, arch: uint32(info.ID) ^ 1}) {
			t.Errorf("%s of another architecture is allowed", name)
		}
	}
	if info.ID == arch.X86_64.ID && decide(call{nr: int(arch.X32.SeccompMask) | info.SyscallNames["read"]}) {
		t.Error("the x32 calls are allowed")
	}
}

func TestArguments(t *testing.T) {
	decide, info := decider(t)
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	tests := []struct {
		name string
		args [6]uint64
		want bool
	}{
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_STREAM, 0}, true},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_STREAM | flags, unix.IPPROTO_TCP}, true},
		{"socket", [6]uint64{unix.AF_INET6, unix.SOCK_STREAM | unix.SOCK_CLOEXEC, 0}, true},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_DGRAM | flags, unix.IPPROTO_UDP}, true},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, true},
		{"socket", [6]uint64{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6}, true},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6}, false},
		{"socket", [6]uint64{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, false},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, false},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_UDP}, false},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_RAW, 0}, false},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_SEQPACKET, 0}, false},
		{"socket", [6]uint64{unix.AF_INET, 0, 0}, false},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_STREAM | 1<<20, 0}, false},
		{"socket", [6]uint64{unix.AF_INET | 1<<32, unix.SOCK_STREAM, 0}, false},
		{"socket", [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, false},
		{"socket", [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW, 0}, false},
		{"clone", [6]uint64{unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD | unix.CLONE_SETTLS}, true},
		{"clone", [6]uint64{uint64(unix.SIGCHLD)}, false},
		{"clone", [6]uint64{unix.CLONE_THREAD | unix.CLONE_NEWNET}, false},
		{"kill", [6]uint64{pid, 6}, true},
		{"kill", [6]uint64{pid + 1, 6}, false},
		{"kill", [6]uint64{^uint64(0), 9}, false},
		{"tgkill", [6]uint64{pid, 1, 23}, true},
		{"tgkill", [6]uint64{1, 1, 23}, false},
		{"ioctl", [6]uint64{3, unix.TIOCINQ}, true},
		{"ioctl", [6]uint64{3, unix.TIOCOUTQ}, true},
		{"ioctl", [6]uint64{3, unix.TUNSETIFF}, false},
		{"ioctl", [6]uint64{0, unix.TIOCSTI}, false},
		{"ioctl", [6]uint64{0, unix.TIOCLINUX}, false},
		{"fcntl", [6]uint64{3, unix.F_DUPFD_CLOEXEC}, true},
		{"fcntl", [6]uint64{3, unix.F_SETFL}, true},
		{"fcntl", [6]uint64{3, unix.F_SETPIPE_SZ}, true},
		{"fcntl", [6]uint64{3, unix.F_SETOWN}, false},
		{"fcntl", [6]uint64{3, unix.F_SETSIG}, false},
		{"mmap", [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE}, true},
		{"mmap", [6]uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, false},
		{"mprotect", [6]uint64{0, 4096, unix.PROT_EXEC}, false},
		{"prctl", [6]uint64{unix.PR_SET_VMA}, true},
		{"prctl", [6]uint64{unix.PR_SET_DUMPABLE, 1}, false},
		{"prlimit64", [6]uint64{0, unix.RLIMIT_NOFILE}, true},
		{"prlimit64", [6]uint64{1, unix.RLIMIT_NOFILE}, false},
	}
	for _, tt := range tests {
		nr, ok := info.SyscallNames[tt.name]
		if !ok {
			t.Fatalf("no call %s", tt.name)
		}
		if got := decide(call{nr: nr, args: tt.args}); got != tt.want {
			t.Errorf("%s%#x: allowed %v, want %v", tt.name, tt.args, got, tt.want)
		}
	}
}

// Both architectures know every name; an unknown one would fail only at run time.
func TestNames(t *testing.T) {
	for goarch, info := range map[string]*arch.Info{"amd64": arch.X86_64, "arm64": arch.AARCH64} {
		for _, list := range [][]string{allowed, allowedHere[goarch], {"socket", "clone", "tgkill", "kill", "ioctl", "fcntl", "mmap", "mprotect", "prlimit64", "prctl"}} {
			for _, name := range list {
				if _, ok := info.SyscallNames[name]; !ok {
					t.Errorf("%s has no call %s", goarch, name)
				}
			}
		}
	}
}
