package bench

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestInterval(t *testing.T) {
	type result struct{ Center, Lo, Hi, Confidence float64 }
	tests := []struct {
		in   []float64
		want result
	}{
		{[]float64{3}, result{3, 3, 3, 0}},
		{[]float64{9, 1, 5}, result{5, 1, 9, 0.75}},
		{[]float64{4, 1, 2, 100}, result{3, 1, 100, 0.875}},
		{[]float64{5, 4, 3, 2, 1}, result{3, 1, 5, 0.9375}},
		{[]float64{6, 5, 4, 3, 2, 1}, result{3.5, 1, 6, 0.96875}},
		// Of ten the second and the ninth: 1 - 2*(1+10)/2^10.
		{[]float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, result{5.5, 2, 9, 1 - 22.0/1024}},
	}
	for _, tt := range tests {
		in := slices.Clone(tt.in)
		got := interval(tt.in)
		if diff := cmp.Diff(tt.want, result{got.Center, got.Lo, got.Hi, got.Confidence}, cmpopts.EquateApprox(1e-9, 0)); diff != "" {
			t.Errorf("interval(%v)(-want +got):\n%s", tt.in, diff)
		}
		if diff := cmp.Diff(in, tt.in); diff != "" {
			t.Errorf("interval changed what it was given:\n%s", diff)
		}
	}
}

func TestSummarizeSamples(t *testing.T) {
	samples := []Sample{
		{Round: 0, Value: 1e9, Bytes: 1e9, CPUSeconds: 100}, // warm-up
		{Round: 1, Value: 10e9, Bytes: 5e9, CPUSeconds: 1, SystemCPUSeconds: 10, Retransmits: 1, Seconds: 1, StealSeconds: 0.5},
		{Round: 2, Value: 30e9, Bytes: 10e9, CPUSeconds: 3, SystemCPUSeconds: 10, Retransmits: 7, Seconds: 1, Latency: &Latency{1, 2, 3}},
		{Round: 3, Error: "failed"},
		{Round: 4, Value: 20e9, Bytes: 10e9, CPUSeconds: 4, SystemCPUSeconds: 30, Retransmits: 3, Seconds: 2, Loss: 0.25, RSS: 7},
	}
	want := &Summary{
		Samples: 3, Median: 20e9, Low: 10e9, High: 30e9, Confidence: 0.75, Min: 10e9, Max: 30e9, Spread: 1,
		CPUPerGB: 0.3, SystemCPUPerGB: 2, Steal: 0.0625, Retransmits: 3, Latency: &Latency{1, 2, 3},
	}
	if diff := cmp.Diff(want, Cell{Samples: samples}.summarize(2), cmpopts.EquateApprox(1e-9, 0)); diff != "" {
		t.Errorf("summarize(-want +got):\n%s", diff)
	}
	if got := (Cell{Samples: samples[:1]}).summarize(2); got != nil {
		t.Errorf("summary of a warm-up alone = %+v, want nil", got)
	}
}

// TestSummarizeReport: what is divided by what, and what by nothing.
func TestSummarizeReport(t *testing.T) {
	cell := func(id string, unit Unit, value float64) Cell {
		parts := strings.Split(id, "/")
		return Cell{
			Driver: parts[0], Workload: Workload(parts[1]), Direction: Direction(parts[2]), Streams: 1, Unit: unit,
			Samples: []Sample{{Round: 1, Value: value}},
		}
	}
	with := func(c Cell, change func(*Cell)) Cell { change(&c); return c }
	r := &Report{Cells: []Cell{
		cell("host/stream/loopback", UnitBitsPerSecond, 100),
		cell("slipway/stream/up", UnitBitsPerSecond, 50),
		cell("slipway-plain/stream/up", UnitBitsPerSecond, 60),
		cell("slirp4netns/stream/up", UnitBitsPerSecond, 5),
		cell("pasta/stream/up", UnitBitsPerSecond, 20),
		cell("veth/stream/up", UnitBitsPerSecond, 99),
		with(cell("slipway/stream/up", UnitBitsPerSecond, 40), func(c *Cell) { c.MTU = 9000 }),
		with(cell("slipway/stream/up", UnitBitsPerSecond, 40), func(c *Cell) { c.DelayMillis = 50 }),
		cell("slipway/published/down", UnitBitsPerSecond, 80),
		with(cell("slirp4netns/published/down", UnitBitsPerSecond, 2), func(c *Cell) { c.Defect = "loses wake-ups" }),
		cell("host/rr/loopback", UnitSeconds, 2),
		cell("slipway/rr/up", UnitSeconds, 3),
		cell("slirp4netns/rr/up", UnitSeconds, 6),
		cell("pasta/rr/up", UnitSeconds, 4),
		cell("slipway/connect/up", UnitPerSecond, 7),
		cell("slirp4netns/connect/up", UnitPerSecond, 14),
	}}
	r.summarize()
	type ratios struct {
		Gap, Slirp4netns, Peer float64
		BestPeer               string
	}
	got := map[string]ratios{}
	for _, c := range r.Cells {
		got[c.ID()] = ratios{c.Summary.Gap, c.Summary.Slirp4netns, c.Summary.Peer, c.Summary.BestPeer}
	}
	want := map[string]ratios{
		"host/stream/loopback":       {1, 0, 0, ""},
		"slipway/stream/up":          {0.5, 10, 2.5, "pasta"},
		"slipway-plain/stream/up":    {0.6, 12, 3, "pasta"},
		"slirp4netns/stream/up":      {0.05, 1, 0, ""},
		"pasta/stream/up":            {0.2, 4, 0, ""},
		"veth/stream/up":             {0.99, 19.8, 0, ""},
		"slipway/stream/up,mtu=9000": {0.4, 0, 0, ""},
		"slipway/stream/up,delay=50": {0, 0, 0, ""},
		"slipway/published/down":     {0.8, 0, 0, ""}, // nothing is divided by a defect
		"slirp4netns/published/down": {0, 0, 0, ""},   // and a defect by nothing
		"host/rr/loopback":           {1, 0, 0, ""},
		"slipway/rr/up":              {1.5, 0.5, 0.75, "pasta"},
		"slirp4netns/rr/up":          {3, 1, 0, ""},
		"pasta/rr/up":                {2, 2.0 / 3, 0, ""},
		"slipway/connect/up":         {0, 0.5, 0.5, "slirp4netns"},
		"slirp4netns/connect/up":     {0, 1, 0, ""},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateApprox(1e-9, 0)); diff != "" {
		t.Errorf("ratios(-want +got):\n%s", diff)
	}
}
