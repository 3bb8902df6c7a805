//go:build !race

// With the race detector a sync.Pool forgets at random what it was given.

package link

import "testing"

func TestLinkDoesNotAllocate(t *testing.T) {
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			w := newLink(t, mode)
			w.allOf(t, func(name string, run func()) {
				if n := testing.AllocsPerRun(500, run); n != 0 {
					t.Errorf("%s: %v allocations a frame", name, n)
				}
			})
		})
	}
}

func TestDeliverDoesNotAllocate(t *testing.T) {
	for _, size := range streamFrames {
		d := newDelivery(t, size)
		for range maxLoans {
			d.run() // each buffer is allocated once
		}
		if n := testing.AllocsPerRun(500, d.run); n != 0 {
			t.Errorf("%d bytes: %v allocations a frame", size, n)
		}
	}
}
