package bench

import (
	"maps"
	"math"
	"slices"
	"strings"

	"golang.org/x/perf/benchmath"
)

const (
	// confidence that the interval of a median is asked for.
	confidence = 0.95
	// wideSpread is the share of the median between the slowest and the fastest sample
	// above which a row carries a warning: on such a machine small differences mean nothing.
	wideSpread = 0.10
	// muchSteal is the share of the machine's CPU time, taken by others, above which a row
	// carries a warning.
	muchSteal = 0.01
)

// Summary of the counted samples of a row, in its unit.
type Summary struct {
	Samples int     `json:"samples"`
	Median  float64 `json:"median"`
	// Low and High are the ends of the median's interval, that of 95 % where the samples
	// suffice (6), else their range; Confidence, 0 to 1, is what it really covers.
	Low        float64 `json:"low"`
	High       float64 `json:"high"`
	Confidence float64 `json:"confidence"`
	Min        float64 `json:"min"`
	Max        float64 `json:"max"`
	// Spread is (max - min) / median.
	Spread float64 `json:"spread"`
	// CPUPerGB is the median of the CPU seconds of the driver's processes for each 10^9 bytes.
	CPUPerGB float64 `json:"cpu_seconds_per_gigabyte"`
	// SystemCPUPerGB is the same of the whole machine; 0: it was not counted.
	SystemCPUPerGB float64 `json:"system_cpu_seconds_per_gigabyte,omitempty"`
	// Steal is the share of the machine's CPU time, 0 to 1, that others took meanwhile.
	Steal       float64 `json:"steal,omitempty"`
	Retransmits float64 `json:"median_retransmits"`
	Loss        float64 `json:"median_loss,omitempty"`
	// Latency holds the median of each quantile.
	Latency *Latency `json:"latency,omitempty"`
	// RSS is the median in bytes.
	RSS float64 `json:"median_rss_bytes,omitempty"`
	// Gap is the value divided by that of the host's loopback in the same round, the median of
	// that; 0: there is no such row, or one of the two has a defect. The same holds for every
	// ratio.
	Gap float64 `json:"gap_ratio,omitempty"`
	// Slirp4netns is that to slirp4netns doing the same.
	Slirp4netns float64 `json:"slirp4netns_ratio,omitempty"`
	// Peer is, in rows of Slipway, that to the best of the others doing the same, whose name
	// BestPeer is.
	Peer     float64 `json:"peer_ratio,omitempty"`
	BestPeer string  `json:"best_peer,omitempty"`
}

// counts says whether a sample is one of those that are summed up.
func (s Sample) counts() bool { return s.Round > 0 && s.Error == "" }

// counted are the samples that are summed up.
func (c Cell) counted() []Sample {
	return slices.DeleteFunc(slices.Clone(c.Samples), func(s Sample) bool { return !s.counts() })
}

// interval is the median of at least one value, and an interval that it lies in.
func interval(values []float64) benchmath.Summary {
	s := benchmath.NewSample(slices.Clone(values), &benchmath.DefaultThresholds)
	sum := benchmath.AssumeNothing.Summary(s, confidence)
	if math.IsInf(sum.Lo, 0) || math.IsInf(sum.Hi, 0) {
		// The range: the median is outside of it when all samples fell on one side.
		sum.Lo, sum.Hi = s.Values[0], s.Values[len(s.Values)-1]
		sum.Confidence = 1 - math.Exp2(float64(1-len(values)))
	}
	return sum
}

// median of something in the samples, 0 when there are none.
func median(samples []Sample, value func(Sample) float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = value(s)
	}
	return interval(values).Center
}

