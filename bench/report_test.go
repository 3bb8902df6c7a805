package bench

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sampleReport is a run in which everything has happened that can.
func sampleReport() *Report {
	samples := func(gigabits ...float64) []Sample {
		s := []Sample{{Round: 0, Value: 1e9, Seconds: 1, Bytes: 125e6}}
		for i, g := range gigabits {
			s = append(s, Sample{
				Round: i + 1, Value: g * 1e9, Seconds: 4, Bytes: uint64(g * 1e9 / 8 * 5), CPUSeconds: 0.2 * g,
				Retransmits: uint64(i), SenderCongestion: "reno", ReceiverCongestion: "reno",
			})
		}
		return s
	}
	r := &Report{
		Schema: SchemaVersion,
		Environment: Environment{
			Time: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), Kernel: "6.1.0-40-amd64", Arch: "amd64", CPUs: 2,
			CPUModel: "Example 9000", Load1: 0.25, Congestion: "reno", User: "ordinary user, one id mapped",
			Versions: map[string]string{"slipway": "1.2.3", "iperf3": "iperf 3.12", "slirp4netns": "slirp4netns version 1.2.0"},
		},
		Method: Method{Seconds: 4, OmitSeconds: 1, WarmupSeconds: 1, Repetitions: 3, MTU: 1500, Streams: 1},
		Cells: []Cell{
			{Driver: DriverHost, Workload: WorkloadStream, Direction: DirectionLoopback, Samples: samples(60, 61.5, 59),
				Commands: []string{"iperf3 --server", "iperf3 --client 127.0.0.1"}},
			{Driver: DriverSlipway, Workload: WorkloadStream, Direction: DirectionUp, Samples: samples(20, 30, 33),
				Commands:  []string{"slipway attach --pid 7"},
				Processes: []string{"slipway attach --pid 7", "slipway engine"}},
			{Driver: DriverSlirp4netns, Workload: WorkloadStream, Direction: DirectionUp, Samples: samples(1.5, 1.5, 1.5)},
			{Driver: DriverSlipway, Workload: WorkloadStream, Direction: DirectionDown, Samples: samples(24, 25, 23)},
			{Driver: DriverSlirp4netns, Workload: WorkloadStream, Direction: DirectionDown, Error: "slirp4netns ended: exit status 1: open(\"/dev/net/tun\"): Permission denied"},
			{Driver: DriverSlipway, Workload: WorkloadPublished, Direction: DirectionDown, Samples: samples(57, 57)},
			{Driver: DriverSlipway, Workload: WorkloadPublished, Direction: DirectionUp},
		},
		Skipped: []Skip{{Driver: DriverPasta, Reason: "not installed"}},
		Error:   "the run was ended: interrupt",
	}
	for i := range r.Cells {
		c := &r.Cells[i]
		c.Streams, c.Unit = 1, UnitBitsPerSecond
		if c.Driver != DriverHost {
			c.MTU = 1500
		}
	}
	published := &r.Cells[5]
	published.Samples = append(published.Samples, Sample{Round: 3, Error: "iperf3: unable to connect to server"})
	r.summarize()
	return r
}

// golden compares text with a file.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got), go test -update writes it anew:\n%s", path, diff)
	}
}

func TestWriteTable(t *testing.T) {
	var b bytes.Buffer
	if err := sampleReport().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/table.txt", b.Bytes())
}

func TestWriteJSON(t *testing.T) {
	var b bytes.Buffer
	if err := sampleReport().WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/report.json", b.Bytes())
}

// brokenPipe is a writer that cannot.
type brokenPipe struct{}

var errBroken = errors.New("broken pipe")

func (brokenPipe) Write([]byte) (int, error) { return 0, errBroken }

func TestWriteErrors(t *testing.T) {
	if err := sampleReport().WriteJSON(brokenPipe{}); !errors.Is(err, errBroken) {
		t.Errorf("WriteJSON: %v, want %v", err, errBroken)
	}
	if err := sampleReport().WriteTable(brokenPipe{}); !errors.Is(err, errBroken) {
		t.Errorf("WriteTable: %v, want %v", err, errBroken)
	}
}

// TestFailed: a peer that fails is the peer's business, a row of ours is not.
func TestFailed(t *testing.T) {
	want := []string{"slipway/published/down"}
	if diff := cmp.Diff(want, sampleReport().Failed()); diff != "" {
		t.Errorf("Failed(-want +got):\n%s", diff)
	}
}

// TestHeadings: every row of every suite is explained in the table.
func TestHeadings(t *testing.T) {
	suites := Suites()
	full := suites[len(suites)-1]
	for _, c := range catalogue(Config{Suite: full.Name, MTUs: full.MTUs, Streams: full.Streams}) {
		if headings[c.Workload][c.Direction] == "" {
			t.Errorf("%s has no heading", c.ID())
		}
	}
}

