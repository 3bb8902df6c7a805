package bench

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// targetReport is one of the targets' suite with rows that have the given values, one a round.
func targetReport(cells ...Cell) *Report {
	r := &Report{
		Schema: SchemaVersion, Method: Method{Suite: "targets", MTU: ordinaryMTU},
		Cells: cells,
	}
	r.summarize()
	return r
}

// rowWith values of the rounds from 1, and what else is done with row and samples.
func rowWith(row Cell, change func(*Sample), values ...float64) Cell {
	row.Unit = unitOf(row.Workload)
	for i, v := range values {
		s := Sample{Round: i + 1, Value: v, Seconds: 1}
		if change != nil {
			change(&s)
		}
		row.Samples = append(row.Samples, s)
	}
	return row
}

// upload row of a driver; of the host, its loopback.
func upload(driver string, mtu int) Cell {
	c := Cell{Driver: driver, Workload: WorkloadStream, Direction: DirectionUp, MTU: mtu, Streams: 1}
	if driver == DriverHost {
		c.Direction, c.MTU = DirectionLoopback, 0
	}
	return c
}

func withStreams(c Cell, n int) Cell { c.Streams = n; return c }

func TestJudge(t *testing.T) {
	cpuOf := func(seconds, bytes float64) func(*Sample) {
		return func(s *Sample) { s.CPUSeconds, s.Bytes = seconds, uint64(bytes) }
	}
	host := rowWith(upload(DriverHost, 0), nil, 40, 20, 40)
	ours := rowWith(upload(DriverSlipway, 1500), cpuOf(0.5, 2e9), 20, 10, 30)
	quick := rowWith(upload(DriverPasta, 65520), cpuOf(1, 1e9), 8, 5, 10)
	slow := rowWith(upload(DriverPasta, 1500), cpuOf(2, 1e9), 2, 1, 2)
	sick := slow
	sick.Defect = "loses packets"
	broken := upload(DriverSlipway, 1500)
	broken.Samples = []Sample{{Round: 1, Value: 20, Error: "lost"}}
	start := rowWith(Cell{Driver: DriverSlipway, Workload: WorkloadStart, Direction: DirectionUp, MTU: 1500, Streams: 1},
		func(s *Sample) { s.RSS = 20e6 }, 0.050, 0.060)
	many := rowWith(Cell{Driver: DriverSlipway, Workload: WorkloadPublish1000, Direction: DirectionDown, MTU: 1500, Streams: 1},
		func(s *Sample) { s.RSS = 31e6 }, 0.090, 0.080)
	idle := rowWith(Cell{Driver: DriverSlipway, Workload: WorkloadIdle, Direction: DirectionUp, MTU: 1500}, func(s *Sample) { s.RSS = 30e6 }, 30e6)
	flows := rowWith(Cell{Driver: DriverSlipway, Workload: WorkloadIdle, Direction: DirectionUp, MTU: 1500, Streams: 2000}, func(s *Sample) { s.RSS = 70e6 }, 70e6)
	asked := func(driver string, p99 float64) Cell {
		return rowWith(Cell{Driver: driver, Workload: WorkloadLatency, Direction: DirectionUp, MTU: 1500, Streams: 1, Size: 64},
			func(s *Sample) { s.Latency = &Latency{P50: s.Value, P99: p99} }, 60e-6)
	}

	toHost1500 := toHost(1500, 1)
	tests := []struct {
		name   string
		target target
		cells  []Cell
		want   Reached
	}{
		{"ratio of the same round", target{of: toHost1500, what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.5}, []Cell{host, ours},
			Reached{"Upload", "≥ 0.50× the host", "0.50×", "0.50× - 0.75×", "host", Met}},
		{"too little", target{of: toHost1500, what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.51}, []Cell{host, ours},
			Reached{"Upload", "≥ 0.51× the host", "0.50×", "0.50× - 0.75×", "host", NotMet}},
		{"a peer at its best MTU", target{of: toHost1500, what: speed, than: ratioAtLeast, rival: peer, limit: 2.5}, []Cell{host, ours, slow, quick},
			Reached{"Upload", "≥ 2.50× a peer", "2.50×", "2.00× - 3.00×", "pasta, MTU 65520", Met}},
		{"a peer at the ordinary MTU", target{of: toHost1500, what: speed, than: ratioAtLeast, rival: peerAtOrdinaryMTU, limit: 11}, []Cell{ours, slow, quick},
			Reached{"Upload", "≥ 11.0× a peer at MTU 1500", "10.0×", "10.0× - 15.0×", "pasta, MTU 1500", NotMet}},
		{"no such peer", target{of: toHost1500, what: speed, than: ratioAtLeast, rival: only(DriverSlirp4netns, 0), limit: 2}, []Cell{ours, slow},
			Reached{Work: "Upload", Target: "≥ 2.00× slirp4netns", Verdict: NotMeasured}},
		{"no better than a peer with a defect", target{of: toHost1500, what: speed, than: ratioAtLeast, rival: only(DriverPasta, 0), limit: 11}, []Cell{ours, sick},
			Reached{"Upload", "≥ 11.0× pasta", "10.0×", "10.0× - 15.0×", "pasta, MTU 1500", NotMet}},
		{"better than a peer with a defect", target{of: toHost1500, what: speed, than: ratioAtLeast, rival: only(DriverPasta, 0), limit: 2}, []Cell{ours, sick},
			Reached{Work: "Upload", Target: "≥ 2.00× pasta", Rival: "pasta, MTU 1500", Verdict: NotMeasured}},
		{"its row failed", target{of: toHost1500, what: cpu, than: atMost, limit: 0.22}, []Cell{host, broken},
			Reached{Work: "Upload: CPU of its processes", Target: "≤ 0.22 s/GB", Verdict: NotMeasured}},
		{"CPU alone", target{of: toHost1500, what: cpu, than: atMost, limit: 0.22}, []Cell{ours},
			Reached{Work: "Upload: CPU of its processes", Target: "≤ 0.22 s/GB", Figure: "0.25 s/GB", Interval: "0.25 s/GB - 0.25 s/GB", Verdict: NotMet}},
		{"CPU of the fastest peer", target{of: toHost1500, what: cpu, than: ratioAtMost, rival: fastestPeer, limit: 0.45}, []Cell{ours, slow, quick},
			Reached{"Upload: CPU of its processes", "≤ 0.45× the fastest peer", "0.25×", "0.25× - 0.25×", "pasta, MTU 65520", Met}},
		{"share of as many streams", target{of: toHost(1500, 4), what: share, than: ratioAtLeast, rival: oneStream, limit: 1},
			[]Cell{host, ours, rowWith(withStreams(upload(DriverHost, 0), 4), nil, 50, 50, 50), rowWith(withStreams(upload(DriverSlipway, 1500), 4), nil, 20, 50, 30)},
			Reached{"Upload, 4 streams: share of loopback", "≥ 1.00× one stream", "0.80×", "0.80× - 2.00×", "slipway, MTU 1500", NotMet}},
		{"no loopback of as many streams", target{of: toHost(1500, 4), what: share, than: ratioAtLeast, rival: oneStream, limit: 1},
			[]Cell{host, ours, rowWith(withStreams(upload(DriverSlipway, 1500), 4), nil, 20, 50, 30)},
			Reached{Work: "Upload, 4 streams: share of loopback", Target: "≥ 1.00× one stream", Verdict: NotMeasured}},
		{"time beyond that of none", target{of: alone(WorkloadPublish1000, down, 1), what: ready, than: differenceAtMost, rival: nothingPublished, limit: 0.05}, []Cell{start, many},
			Reached{"1000 published ports: time until ready", "≤ 50.0 ms more than no published port", "30.0 ms", "20.0 ms - 40.0 ms", "slipway, MTU 1500", Met}},
		{"memory beyond that of none", target{of: alone(WorkloadPublish1000, down, 1), what: memory, than: differenceAtMost, rival: nothingPublished, limit: 10e6}, []Cell{start, many},
			Reached{"1000 published ports: memory", "≤ 10.0 MB more than no published port", "11.0 MB", "11.0 MB - 11.0 MB", "slipway, MTU 1500", NotMet}},
		{"memory of a flow", target{of: alone(WorkloadIdle, up, 2000), what: memory, than: differenceAtMost, rival: noFlows, limit: 24 * kibibyte, perFlow: 2000}, []Cell{idle, flows},
			Reached{"Idle memory, 2000 open flows: memory for each flow", "≤ 24.6 kB more than no flow", "20.0 kB", "20.0 kB - 20.0 kB", "slipway, MTU 1500", Met}},
		{"latency", target{of: asking(WorkloadLatency, up, 1, 64), what: p99, than: ratioAtMost, rival: peer, limit: 1.05},
			[]Cell{asked(DriverSlipway, 200e-6), asked(DriverPasta, 400e-6), asked(DriverSlirp4netns, 100e-6)},
			Reached{"Latency, 64 bytes: p99", "≤ 1.05× a peer", "2.00×", "2.00× - 2.00×", "slirp4netns, MTU 1500", NotMet}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.target.judge(targetReport(tt.cells...))); diff != "" {
				t.Errorf("judge (-want +got):\n%s", diff)
			}
		})
	}
}

