package confine

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// NonDumpable forbids ptrace, pidfd_getfd and the files mem, fd and others below
// /proc/PID to everybody but root of the process's own user namespace (ptrace(2),
// PR_SET_DUMPABLE). Without it the root of a container that the same user started
// could take descriptors from the process. An exec sets the flag back.
func NonDumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("set non-dumpable: %w", err)
	}
	return nil
}
