package main

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// keepDescriptors keeps what the caller had open, beside the standard streams, from all
// programs that this one starts: who takes over an engine could read and write it. This
// process itself may be told to use one by its number (--ready-fd) or by a path
// (/dev/fd/63), so it leaves them open. The descriptors of what it hands on have their own
// ways: exec.Cmd.ExtraFiles, and monitor.Keep. The standard streams are always open: where
// the caller has closed one, the Go runtime has put /dev/null in its place.
func keepDescriptors() error {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep the caller's descriptors from other programs: close_range: %w; Linux 5.12 or newer is needed", err)
	}
	return nil
}
