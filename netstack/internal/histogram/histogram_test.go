package histogram

import (
	"math"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestObserve(t *testing.T) {
	// The bounds are 1/4, 1/2, 1, 2 and 4 s.
	tests := []struct {
		name string
		d    time.Duration
		want int // bucket
	}{
		{"negative", -time.Second, 0},
		{"nothing", 0, 0},
		{"far below", time.Nanosecond, 0},
		{"lowest bound", 250 * time.Millisecond, 0},
		{"above it", 250*time.Millisecond + 1, 1},
		{"below a bound", time.Second - 1, 2},
		{"a bound", time.Second, 2},
		{"above a bound", time.Second + 1, 3},
		{"highest bound", 4 * time.Second, 4},
		{"above all", 4*time.Second + 1, 5},
		{"far above all", math.MaxInt64, 5},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := New(-2, 2)
			h.Observe(tt.d)
			want := Counts{Bounds: []float64{0.25, 0.5, 1, 2, 4}, Counts: make([]uint64, 6), Sum: max(tt.d, 0).Seconds()}
			want.Counts[tt.want] = 1
			if diff := cmp.Diff(want, h.Counts()); diff != "" {
				t.Errorf("counts of %s (-want +got):\n%s", tt.d, diff)
			}
		})
	}
}

func TestObserveTogether(t *testing.T) {
	const each = 1000
	h := New(-13, 5)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range each {
				h.Observe(time.Duration(1+i) * time.Millisecond)
			}
		})
	}
	wg.Wait()
	var n uint64
	c := h.Counts()
	for _, b := range c.Counts {
		n += b
	}
	if n != 8*each || c.Sum != 36 {
		t.Errorf("%d durations of %g s, want %d of 36 s", n, c.Sum, 8*each)
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	h := New(-13, 5)
	if n := testing.AllocsPerRun(100, func() { h.Observe(time.Millisecond) }); n != 0 {
		t.Errorf("%g allocations, want none", n)
	}
}
