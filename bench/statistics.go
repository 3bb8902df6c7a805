package bench

import (
	"math"
	"slices"
)

// wideSpread is the share of the median between the slowest and the fastest sample
// above which a row carries a warning: on such a machine small differences mean nothing.
const wideSpread = 0.30

// Summary of the counted samples of a row, in its unit.
type Summary struct {
	Samples int     `json:"samples"`
	Median  float64 `json:"median"`
	Min     float64 `json:"min"`
	Max     float64 `json:"max"`
	// Spread is (max - min) / median.
	Spread float64 `json:"spread"`
	// CPUPerGB is the median of the CPU seconds of the driver's processes for each 10^9 bytes.
	CPUPerGB    float64 `json:"cpu_seconds_per_gigabyte"`
	Retransmits float64 `json:"median_retransmits"`
	// Gap is the median divided by that of the host's loopback in the same run; 0: no such row.
	Gap float64 `json:"gap_ratio,omitempty"`
	// Slirp4netns is the median divided by that of slirp4netns doing the same; 0: no such row.
	Slirp4netns float64 `json:"slirp4netns_ratio,omitempty"`
}

// median of at least one value; the mean of the middle two when their number is even.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// summarize gives the summary of the samples that count, nil when there are none.
func summarize(samples []Sample) *Summary {
	var speed, cpu, retransmits []float64
	for _, s := range samples {
		if s.Round == 0 || s.Error != "" {
			continue
		}
		speed = append(speed, s.Value)
		retransmits = append(retransmits, float64(s.Retransmits))
		if s.Bytes > 0 {
			cpu = append(cpu, s.CPUSeconds/(float64(s.Bytes)/1e9))
		}
	}
	if len(speed) == 0 {
		return nil
	}
	sum := &Summary{
		Samples:     len(speed),
		Median:      median(speed),
		Min:         slices.Min(speed),
		Max:         slices.Max(speed),
		Retransmits: median(retransmits),
	}
	if len(cpu) > 0 {
		sum.CPUPerGB = median(cpu)
	}
	if sum.Median > 0 {
		sum.Spread = (sum.Max - sum.Min) / sum.Median
	}
	return sum
}

// summarize fills the summaries of every row, and the ratios between rows.
func (r *Report) summarize() {
	speed := make(map[string]float64, len(r.Cells))
	for i := range r.Cells {
		c := &r.Cells[i]
		c.Summary = summarize(c.Samples)
		if c.Summary != nil {
			speed[c.ID()] = c.Summary.Median
		}
	}
	loopback := speed[Cell{Driver: DriverHost, Workload: WorkloadStream, Direction: DirectionLoopback}.ID()]
	for _, c := range r.Cells {
		if c.Summary == nil {
			continue
		}
		if loopback > 0 {
			c.Summary.Gap = c.Summary.Median / loopback
		}
		peer := c
		peer.Driver = DriverSlirp4netns
		if slirp := speed[peer.ID()]; slirp > 0 {
			c.Summary.Slirp4netns = c.Summary.Median / slirp
		}
	}
}