// summarize gives the summary of the samples that count, nil when there are none; cpus
// is how many the machine has.
func (c Cell) summarize(cpus int) *Summary {
	samples := c.counted()
	if len(samples) == 0 {
		return nil
	}
	values := make([]float64, len(samples))
	var elapsed, steal float64
	var latencies []Sample
	for i, s := range samples {
		values[i] = s.Value
		elapsed += max(s.Elapsed, s.Seconds) // a report of before this was counted has only the latter
		steal += s.StealSeconds
		if s.Latency != nil {
			latencies = append(latencies, s)
		}
	}
	// The CPU time of a load beside the measurement is that of bytes which are not counted.
	withBytes := slices.DeleteFunc(slices.Clone(samples), func(s Sample) bool { return s.Bytes == 0 || workOf(c.Workload).load != nil })
	perGB := func(cpu float64, s Sample) float64 { return cpu / (float64(s.Bytes) / 1e9) }
	i := interval(values)
	sum := &Summary{
		Samples: len(values), Median: i.Center, Low: i.Lo, High: i.Hi, Confidence: i.Confidence,
		Min: slices.Min(values), Max: slices.Max(values),
		CPUPerGB:       median(withBytes, func(s Sample) float64 { return perGB(s.CPUSeconds, s) }),
		SystemCPUPerGB: median(withBytes, func(s Sample) float64 { return perGB(s.SystemCPUSeconds, s) }),
		Retransmits:    median(samples, func(s Sample) float64 { return float64(s.Retransmits) }),
		Loss:           median(samples, func(s Sample) float64 { return s.Loss }),
		RSS:            median(samples, func(s Sample) float64 { return float64(s.RSS) }),
	}
	if sum.Median > 0 {
		sum.Spread = (sum.Max - sum.Min) / sum.Median
	}
	if elapsed > 0 && cpus > 0 {
		sum.Steal = steal / (elapsed * float64(cpus))
	}
	if len(latencies) > 0 {
		sum.Latency = &Latency{
			P50:  median(latencies, func(s Sample) float64 { return s.Latency.P50 }),
			P99:  median(latencies, func(s Sample) float64 { return s.Latency.P99 }),
			P999: median(latencies, func(s Sample) float64 { return s.Latency.P999 }),
		}
	}
	return sum
}

// summarize fills the summaries of every row, and the ratios between rows.
func (r *Report) summarize() {
	for i := range r.Cells {
		r.Cells[i].Summary = r.Cells[i].summarize(r.Environment.CPUs)
	}
	r.markDefects()
	for i := range r.Cells {
		c := &r.Cells[i]
		if !c.divisible() {
			continue
		}
		s := c.Summary
		if host := r.reference(*c); host != nil {
			s.Gap = r.quotient(*c, *host)
		}
		for _, p := range r.peers(*c) {
			ratio := r.quotient(*c, p)
			if p.Driver == DriverSlirp4netns {
				s.Slirp4netns = ratio
			}
			if !c.ours() || p.ours() || p.kernel() || ratio == 0 {
				continue
			}
			if s.BestPeer == "" || c.Unit.LessIsBetter() == (ratio > s.Peer) {
				s.Peer, s.BestPeer = ratio, p.Driver
			}
		}
	}
}

// quotients of two rows, of each round in which both were measured.
func (r *Report) quotients(c, by Cell) []float64 {
	rounds := paired(r.rounds(c, speed), r.rounds(by, speed), func(a, b float64) float64 { return a / b })
	values := make([]float64, 0, len(rounds))
	for _, round := range slices.Sorted(maps.Keys(rounds)) {
		values = append(values, rounds[round])
	}
	return values
}

// quotient of two rows, the median of quotients; 0: there are none.
func (r *Report) quotient(c, by Cell) float64 {
	values := r.quotients(c, by)
	if len(values) == 0 {
		return 0
	}
	return interval(values).Center
}

// divisible says whether a row's median can stand in a ratio.
func (c Cell) divisible() bool { return c.Summary != nil && c.Summary.Median > 0 && c.Defect == "" }

// ours says whether a row is one of Slipway, whichever of its paths.
func (c Cell) ours() bool {
	return c.Driver == DriverSlipway || strings.HasPrefix(c.Driver, DriverSlipway+"-")
}

// kernel says whether a row is one without any user-mode network in the way.
func (c Cell) kernel() bool { return c.Driver == DriverHost || c.Driver == DriverVeth }

// conditions are what rows that can be divided by each other have in common.
type conditions struct {
	Workload  Workload
	Direction Direction
	MTU       int
	Streams   int
	Size      int
	Distance  distance
	Unit      Unit
}

func (c Cell) conditions() conditions {
	return conditions{c.Workload, c.Direction, c.MTU, c.Streams, c.Size, c.distance(), c.Unit}
}

// reference is the row of the host that a row is divided by, nil when there is none. Both
// ways at once have none: their value is a sum, and loopback's is that of one way.
func (r *Report) reference(c Cell) *Cell {
	host := r.cell(c.yardstick().ID())
	if host == nil || c.Direction == DirectionBoth || !host.divisible() {
		return nil
	}
	return host
}

// peers are the other rows that do the same under the same conditions.
func (r *Report) peers(c Cell) []Cell {
	var peers []Cell
	for _, p := range r.Cells {
		if p.divisible() && p.Driver != DriverHost && p.conditions() == c.conditions() {
			peers = append(peers, p)
		}
	}
	return peers
}
