package bench

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// noisyRun is a run on a machine like those that benchmarks run on: host loopback swings
// from round to round and drifts, what goes through a container swings with it, less
// than fully, and each measurement has noise and now and then a hiccup of its own.
func noisyRun(random *rand.Rand, cells int, repetitions int, speed float64) *Report {
	r := &Report{Schema: SchemaVersion, Method: Method{Seconds: 10}, Environment: Environment{Versions: map[string]string{"iperf3": "iperf 3.12"}}}
	drivers := []string{DriverHost}
	for i := range cells {
		drivers = append(drivers, fmt.Sprintf("%s-%d", DriverSlipway, i))
	}
	for i, driver := range drivers {
		c := Cell{Driver: driver, Workload: WorkloadStream, Direction: DirectionUp, Streams: 1, Unit: UnitBitsPerSecond}
		if i == 0 {
			c.Direction = DirectionLoopback
		}
		r.Cells = append(r.Cells, c)
	}
	drift := 1 + 0.1*random.NormFloat64() // of this run as a whole
	for round := 1; round <= repetitions; round++ {
		machine := drift * math.Exp(0.02*random.NormFloat64())
		for i := range r.Cells {
			value := 20e9 * speed * machine
			if i == 0 {
				value = 50e9 * machine
			}
			value *= math.Exp(0.015 * random.NormFloat64())
			if random.Float64() < 0.03 {
				value *= 0.9 // a hiccup
			}
			r.Cells[i].Samples = append(r.Cells[i].Samples, Sample{Round: round, Value: value, Seconds: 10})
		}
	}
	r.summarize()
	return r
}

// TestCompareFinds: of the same build it says that there is no difference, and it finds
// a slow-down of 10 %, each in at least 19 of 20 pairs of runs, also where the machine
// itself was a tenth faster or slower in one of them.
func TestCompareFinds(t *testing.T) {
	const pairs, repetitions = 20, 10
	for _, cells := range []int{1, 12} {
		random := rand.New(rand.NewPCG(1, uint64(cells)))
		quiet, found := 0, 0
		for range pairs {
			old := noisyRun(random, cells, repetitions, 1)
			same, err := Compare(old, noisyRun(random, cells, repetitions, 1), 0.05)
			if err != nil {
				t.Fatal(err)
			}
			if len(same.Worse()) == 0 {
				quiet++
			}
			slow, err := Compare(old, noisyRun(random, cells, repetitions, 0.9), 0.05)
			if err != nil {
				t.Fatal(err)
			}
			if len(slow.Worse()) > 0 {
				found++
			}
		}
		if quiet < 19 || found < 19 {
			t.Errorf("%d cells: quiet in %d of %d pairs of the same, found in %d of %d slower ones; want 19", cells, quiet, pairs, found, pairs)
		}
	}
}

// TestHolm: the numbers of the procedure, worked out by hand.
func TestHolm(t *testing.T) {
	c := &Comparison{}
	for _, p := range []float64{0.04, 0.01, 0.03, 0.005} {
		c.Rows = append(c.Rows, Difference{P: p})
	}
	c.holm()
	for i, want := range []float64{0.06, 0.03, 0.06, 0.02} {
		if got := c.Rows[i].Adjusted; math.Abs(got-want) > 1e-12 {
			t.Errorf("row %d: %g, want %g", i, got, want)
		}
	}
}

func TestLeastP(t *testing.T) {
	runs, builds := &Comparison{}, &Comparison{Builds: true}
	for _, tt := range []struct {
		c    *Comparison
		n    int
		want float64
	}{
		{runs, 5, 2.0 / 252}, // of the ways to choose 5 of 10
		{runs, 6, 2.0 / 924}, // 6 of 12
		{builds, 1, 1},
		{builds, 8, 2.0 / 256}, // of the ways to toss 8 coins
	} {
		if got := tt.c.leastP(tt.n, tt.n); math.Abs(got-tt.want) > 1e-12 {
			t.Errorf("%d, builds %v: %g, want %g", tt.n, tt.c.Builds, got, tt.want)
		}
	}
	for _, tt := range []struct {
		c          *Comparison
		rows, want int
	}{{runs, 1, 5}, {runs, 6, 7}, {runs, 12, 7}, {builds, 1, 8}, {builds, 12, 12}} {
		tt.c.Rows = make([]Difference, tt.rows)
		if got := tt.c.repetitions(); got != tt.want {
			t.Errorf("%d rows, builds %v: %d repetitions, want %d", tt.rows, tt.c.Builds, got, tt.want)
		}
	}
}

