package confine

import (
	"runtime"
	"slices"

	"github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// allowed are the calls that are safe with any arguments on the descriptors that
// the engine holds. Linux 5.11 and later decide them by a bitmap, without running
// the filter.
var allowed = []string{
	// The data path.
	"read", "write", "readv", "writev", "pread64", "pwrite64",
	"recvfrom", "sendto", "recvmsg", "sendmsg", "recvmmsg", "sendmmsg",
	"splice", "tee", "vmsplice", "shutdown", "close",
	"epoll_pwait", "epoll_pwait2", "epoll_ctl", "epoll_create1", "ppoll", "pselect6",
	"eventfd2", "pipe2", "timerfd_create", "timerfd_settime", "timerfd_gettime",
	"dup", "dup3", "fstat", "lseek",

	// Sockets; socket(2) itself is below.
	"bind", "connect", "listen", "accept", "accept4", "getsockname", "getpeername", "getsockopt", "setsockopt",

	// The Go runtime: memory, scheduling, time, signals to itself.
	"futex", "munmap", "mremap", "madvise", "mincore", "brk", "membarrier", "rseq",
	"sched_yield", "sched_getaffinity", "sched_getparam", "sched_getscheduler",
	"nanosleep", "clock_nanosleep", "clock_gettime", "clock_getres", "gettimeofday", "times",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "sigaltstack", "restart_syscall",
	"timer_create", "timer_settime", "timer_delete", "setitimer", "getitimer",
	"set_robust_list", "get_robust_list", "set_tid_address",
	"getrandom", "getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getrusage", "uname", "sysinfo",
	"exit", "exit_group",
}

// allowedHere are calls that other architectures do not have.
var allowedHere = map[string][]string{
	"amd64": {"poll", "select", "epoll_wait", "pipe", "dup2", "time", "arch_prctl", "getrlimit"},
	"arm64": {"getrlimit"},
}

// newFlags are the flags of clone(2) that make a namespace.
const newFlags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// policy is the allow-list for the process pid.
func policy(pid int) seccomp.Policy {
	groups := []seccomp.SyscallGroup{{
		Action: seccomp.ActionAllow,
		Names:  append(slices.Clone(allowed), allowedHere[runtime.GOARCH]...),
	}}
	// allow adds a group for the calls of one name whose arguments meet all conditions
	// of one of the alternatives.
	allow := func(name string, alternatives ...seccomp.ArgumentConditions) {
		g := seccomp.SyscallGroup{Action: seccomp.ActionAllow}
		for _, a := range alternatives {
			g.NamesWithCondtions = append(g.NamesWithCondtions, seccomp.NameWithConditions{Name: name, Conditions: a})
		}
		groups = append(groups, g)
	}

	allow("socket", sockets(unix.AF_INET, unix.IPPROTO_ICMP)...)
	allow("socket", sockets(unix.AF_INET6, unix.IPPROTO_ICMPV6)...)

	// A new thread, never a process or a namespace.
	allow("clone", seccomp.ArgumentConditions{bits(0, seccomp.BitsSet, unix.CLONE_THREAD), bits(0, seccomp.BitsNotSet, newFlags)})

	// Signals to itself: preemption, and the abort of a panic.
	allow("tgkill", oneOf(0, uint64(pid))...)
	allow("kill", oneOf(0, uint64(pid))...)

	// Questions about a socket's buffers (SIOCINQ and SIOCOUTQ have these numbers),
	// and about the TAP's name and flags.
	allow("ioctl", oneOf(1, unix.TIOCINQ, unix.TIOCOUTQ, unix.TUNGETIFF)...)

	// F_SETOWN and F_SETSIG would be a way to signal other processes.
	allow("fcntl", oneOf(1, unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_GETPIPE_SZ, unix.F_SETPIPE_SZ)...)

	// The runtime makes no code at run time.
	for _, name := range []string{"mmap", "mprotect"} {
		allow(name, seccomp.ArgumentConditions{bits(2, seccomp.BitsNotSet, unix.PROT_EXEC)})
	}

	// Its own limits. prctl: the runtime names its mappings, and Lock reads the mode.
	allow("prlimit64", oneOf(0, 0)...)
	allow("prctl", oneOf(0, unix.PR_SET_VMA, unix.PR_GET_SECCOMP)...)

	return seccomp.Policy{
		DefaultAction: seccomp.ActionErrno, // EPERM
		Syscalls:      groups,
	}
}

// sockets are the sockets of a family: TCP, UDP, and ping sockets, which are DGRAM
// sockets of ICMP. SOCK_NONBLOCK and SOCK_CLOEXEC are bits of the type.
func sockets(family, icmp uint64) []seccomp.ArgumentConditions {
	const flags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	var out []seccomp.ArgumentConditions
	for _, s := range []struct{ typ, proto uint64 }{
		{unix.SOCK_STREAM, 0}, {unix.SOCK_STREAM, unix.IPPROTO_TCP},
		{unix.SOCK_DGRAM, 0}, {unix.SOCK_DGRAM, unix.IPPROTO_UDP}, {unix.SOCK_DGRAM, icmp},
	} {
		// SOCK_STREAM and SOCK_DGRAM are one bit each, 1 and 2.
		out = append(out, seccomp.ArgumentConditions{
			equal(0, family), bits(1, seccomp.BitsSet, s.typ), bits(1, seccomp.BitsNotSet, ^(s.typ | flags)), equal(2, s.proto),
		})
	}
	return out
}

func equal(arg uint32, value uint64) seccomp.Condition {
	return seccomp.Condition{Argument: arg, Operation: seccomp.Equal, Value: value}
}

func bits(arg uint32, op seccomp.Operation, mask uint64) seccomp.Condition {
	return seccomp.Condition{Argument: arg, Operation: op, Value: mask}
}

// oneOf lists the values that an argument may have.
func oneOf(arg uint32, values ...uint64) []seccomp.ArgumentConditions {
	var out []seccomp.ArgumentConditions
	for _, v := range values {
		out = append(out, seccomp.ArgumentConditions{equal(arg, v)})
	}
	return out
}
