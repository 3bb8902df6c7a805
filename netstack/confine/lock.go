package confine

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"

	"slipway/netstack/confine/filter"
)

// ErrNotSupported is wrapped when the lock-down cannot be put on all threads:
// the program was built with cgo, or the kernel has no seccomp filters.
var ErrNotSupported = errors.New("lock-down not supported")

// Lock locks the whole process down; see the package's description for what is
// left. It cannot be undone, and after an error the process is locked in part and
// should end.
func Lock() error {
	if err := NonDumpable(); err != nil {
		return err
	}
	if err := noNewPrivileges(); err != nil {
		return err
	}
	if err := dropCapabilities(0); err != nil {
		return err
	}
	if err := restrictPaths(); err != nil {
		return err
	}
	return filterCalls()
}

// noNewPrivileges sets no_new_privs on every thread.
func noNewPrivileges() error {
	err := allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
	// AllThreadsSyscall answers ENOTSUP in a cgo build, whatever the call.
	if errors.Is(err, syscall.ENOTSUP) {
		return fmt.Errorf("%w in a program built with cgo: build with CGO_ENABLED=0", ErrNotSupported)
	}
	if err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// allThreads makes a system call on every thread of the process. The runtime
// aborts the program when the results differ.
//
//go:uintptrescapes
func allThreads(trap, a1, a2, a3 uintptr) error {
	if _, _, e := syscall.AllThreadsSyscall(trap, a1, a2, a3); e != 0 {
		return e
	}
	return nil
}

// dropCapabilities empties all five sets but for what is in keep, a set of bits below
// 32, the bounding set first, as that needs CAP_SETPCAP (capabilities(7)).
func dropCapabilities(keep uint32) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, left [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if have[0].Effective&(1<<unix.CAP_SETPCAP) != 0 {
		for c := uintptr(0); ; c++ {
			// EINVAL ends the list: the kernel may know more than this program.
			on, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
			if errors.Is(err, unix.EINVAL) {
				break
			}
			if err != nil {
				return fmt.Errorf("read bounding capability %d: %w", c, err)
			}
			if on == 0 || c < 32 && keep&(1<<c) != 0 {
				continue
			}
			if err := allThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); err != nil {
				return fmt.Errorf("drop bounding capability %d: %w", c, err)
			}
		}
	}
	if err := allThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	left[0].Effective, left[0].Permitted = have[0].Effective&keep, have[0].Permitted&keep
	if err := allThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&left[0])), 0); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// restrictPaths handles every file-system right and every scope that the library
// knows and grants none. Network rights are left alone: they are by port only, and
// the engine connects anywhere.
func restrictPaths() error {
	all := landlock.V11
	cfg, err := landlock.NewConfig(all.HandledAccessFS, all.Scoped)
	if err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if err := cfg.BestEffort().Restrict(); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	return nil
}

// filterCalls loads the seccomp filter into all threads, and checks on each that it
// is there.
func filterCalls() error {
	err := filter.Load(policy(unix.Getpid()), seccomp.FilterFlagTSync)
	if errors.Is(err, filter.ErrNotSupported) {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	if err != nil {
		return err
	}
	mode, _, e := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_GET_SECCOMP, 0, 0)
	if e != 0 {
		return fmt.Errorf("check seccomp: %w", e)
	}
	if mode != seccompModeFilter {
		return fmt.Errorf("check seccomp: mode %d on some thread, want %d", mode, seccompModeFilter)
	}
	return nil
}

// seccompModeFilter is SECCOMP_MODE_FILTER of include/uapi/linux/seccomp.h.
const seccompModeFilter = 2
