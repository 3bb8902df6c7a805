package confine

import (
	"fmt"
	"os"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"slipway/netstack/confine/filter"
)

// Restrict takes from a monitor, and from the engines that it starts afterwards, what
// they can do without: no_new_privs, no capability but CAP_NET_BIND_SERVICE in any set,
// and no file but to read what is below the root, which is Root's, and the removal of
// files in the directory removable, where that is not nil. It works on the whole process
// and cannot be undone. Landlock is best effort, as in Lock. The current directory is /
// afterwards.
func Restrict(removable *os.File) error {
	if err := noNewPrivileges(); err != nil {
		return err
	}
	all := landlock.V11
	cfg, err := landlock.NewConfig(all.HandledAccessFS, all.Scoped)
	if err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	rules := []landlock.Rule{landlock.RODirs("/")}
	if removable != nil {
		// It may lie outside of the root, where no other path than this leads to it.
		if err := unix.Fchdir(int(removable.Fd())); err != nil {
			return fmt.Errorf("enter %s: %w", removable.Name(), err)
		}
		rules = append(rules, landlock.PathAccess(ll.AccessFSRemoveFile, "."))
	}
	if err := cfg.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter /: %w", err)
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