// TestTargetsAreInTheirSuites: every target is about rows that the suite measures, with
// what is always there or slirp4netns and pasta.
func TestTargetsAreInTheirSuites(t *testing.T) {
	for _, suite := range Suites() {
		if !suite.targets {
			if got := (&Report{Method: Method{Suite: suite.Name}}).Targets(); got != nil {
				t.Errorf("%s: %d targets", suite.Name, len(got))
			}
			continue
		}
		cells := catalogue(Config{Suite: suite.Name, MTUs: suite.MTUs, Streams: suite.Streams})
		for i := range cells {
			cells[i] = rowWith(cells[i], func(s *Sample) {
				s.Bytes, s.CPUSeconds, s.SystemCPUSeconds, s.RSS, s.Latency = 1e9, 1, 2, 3e6, &Latency{1, 2, 3}
			}, 7)
		}
		r := targetReport(slices.DeleteFunc(cells, func(c Cell) bool { return c.Driver == DriverGvisorTapVsock || c.Driver == DriverRootlessKit })...)
		r.Method.Suite = suite.Name
		for _, reached := range r.Targets() {
			if reached.Verdict == NotMeasured || reached.Figure == "" || reached.Interval == "" {
				t.Errorf("%s: %s, %s: %s", suite.Name, reached.Work, reached.Target, reached.Verdict)
			}
		}
	}
}

// TestTargetsAreShown in what people read.
func TestTargetsAreShown(t *testing.T) {
	r := targetReport(rowWith(upload(DriverHost, 0), nil, 40), rowWith(upload(DriverSlipway, 1500), nil, 30))
	for format, want := range map[Format][]string{
		FormatTable:    {"Targets: 1 of ", "targets are met, ", "Upload  ", "0.75×", "host", "met\n", "not measured\n"},
		FormatMarkdown: {"## Targets\n", "| Upload | ≥ 0.50× the host | 0.75× | 0.75× - 0.75× | host | met |\n", "| not measured |\n"},
	} {
		text, err := r.Render(Output{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s has no %q:\n%s", format, w, text)
			}
		}
	}
	if p := r.Page(); len(p.Targets) != len(targets) || !strings.HasPrefix(p.TargetSummary, "1 of ") {
		t.Errorf("the page has %d targets of %d, %q", len(p.Targets), len(targets), p.TargetSummary)
	}
}
