// Package pace bounds how many flows a guest may begin a second. Each costs the host a
// dozen system calls, a hundred times what a packet of a flow costs that is there
// already: without a bound one flow a packet would leave nothing to the others.
//
// The bounds grow with the number of CPUs, as does what the others need.
package pace

import (
	"runtime"
	"time"

	"golang.org/x/time/rate"
)

// Limiter is a bound. It is safe for concurrent use.
type Limiter struct{ *rate.Limiter }

// New returns a bound of perCPU flows a second for each CPU that the program uses. A
// quarter of a second's may come at once.
func New(perCPU int) Limiter {
	perSecond := perCPU * runtime.GOMAXPROCS(0)
	return Limiter{rate.NewLimiter(rate.Limit(perSecond), max(perSecond/4, 1))}
}

// Wait says for how long a flow has to wait. It returns false for one that would have to
// wait for longer than most, and does not count that one.
func (l Limiter) Wait(most time.Duration) (time.Duration, bool) {
	r := l.Reserve()
	d := r.Delay()
	if d > most {
		r.Cancel()
		return 0, false
	}
	return d, true
}
