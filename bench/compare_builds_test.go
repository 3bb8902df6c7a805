package bench

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestSignedRank: exact probabilities, counted by hand.
func TestSignedRank(t *testing.T) {
	tests := []struct {
		name   string
		values []float64
		want   float64
	}{
		{"nothing", nil, 1},
		{"no difference", []float64{1, 1, 1}, 1},
		{"one", []float64{2}, 1},
		{"all to one side", []float64{1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8}, 2.0 / 256},
		{"all to the other", []float64{0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2}, 2.0 / 256},
		// The least of 4 is on the other side: of 16 ways two have a sum of 0 or 1 below.
		{"all but the least", []float64{1 / 1.1, 1.2, 1.3, 1.4}, 4.0 / 16},
		// All but the most: sums below of 0 to 4 are {}, 1, 2, 3, 1+2, 4, 1+3.
		{"all but the most", []float64{1.1, 1.2, 1.3, 1 / 1.4}, 14.0 / 16},
		{"those of no difference are left out", []float64{1, 1.1, 1.2, 1.3, 1}, 2.0 / 8},
		// A tie: ranks 1.5, 1.5, 3 with a 1.5 below; sums up to 1.5 are {}, either of them.
		{"a tie", []float64{2, 0.5, 4}, 6.0 / 8},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := signedRank(tt.values); math.Abs(got-tt.want) > 1e-12 {
				t.Errorf("%g, want %g", got, tt.want)
			}
		})
	}
}

func TestCenter(t *testing.T) {
	tests := []struct {
		values []float64
		want   float64
	}{
		{[]float64{0.9}, 0.9},
		{[]float64{2, 8}, 4},
		{[]float64{0.9, 0.9, 0.9, 0.9, 5}, 0.9}, // a hiccup
		{[]float64{0, 1, 1, 1, 1}, 1},
	}
	for _, tt := range tests {
		if got := center(tt.values); math.Abs(got-tt.want) > 1e-12 {
			t.Errorf("%v: %g, want %g", tt.values, got, tt.want)
		}
	}
}

// withOld adds another build to a run: what it reached is what the present one does,
// divided by speed, with noise of its own.
func withOld(random *rand.Rand, r *Report, speed float64) *Report {
	for _, c := range slices.Clone(r.Cells) {
		if !c.ours() {
			continue
		}
		c.Driver = DriverSlipwayOld
		c.Samples = slices.Clone(c.Samples)
		for i := range c.Samples {
			c.Samples[i].Value *= math.Exp(0.03*random.NormFloat64()) / speed
		}
		r.Cells = append(r.Cells, c)
	}
	r.summarize()
	return r
}

// TestCompareBuildsFinds: as TestCompareFinds, where the share of loopback drifts within
// a run too, which is nothing that two builds differ by.
func TestCompareBuildsFinds(t *testing.T) {
	const pairs, repetitions = 200, 10
	random := rand.New(rand.NewPCG(1, 2))
	quiet, found := 0, 0
	for range pairs {
		for _, speed := range []float64{1, 0.9} {
			r := noisyRun(random, 1, repetitions, 1)
			r.Cells[1].Driver = DriverSlipway
			for i := range r.Cells[1].Samples {
				r.Cells[1].Samples[i].Value *= 1 + 0.02*float64(i)
			}
			c, err := CompareBuilds(withOld(random, r, speed), 0.05)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case speed == 1 && len(c.Worse()) == 0:
				quiet++
			case speed < 1 && len(c.Worse()) == 1:
				found++
			}
		}
	}
	if least := pairs * 19 / 20; quiet < least || found < least {
		t.Errorf("quiet in %d, found in %d of %d, want %d", quiet, found, pairs, least)
	}
}

// TestWriteBuilds: each row of the new build beside that of the old one, once.
func TestWriteBuilds(t *testing.T) {
	r := kindsReport()
	for i := range r.Cells { // seven rounds are too few
		c := &r.Cells[i]
		for _, s := range slices.Clone(c.Samples) {
			if s.Round > 0 {
				s.Round += 7
				c.Samples = append(c.Samples, s)
			}
		}
	}
	for _, c := range slices.Clone(r.Cells) {
		if c.Driver == DriverSlipway && c.Workload != WorkloadConnect {
			c.Driver = DriverSlipwayOld
			r.Cells = append(r.Cells, c)
		}
	}
	for id, factor := range map[string]float64{
		"slipway/stream/up": 0.8, "slipway/stream/up,mtu=65520": 0.97, "slipway/rr/up,size=64": 0.9,
	} {
		c := r.cell(id)
		c.Samples = slices.Clone(c.Samples)
		for i := range c.Samples {
			c.Samples[i].Value *= factor
		}
	}
	r.Cells = append(r.Cells, Cell{Driver: DriverSlipwayOld, Workload: WorkloadDNS, Direction: DirectionUp, Unit: UnitPerSecond})
	r.summarize()
	c, err := CompareBuilds(r, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := c.Write(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/builds.txt", []byte(b.String()))
	if _, err := CompareBuilds(kindsReport(), 0.05); !errors.Is(err, ErrDifferent) {
		t.Errorf("of one build: %v, want %v", err, ErrDifferent)
	}
}

// TestBuildsInTurn: each build is the first in every second round.
func TestBuildsInTurn(t *testing.T) {
	var rows []*row
	for _, driver := range []string{DriverHost, DriverSlipway, DriverSlipwayOld, DriverPasta, DriverSlipway, DriverSlipwayOld} {
		rows = append(rows, &row{Cell: Cell{Driver: driver}})
	}
	for round, want := range []string{
		"host slipway slipway-old pasta slipway slipway-old",
		"host slipway-old slipway pasta slipway-old slipway",
		"host slipway slipway-old pasta slipway slipway-old",
	} {
		var got []string
		for _, r := range inTurn(rows, round) {
			got = append(got, r.Driver)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("round %d: %v, want %s", round, got, want)
		}
	}
}

// TestOldBuildFails: that the other build was not measured is said.
func TestOldBuildFails(t *testing.T) {
	r := sampleReport()
	old := *r.cell("slipway/stream/up")
	old.Driver, old.Samples, old.Summary, old.Error = DriverSlipwayOld, nil, nil, "it ended"
	r.Cells = append(r.Cells, old)
	if failed := r.Failed(); !slices.Contains(failed, "slipway-old/stream/up") {
		t.Errorf("failed rows %v", failed)
	}
	if _, err := CompareBuilds(r, 0.05); !errors.Is(err, ErrDifferent) || !strings.Contains(err.Error(), "slipway/stream/up (not measured") {
		t.Errorf("CompareBuilds: %v", err)
	}
}

// TestOldBuildRows: another build does what Slipway does, and only where there is one.
func TestOldBuildRows(t *testing.T) {
	c := Config{Suite: "plain", MTUs: []int{ordinaryMTU}, Streams: []int{1}, Only: []string{"slipway/published/up"}}
	want := []string{"host/stream/loopback", "slipway/published/up"}
	if got := c.CellIDs(); !slices.Equal(got, want) {
		t.Errorf("rows %v, want %v", got, want)
	}
	c.Peers = map[string]string{DriverSlipwayOld: "/old"}
	want = append(want, "slipway-old/published/up")
	if got := c.CellIDs(); !slices.Equal(got, want) {
		t.Errorf("with another build: rows %v, want %v", got, want)
	}
	c.Suite, c.Only = "full", nil
	for _, cell := range catalogue(c) {
		if present := cell.present(); cell.class() != present.class() {
			t.Errorf("%s is of the class %q, %s of %q", cell.ID(), cell.class(), present.ID(), present.class())
		}
	}
}
