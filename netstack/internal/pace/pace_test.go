package pace

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// take counts how many of n are let through.
func take(l *Limiter, n int) (taken int) {
	for range n {
		if l.Take() {
			taken++
		}
	}
	return taken
}

// TestLimiter: a second's flows at once, then each at its time; those that
// come to something do not count, others can count for more.
func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perCPU = 400
		l := New(perCPU)
		perSecond := perCPU * runtime.GOMAXPROCS(0)
		for _, tt := range []struct {
			name string
			do   func()
			want int
		}{
			{"at once", func() {}, perSecond},
			{"after that", func() {}, 0},
			{"after 100 ms", func() { time.Sleep(100 * time.Millisecond) }, perSecond / 10},
			{"after a minute", func() { time.Sleep(time.Minute) }, perSecond},
			{"returned", func() { l.Give(); l.Give() }, 2},
			{"returned more than there is room for", func() { l.Charge(float64(-10 * perSecond)) }, perSecond},
			{"charged for 50 ms more", func() { l.Charge(float64(perSecond) / 20); time.Sleep(150 * time.Millisecond) }, perSecond / 10},
		} {
			tt.do()
			if got := take(l, 2*perSecond); got != tt.want {
				t.Errorf("%s: %d taken, want %d", tt.name, got, tt.want)
			}
		}
	})
}

// TestHonest: as many flows as a guest likes while they come to something.
func TestHonest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(10)
		for i := range 1000 {
			if !l.Take() {
				t.Fatalf("flow %d was refused", i)
			}
			l.Give()
		}
	})
}
