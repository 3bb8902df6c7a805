//go:build !race

// With the race detector a sync.Pool forgets at random what it was given.

package relay

import (
	"runtime"
	"strings"
	"testing"
)

// allocated counts what the relay's goroutines have allocated since every allocation is
// profiled, in gVisor included.
func allocated(tb testing.TB) (objects int64) {
	tb.Helper()
	// A profile is of the last completed garbage collection.
	runtime.GC()
	runtime.GC()
	records := make([]runtime.MemProfileRecord, 10000)
	n, ok := runtime.MemProfile(records, true)
	if !ok {
		tb.Fatalf("%d places allocate, there is room for %d", n, len(records))
	}
	for _, r := range records[:n] {
		frames := runtime.CallersFrames(r.Stack())
		for more := true; more; {
			var f runtime.Frame
			if f, more = frames.Next(); strings.Contains(f.Function, "/relay.(*flow).") {
				objects += r.AllocObjects
				break
			}
		}
	}
	return objects
}

// TestRelayDoesNotAllocate: nothing for a piece of some 45 packets, pools apart that the
// garbage collector has emptied.
func TestRelayDoesNotAllocate(t *testing.T) {
	defer func(rate int) { runtime.MemProfileRate = rate }(runtime.MemProfileRate)
	runtime.MemProfileRate = 1
	const size, pieces = 64 << 10, 2000
	flows(t, size, func(name string, run func()) {
		for range 100 {
			run() // pools fill
		}
		before := allocated(t)
		for range pieces {
			run()
		}
		if n := allocated(t) - before; n >= pieces {
			t.Errorf("%s: %d allocations for %d pieces of %d bytes", name, n, pieces, size)
		} else {
			t.Logf("%s: %d allocations for %d pieces of %d bytes", name, n, pieces, size)
		}
	})
}
