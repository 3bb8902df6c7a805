package confine

import (
	"fmt"
	"path/filepath"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"slipway/netstack/confine/filter"
)

// Sandbox takes from a monitor, and from the engines that it starts afterwards, what
// they can do without: no_new_privs, no capability but CAP_NET_BIND_SERVICE, and no
// file but what is readable below the directories given, this program itself, and the
// removal of sockets beside unixSocket, where that is not empty. It works on the whole
// process and cannot be undone. Landlock is best effort, as in Lock.
func Sandbox(readable []string, unixSocket string) error {
	if err := allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	all := landlock.V11
	cfg, err := landlock.NewConfig(all.HandledAccessFS, all.Scoped)
	if err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	rules := []landlock.Rule{
		landlock.RODirs(readable...).IgnoreIfMissing(),
		landlock.ROFiles("/proc/self/exe"),
		landlock.RWFiles("/dev/null"), // the standard input of what os/exec starts
	}
	if unixSocket != "" {
		rules = append(rules, landlock.PathAccess(ll.AccessFSRemoveFile, filepath.Dir(unixSocket)))
	}
	if err := cfg.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	return dropCapabilities(1 << unix.CAP_NET_BIND_SERVICE)
}

// denied are the calls that a monitor which has made its device needs no more, and that
// are ways out: other processes, namespaces, mounts, and the kernel's larger surfaces.
var denied = []string{
	"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "process_madvise",
	"setns", "unshare", "chroot", "pivot_root", "mount", "umount2", "move_mount", "open_tree", "fsopen", "fsconfig",
	"fsmount", "fspick", "mount_setattr", "open_by_handle_at", "name_to_handle_at",
	"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff",
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
	"add_key", "request_key", "keyctl", "acct", "quotactl", "lookup_dcookie", "syslog", "settimeofday",
}

// DenyCalls refuses the monitor, and the engines that it starts afterwards, system calls
// that they do not need, with EPERM. It works on the whole process and cannot be undone.
func DenyCalls() error {
	return filter.Load(seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls:      []seccomp.SyscallGroup{{Action: seccomp.ActionErrno, Names: denied}},
	}, seccomp.FilterFlagTSync)
}
