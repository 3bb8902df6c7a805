package metrics

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// fixed is a source that always counts the same.
type fixed Snapshot

func (f fixed) Snapshot() Snapshot { return Snapshot(f) }

// sample is a snapshot in which every number is another one.
func sample() Snapshot {
	return Snapshot{
		Link:         Traffic{FromBytes: 1, ToBytes: 2, FromPackets: 3, ToPackets: 4},
		Drops:        map[string]uint64{"bad_checksum": 5, "foreign_source": 6},
		TCPFromBytes: 7, TCPToBytes: 8,
		FlowsOpen: 9, FlowsTotal: 10, FlowsReset: 11, FlowsFailed: 12, Buffered: 83, BufferFull: 84, HandshakesFailed: 13,
		DialsPending: 14, SYNsHeld: 70, DialErrors: map[string]uint64{"refused": 15, "timeout": 16}, Retransmits: 17,
		DialTime:       Histogram{Bounds: []float64{0.5, 1}, Counts: []uint64{55, 56, 57}, Sum: 58},
		FlowTime:       Histogram{Bounds: []float64{2, 4}, Counts: []uint64{59, 60, 61}, Sum: 62},
		Refused:        map[string]uint64{"flows": 18, "pending_dials": 19},
		PolicyRefusals: map[string]uint64{"host_access": 63, "metadata": 64},
		UDP: UDP{
			Traffic:      Traffic{FromBytes: 20, ToBytes: 21, FromPackets: 22, ToPackets: 23},
			SessionsOpen: 24, SessionsTotal: 25, SessionsEvicted: 26,
		},
		DNS:            DNS{Queries: 27, Failures: 28, Failovers: 65, Latency: Histogram{Bounds: []float64{0.25}, Counts: []uint64{66, 67}, Sum: 68}},
		ICMP:           ICMP{Requests: 29, Replies: 30},
		EngineRestarts: 31, PortSocketFailures: 32, PortAcceptFailures: 72, PortsWaiting: 70, PortsWaited: 71,
		Container: Container{Name: "web", Namespace: "4026532000"},
		Processes: map[string]Process{"engine": {CPU: 51 * time.Second, Resident: 52}, "monitor": {CPU: 53 * time.Second, Resident: 54}},
		Fragments: 48, Reassembled: 49, Leases: 50,
		Ports: []Port{
			{Protocol: "tcp", Listen: "0.0.0.0:8080", ContainerPort: 80, Path: "kernel", Open: 32, Total: 33, Refused: 34, FromBytes: 35, ToBytes: 36},
			{Protocol: "udp", Listen: "127.0.0.1:53", ContainerPort: 5353, Path: "tap", Open: 37, Total: 38, Refused: 39, FromBytes: 40, ToBytes: 41},
		},
		GVisor: map[string]uint64{
			"tcp_current_established": 42, "tcp_retransmits": 43, "ip_packets_received": 44,
			"nics_malformed_l4_rcvd_packets": 45, "tcp_checksum_errors": 46, "dropped_packets": 47,
			"tcp_segments_sent": 69,
		},
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

// parse reads a scrape with Prometheus' own parser.
func parse(t *testing.T, scrape []byte) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(scrape))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// TestText compares everything that a snapshot gives with a golden text, and lets
// Prometheus' own parser and linter read it.
func TestText(t *testing.T) {
	const golden = "testdata/metrics.prom"
	var got text
	sample().appendTo(&got)
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("scrape (-want +got), go test -update writes it anew:\n%s", diff)
	}
	families := parse(t, got)
	if n := strings.Count(string(got), "# TYPE "); n != len(families) {
		t.Errorf("%d families were written and %d read", n, len(families))
	}
	problems, err := promlint.New(bytes.NewReader(got)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("lint: %s: %s", p.Metric, p.Text)
	}
}