// scaled is a run in which a row has fixed values, times a factor.
func scaled(unit Unit, driver string, factor float64) *Report {
	r := &Report{}
	for _, d := range []string{DriverHost, driver} {
		c := Cell{Driver: d, Workload: WorkloadStream, Direction: DirectionUp, Streams: 1, Unit: unit}
		for round := 1; round <= 8; round++ {
			v := 100 + float64(round)
			if d != DriverHost {
				v *= factor
			}
			c.Samples = append(c.Samples, Sample{Round: round, Value: v, Seconds: 1})
		}
		// Ratios of equal noise are all the same; a little of its own for each.
		for i := range c.Samples {
			if d != DriverHost {
				c.Samples[i].Value *= 1 + 0.001*float64(i)
			}
		}
		r.Cells = append(r.Cells, c)
	}
	r.summarize()
	return r
}

// TestCompareDirection: of speeds less is worse, of times more, and the threshold is one
// of size, not of certainty.
func TestCompareDirection(t *testing.T) {
	tests := []struct {
		name      string
		unit      Unit
		factor    float64
		threshold float64
		worse     int
		want      string
	}{
		{"slower", UnitBitsPerSecond, 0.9, 0.05, 1, "WORSE"},
		{"slower within the threshold", UnitBitsPerSecond, 0.9, 0.2, 0, "worse, within the threshold"},
		{"faster", UnitBitsPerSecond, 1.1, 0.05, 0, "better"},
		{"fewer", UnitPerSecond, 0.9, 0.05, 1, "WORSE"},
		{"longer", UnitSeconds, 1.1, 0.05, 1, "WORSE"},
		{"shorter", UnitSeconds, 0.9, 0.05, 0, "better"},
		{"same", UnitBitsPerSecond, 1, 0, 0, "~"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Compare(scaled(tt.unit, DriverSlipway, 1), scaled(tt.unit, DriverSlipway, tt.factor), tt.threshold)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := c.Write(&b); err != nil {
				t.Fatal(err)
			}
			if len(c.Worse()) != tt.worse || !strings.Contains(b.String(), tt.want) {
				t.Errorf("%d worse, want %d and %q in:\n%s", len(c.Worse()), tt.worse, tt.want, b.String())
			}
		})
	}
}

func TestDifferences(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Report)
		want   string // "" for none
	}{
		{"the code under test", func(r *Report) { r.Environment.Versions["slipway"] = "9" }, ""},
		{"another build of iperf3's JSON library", func(r *Report) { r.Environment.Versions["iperf3"] += " (cJSON 1.7.15)" }, ""},
		{"iperf3", func(r *Report) { r.Environment.Versions["iperf3"] = "iperf 3.16" }, `iperf3: "iperf 3.12" and "iperf 3.16"`},
		{"CPU", func(r *Report) { r.Environment.CPUModel = "other" }, "2 CPUs other"},
		{"kernel", func(r *Report) { r.Environment.Kernel = "6.2" }, "machine"},
		{"length", func(r *Report) { r.Method.Seconds = 5 }, `seconds of a measurement: "4" and "5"`},
		{"congestion control", func(r *Report) { r.Environment.Congestion = "bbr" }, "congestion control"},
		{"user", func(r *Report) { r.Environment.User = "root, all ids mapped" }, "user"},
		{"unit", func(r *Report) { r.Cells[1].Unit = UnitSeconds }, `unit of slipway/stream/up: "bit/s" and "s"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			other := sampleReport()
			tt.change(other)
			got := strings.Join(Differences(sampleReport(), other), "; ")
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("differences %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCompareNothing(t *testing.T) {
	if _, err := Compare(&Report{}, sampleReport(), 0.05); !errors.Is(err, ErrDifferent) {
		t.Errorf("Compare: %v, want %v", err, ErrDifferent)
	}
	r := sampleReport()
	if err := r.Only([]string{"pasta"}); !errors.Is(err, ErrDifferent) {
		t.Errorf("Only: %v, want %v", err, ErrDifferent)
	}
}

func TestWriteComparison(t *testing.T) {
	other := kindsReport()
	for id, factor := range map[string]float64{
		"slipway/stream/up": 0.8, "slipway/stream/up,mtu=65520": 0.97, "slipway/rr/up,size=64": 0.9, "slipway/connect/up": 0.5,
	} {
		c := other.cell(id)
		for i := range c.Samples {
			c.Samples[i].Value *= factor
		}
	}
	other.cell("gvisor-tap-vsock/stream/up").Driver = "gvisor-tap-vsock-new"
	other.Environment.Kernel = "6.2"
	other.summarize()
	c, err := Compare(kindsReport(), other, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := c.Write(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/comparison.txt", b.Bytes())
	if err := c.Write(brokenPipe{}); !errors.Is(err, errBroken) {
		t.Errorf("Write: %v, want %v", err, errBroken)
	}
}

// TestWriteComparisonOfFew: where nothing can be found, that is said.
func TestWriteComparisonOfFew(t *testing.T) {
	c, err := Compare(sampleReport(), sampleReport(), 0.05)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := c.Write(&b); err != nil {
		t.Fatal(err)
	}
	if want := "with 4 rows no difference, however large, is more than chance below 6 repetitions"; !strings.Contains(b.String(), want) {
		t.Errorf("no %q in:\n%s", want, b.String())
	}
}
