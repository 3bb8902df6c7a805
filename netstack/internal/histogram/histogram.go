// Package histogram counts durations in fixed buckets, without a lock or an
// allocation.
package histogram

import (
	"math"
	"sync/atomic"
	"time"
)

// Histogram counts durations in buckets whose upper bounds are powers of two of a
// second, as those of Prometheus' native histograms of schema 0. It is safe for
// concurrent use.
type Histogram struct {
	low    int             // exponent of the lowest bound
	counts []atomic.Uint64 // one for each bound, and one for what is above all
	sum    atomic.Int64    // nanoseconds
}

// New makes a histogram with the bounds 2^low, 2^(low+1), … 2^high seconds.
func New(low, high int) *Histogram {
	return &Histogram{low: low, counts: make([]atomic.Uint64, high-low+2)}
}

// Observe counts d. A bound is part of its bucket.
func (h *Histogram) Observe(d time.Duration) {
	fraction, exponent := math.Frexp(d.Seconds()) // fraction in [0.5, 1), or 0
	if fraction == 0.5 {
		exponent-- // a power of two itself
	}
	if d <= 0 {
		d, exponent = 0, h.low
	}
	h.counts[min(max(exponent-h.low, 0), len(h.counts)-1)].Add(1)
	h.sum.Add(int64(d))
}

// Counts is a histogram at one moment.
type Counts struct {
	Bounds []float64 // seconds, rising
	Counts []uint64  // one for each bound, not cumulative, and one for what is above all
	Sum    float64   // seconds; of a moment later than Counts
}

// Counts reads the buckets.
func (h *Histogram) Counts() Counts {
	out := Counts{Bounds: make([]float64, len(h.counts)-1), Counts: make([]uint64, len(h.counts))}
	for i := range out.Bounds {
		out.Bounds[i] = math.Ldexp(1, h.low+i)
	}
	for i := range h.counts {
		out.Counts[i] = h.counts[i].Load()
	}
	out.Sum = time.Duration(h.sum.Load()).Seconds()
	return out
}