func TestTake(t *testing.T) {
	cfg := smallest("slipway/stream/up", "pasta")
	tests := []struct {
		name, events string
		end          bool
		err          string
	}{
		{"whole", `{"environment":{"kernel":"6.1"}} {"skip":{"driver":"pasta","reason":"not installed"}}
			{"id":"host/stream/loopback","commands":["iperf3"]} {"id":"host/stream/loopback","sample":{"round":1,"value":8}}
			{"id":"slipway/stream/up","error":"died"} {"end":true}`, true, ""},
		{"cut off", `{"environment":{"kernel":"6.1"}}`, false, ""},
		{"failed", `{"error":"mount /proc"}`, false, "mount /proc"},
		{"unknown row", `{"id":"x/y/z","error":"e"}`, false, `"x/y/z"`},
		{"nonsense", `{"environment":[]}`, false, "pid 1 of the run says"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &Report{Cells: cfg.cells()}
			var last Progress
			cfg.Progress = func(p Progress) { last = p }
			end, err := r.take(strings.NewReader(tt.events), cfg)
			if end != tt.end || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("take: %t, %v; want %t, %q", end, err, tt.end, tt.err)
			}
			if tt.name != "whole" {
				return
			}
			want := &Report{
				Environment: Environment{Kernel: "6.1"},
				Cells: []Cell{
					{Driver: DriverHost, Workload: WorkloadStream, Direction: DirectionLoopback, Streams: 1, Unit: UnitBitsPerSecond, Commands: []string{"iperf3"}, Samples: []Sample{{Round: 1, Value: 8}}},
					{Driver: DriverSlipway, Workload: WorkloadStream, Direction: DirectionUp, MTU: 1500, Streams: 1, Unit: UnitBitsPerSecond, Error: "died"},
				},
				Skipped: []Skip{{Driver: DriverPasta, Reason: "not installed"}},
			}
			if diff := cmp.Diff(want, r); diff != "" {
				t.Errorf("report(-want +got):\n%s", diff)
			}
			if last.Done != 1 || last.Total != 4 {
				t.Errorf("progress %d of %d, want 1 of 4", last.Done, last.Total)
			}
		})
	}
}

// kindsReport is a run with every kind of row: latencies, rates, losses, delays, sizes,
// streams, MTUs, a known defect, and names that nobody has foreseen.
func kindsReport() *Report {
	cell := func(driver string, workload Workload, direction Direction, unit Unit, value float64, change func(*Cell, *Sample)) Cell {
		c := Cell{Driver: driver, Workload: workload, Direction: direction, Streams: 1, Unit: unit, MTU: 1500}
		if driver == DriverHost {
			c.MTU = 0
		}
		for round := range 8 {
			s := Sample{Round: round, Value: value * (1 + 0.01*float64(round%5)), Seconds: 2}
			if unit == UnitBitsPerSecond {
				s.Bytes, s.CPUSeconds, s.SystemCPUSeconds = uint64(value/4), 1, 3
			}
			if change != nil {
				change(&c, &s)
			}
			c.Samples = append(c.Samples, s)
		}
		return c
	}
	latency := func(c *Cell, s *Sample) {
		c.Size = 64
		s.Latency = &Latency{P50: s.Value, P99: 3 * s.Value, P999: 20 * s.Value}
	}
	streams := func(c *Cell, _ *Sample) { c.Streams = 4 }
	r := sampleReport()
	r.Error, r.Skipped, r.Method.Command = "", nil, "slipway bench --suite full"
	r.Cells = []Cell{
		cell(DriverHost, WorkloadStream, DirectionLoopback, UnitBitsPerSecond, 60e9, nil),
		cell(DriverHost, WorkloadStream, DirectionLoopback, UnitBitsPerSecond, 90e9, streams),
		cell(DriverSlipway, WorkloadStream, DirectionUp, UnitBitsPerSecond, 30e9, func(_ *Cell, s *Sample) { s.StealSeconds = 0.1 }),
		cell("gvisor-tap-vsock", WorkloadStream, DirectionUp, UnitBitsPerSecond, 3e9, nil),
		cell(DriverSlipway, WorkloadStream, DirectionUp, UnitBitsPerSecond, 40e9, func(c *Cell, _ *Sample) { c.MTU = 65520 }),
		cell(DriverSlipway, WorkloadStream, DirectionUp, UnitBitsPerSecond, 45e9, streams),
		cell(DriverPasta, WorkloadStream, DirectionUp, UnitBitsPerSecond, 6e6, func(c *Cell, _ *Sample) { c.Defect = "loses wake-ups <script>alert(1)</script>" }),
		cell(DriverHost, "rr", DirectionLoopback, UnitSeconds, 20e-6, latency),
		cell(DriverSlipway, "rr", DirectionUp, UnitSeconds, 81e-6, latency),
		cell("slipway-plain", "rr", DirectionUp, UnitSeconds, 120e-6, latency),
		cell(DriverSlipway, "connect", DirectionUp, UnitPerSecond, 12000, nil),
		cell(DriverSlirp4netns, "connect", DirectionUp, UnitPerSecond, 900, nil),
		cell(DriverSlipway, "udp", DirectionDown, UnitBitsPerSecond, 2e9, func(c *Cell, s *Sample) { c.Size, s.Loss = 1400, 0.0123 }),
		cell(DriverSlipway, WorkloadStream, DirectionDown, UnitBitsPerSecond, 1e9, func(c *Cell, _ *Sample) { c.DelayMillis = 50 }),
	}
	r.summarize()
	return r
}
