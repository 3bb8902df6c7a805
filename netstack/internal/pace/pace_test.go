package pace

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// TestWait: a quarter of a second's flows at once, then each at its time, and none that
// would be late.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(400)
		perSecond := 400 * runtime.GOMAXPROCS(0)
		const most = 100 * time.Millisecond
		now, later := 0, 0
		for range perSecond {
			switch d, ok := l.Wait(most); {
			case ok && d == 0:
				now++
			case ok && d <= most:
				later++
			case ok:
				t.Fatalf("a wait of %s", d)
			}
		}
		if now != perSecond/4 || later < perSecond/10-1 || later > perSecond/10+1 {
			t.Errorf("%d at once and %d later, want %d and %d", now, later, perSecond/4, perSecond/10)
		}
		time.Sleep(time.Second)
		if d, ok := l.Wait(0); !ok || d != 0 {
			t.Errorf("after a second: %s, %v", d, ok)
		}
	})
}
