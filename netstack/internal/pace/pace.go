// Package pace bounds how many flows a second a guest may begin that come to nothing.
// Beginning one costs the host a dozen system calls, a hundred times what a packet of a
// flow costs that is there already: without a bound, one flow a packet would leave
// nothing to the others. Flows that come to something cost their guest as much as they
// cost the host, and are not bounded here.
//
// The bounds grow with the number of CPUs, as does what the others need.
package pace

import (
	"runtime"
	"sync"
	"time"
)

// Limiter is a token bucket that gets tokens back. It is safe for concurrent use.
type Limiter struct {
	perSecond float64

	mu     sync.Mutex // guards the following fields
	tokens float64    // below zero after Charge
	filled time.Time
}

// New returns a bound of perCPU flows a second for each CPU that the program uses. A
// second's may come at once, and wait for what they come to.
func New(perCPU int) *Limiter {
	perSecond := float64(perCPU * runtime.GOMAXPROCS(0))
	return &Limiter{perSecond: perSecond, tokens: perSecond, filled: time.Now()}
}

// Take asks for a flow. It returns false when there is no token for it.
func (l *Limiter) Take() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.tokens = min(l.perSecond, l.tokens+l.perSecond*now.Sub(l.filled).Seconds())
	l.filled = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

// Give returns the token of a flow that came to something.
func (l *Limiter) Give() { l.Charge(-1) }

// Charge takes tokens for what a flow cost beyond its first.
func (l *Limiter) Charge(tokens float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tokens = min(l.perSecond, l.tokens-tokens)
}
