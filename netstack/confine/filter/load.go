package filter

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ErrNotSupported is wrapped when the kernel has no seccomp filters.
var ErrNotSupported = errors.New("seccomp filters are not supported by this kernel (CONFIG_SECCOMP_FILTER)")

// Load loads the policy into the calling thread, or with seccomp.FilterFlagTSync
// into all threads of the process, and sets no_new_privs on the same. The caller
// of a load into one thread has locked it.
func Load(p seccomp.Policy, flags seccomp.FilterFlag) error {
	code, err := Assemble(p)
	if err != nil {
		return err
	}
	raw, err := bpf.Assemble(code)
	if err != nil {
		return fmt.Errorf("seccomp policy: %w", err)
	}
	program := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	// Without privilege only a thread with no_new_privs may load; TSYNC hands it on.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&f)))
	switch {
	case errno == unix.ENOSYS || errno == unix.EINVAL:
		return fmt.Errorf("%w: %w", ErrNotSupported, errno)
	case errno != 0:
		return fmt.Errorf("load seccomp filter: %w", errno)
	case thread != 0: // with TSYNC the one that has a filter of its own (seccomp(2))
		return fmt.Errorf("load seccomp filter: thread %d cannot take it: %w", thread, unix.EBUSY)
	}
	return nil
}
