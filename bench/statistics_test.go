package bench

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestMedian(t *testing.T) {
	tests := []struct {
		in   []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 2, 100}, 3},
		{[]float64{1, 1, 1, 1, math.Inf(1)}, 1},
	}
	for _, tt := range tests {
		in := append([]float64(nil), tt.in...)
		if got := median(tt.in); got != tt.want {
			t.Errorf("median(%v) = %g, want %g", tt.in, got, tt.want)
		}
		if diff := cmp.Diff(in, tt.in); diff != "" {
			t.Errorf("median changed what it was given:\n%s", diff)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing = %g, want NaN", got)
	}
}

func TestSummarizeSamples(t *testing.T) {
	samples := []Sample{
		{Round: 0, Value: 1e9, Bytes: 1e9, CPUSeconds: 100}, // warm-up
		{Round: 1, Value: 10e9, Bytes: 5e9, CPUSeconds: 1, Retransmits: 1},
		{Round: 2, Value: 30e9, Bytes: 10e9, CPUSeconds: 3, Retransmits: 7},
		{Round: 3, Error: "failed"},
		{Round: 4, Value: 20e9, Bytes: 10e9, CPUSeconds: 4, Retransmits: 3},
	}
	want := &Summary{Samples: 3, Median: 20e9, Min: 10e9, Max: 30e9, Spread: 1, CPUPerGB: 0.3, Retransmits: 3}
	if diff := cmp.Diff(want, summarize(samples), cmpopts.EquateApprox(1e-9, 0)); diff != "" {
		t.Errorf("summarize(-want +got):\n%s", diff)
	}
	if got := summarize(samples[:1]); got != nil {
		t.Errorf("summary of a warm-up alone = %+v, want nil", got)
	}
}

func TestSummarizeReport(t *testing.T) {
	r := sampleReport()
	type ratios struct{ Gap, Slirp4netns float64 }
	got := map[string]ratios{}
	for _, c := range r.Cells {
		if c.Summary != nil {
			got[c.ID()] = ratios{c.Summary.Gap, c.Summary.Slirp4netns}
		}
	}
	want := map[string]ratios{
		"host/stream/loopback":   {1, 0},
		"slipway/stream/up":      {0.5, 20},
		"slirp4netns/stream/up":  {0.025, 1},
		"slipway/stream/down":    {0.4, 0}, // slirp4netns failed
		"slipway/published/down": {0.95, 0},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateApprox(1e-9, 0)); diff != "" {
		t.Errorf("ratios(-want +got):\n%s", diff)
	}
}