// TestTextRead: what Prometheus' parser reads is what was written: buckets, and labels of
// any text.
func TestTextRead(t *testing.T) {
	s := sample()
	s.Container.Name = "a\"b\\c\nd\xff{é}=,"
	var got text
	s.appendTo(&got)
	families := parse(t, got)
	h := families["slipway_tcp_dial_duration_seconds"].GetMetric()[0].GetHistogram()
	type bucket struct {
		Bound float64
		Count uint64
	}
	var buckets []bucket
	for _, b := range h.GetBucket() {
		buckets = append(buckets, bucket{b.GetUpperBound(), b.GetCumulativeCount()})
	}
	want := []bucket{{0.5, 55}, {1, 111}, {math.Inf(1), 168}}
	if diff := cmp.Diff(want, buckets); diff != "" || h.GetSampleCount() != 168 || h.GetSampleSum() != 58 {
		t.Errorf("%d dials of %g s, buckets (-want +got):\n%s", h.GetSampleCount(), h.GetSampleSum(), diff)
	}
	for _, l := range families["slipway_container_info"].GetMetric()[0].GetLabel() {
		if want := "a\"b\\c\nd\uFFFD{é}=,"; l.GetName() == "name" && l.GetValue() != want {
			t.Errorf("the container is called %q, want %q", l.GetValue(), want)
		}
	}
	if v := families["slipway_netstack_tcp_current_established"].GetMetric()[0].GetGauge().GetValue(); v != 42 {
		t.Errorf("%g connections are established, want 42", v)
	}
}

// TestLintSeesFaults: a linter that finds nothing proves something only when it would find one.
func TestLintSeesFaults(t *testing.T) {
	problems, err := promlint.New(strings.NewReader("# HELP slipway_queries Queries.\n# TYPE slipway_queries counter\nslipway_queries 1\n")).Lint()
	if err != nil || len(problems) == 0 {
		t.Errorf("lint of a counter without _total: %v, %v; want a problem", problems, err)
	}
}

func TestBounded(t *testing.T) {
	tests := []struct {
		name  string
		in    map[string]uint64
		limit int
		want  map[string]uint64
	}{
		{"nil", nil, 3, nil},
		{"fits", map[string]uint64{"a": 1, "b": 2}, 3, map[string]uint64{"a": 1, "b": 2}},
		{"too many", map[string]uint64{"a": 1, "b": 2, "c": 3, "d": 4}, 3, map[string]uint64{"a": 1, "b": 2, "other": 7}},
		{"not a word", map[string]uint64{"a": 1, "B": 2, "x y": 3, "": 4, "1a": 5, "ü": 6}, 9, map[string]uint64{"a": 1, "other": 20}},
		{"too long", map[string]uint64{strings.Repeat("a", maxName+1): 1}, 9, map[string]uint64{"other": 1}},
		{"other itself", map[string]uint64{"a": 1, "other": 2, "é": 3}, 9, map[string]uint64{"a": 1, "other": 5}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, bounded(tt.in, tt.limit)); diff != "" {
				t.Errorf("bounded(-want +got):\n%s", diff)
			}
		})
	}
}

// TestPortsBounded: any number of ports, also equal ones, gives a scrape without error
// and with a bounded number of series.
func TestPortsBounded(t *testing.T) {
	var s Snapshot
	for i := range maxPorts + 100 {
		s.Ports = append(s.Ports, Port{Protocol: "tcp", Listen: fmt.Sprintf("127.0.0.1:%d", i), ContainerPort: 80, Path: "tap", Total: 1})
	}
	s.Ports = append(s.Ports, s.Ports[0])
	var written text
	s.appendTo(&written)
	f := parse(t, written)["slipway_port_connections_total"]
	var sum float64
	for _, m := range f.GetMetric() {
		sum += m.GetCounter().GetValue()
	}
	if got := len(f.GetMetric()); got != maxPorts || sum != float64(len(s.Ports)) {
		t.Errorf("%d series with %g connections, want %d with %d", got, sum, maxPorts, len(s.Ports))
	}
}
