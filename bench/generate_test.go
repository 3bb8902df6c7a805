package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// TestHistogram: quantiles are within 1 % of those of the values.
func TestHistogram(t *testing.T) {
	var h histogram
	for i := 1; i <= 100_000; i++ {
		h.add(time.Duration(i) * time.Microsecond)
	}
	h.add(math.MaxInt64) // fits too
	for _, tt := range []struct{ q, want float64 }{{0.5, 0.05}, {0.99, 0.099}, {0.999, 0.0999}} {
		if got := h.quantile(tt.q); math.Abs(got/tt.want-1) > 0.01 {
			t.Errorf("quantile %g: %g s, want %g", tt.q, got, tt.want)
		}
	}
	for _, n := range []uint64{0, 1, 127, 128, 255, 256, 257, 1 << 40, math.MaxInt64} {
		if start := bucketStart(bucketOf(n)); start > n || float64(n-start) > 0.01*float64(n) {
			t.Errorf("%d is in the bucket that starts at %d", n, start)
		}
	}
}

// TestGenerate: each client against its server, on loopback.
func TestGenerate(t *testing.T) {
	b := &bed{self: "/proc/self/exe"}
	for _, tt := range []struct {
		workload Workload
		least    float64 // requests a second
	}{{WorkloadLatency, 100}, {WorkloadConnect, 100}, {WorkloadDNS, 100}} {
		t.Run(string(tt.workload), func(t *testing.T) {
			l := &lane{}
			if err := hostStart(t.Context(), b, l); err != nil {
				t.Fatal(err)
			}
			c := Cell{Driver: DriverHost, Workload: tt.workload, Direction: DirectionLoopback, Streams: 4, Unit: unitOf(tt.workload)}
			w, e := workOf(tt.workload), l.ends(b, c)
			stop, err := w.prepare(t.Context(), b, e, c, warmupTiming)
			defer stop()
			if err != nil {
				t.Fatal(err)
			}
			s, err := w.run(t.Context(), b, e, c, warmupTiming)
			if err != nil {
				t.Fatal(err)
			}
			rate := s.Value
			if c.Unit == UnitSeconds {
				rate = 1 / s.Value
				if s.Latency.P50 > s.Latency.P99 || s.Latency.P99 > s.Latency.P999 {
					t.Errorf("latencies %+v", s.Latency)
				}
			}
			if rate < tt.least || float64(s.Bytes) < tt.least {
				t.Errorf("%+v, want at least %g a second", s, tt.least)
			}
		})
	}
}

// TestIdle: memory is read while the flows of the row are open.
func TestIdle(t *testing.T) {
	b, l := &bed{self: "/proc/self/exe"}, &lane{}
	defer l.shut()
	if err := hostStart(t.Context(), b, l); err != nil {
		t.Fatal(err)
	}
	if err := b.run(l, []string{"sleep", "60"}, ""); err != nil {
		t.Fatal(err)
	}
	const flows = 40
	open := until(t.Context(), func() bool {
		all, err := sockets(0)
		if err != nil {
			t.Error(err)
		}
		n := 0
		for _, s := range all {
			if !s.listens && s.remote == otherPort {
				n++
			}
		}
		return n == flows
	})
	r, err := b.idle(t.Context(), l, Cell{Driver: DriverHost, Workload: WorkloadIdle, Streams: flows})
	if err != nil || r.rss == 0 {
		t.Errorf("%d bytes, %v", r.rss, err)
	}
	select {
	case <-open:
	default:
		t.Errorf("there never were %d flows", flows)
	}
}

func TestGenerateBadInput(t *testing.T) {
	for _, args := range [][]string{nil, {"latency"}, {"nothing", "1"}, {"latency", "1.2.3.4", "1"}, {"connect", "127.0.0.1:1", "0", "1"}, {"connect", "127.0.0.1:1", "NaN", "1"}, {"connect", "127.0.0.1:1", "1", "0"}, {"path", "a", "b", "x", "0"}, {"path", "a", "b", "1", "1001"}, {"idle", "127.0.0.1:1", "0"}, {"idle", "127.0.0.1:1", "1"}} {
		var out bytes.Buffer
		if err := Generate(args, &out); !errors.Is(err, errGenerate) || out.Len() > 0 {
			t.Errorf("Generate(%q): %v and %q, want an errGenerate", args, err, out.String())
		}
	}
	for _, g := range []generated{{}, {Count: 100, Failed: 2, Seconds: 1, Error: "refused"}, {Count: 1}} {
		text, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseGenerated(text, Cell{Unit: UnitPerSecond}); !errors.Is(err, errGenerate) {
			t.Errorf("parseGenerated(%s): %v, want an errGenerate", text, err)
		}
	}
	if _, err := answerOf([]byte("no query")); err == nil {
		t.Error("answerOf nonsense: no error")
	}
	q := dnsmessage.Message{Header: dnsmessage.Header{Response: true}}
	packed, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := answerOf(packed); err == nil {
		t.Error("answerOf an answer: no error")
	}
}

func TestParseWrk(t *testing.T) {
	const text = `Running 2s test @ http://127.0.0.1:5202/100
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   283.01us  171.11us   5.09ms   92.80%
    Req/Sec    57.50k     3.04k   60.52k    80.00%
  Latency Distribution
     50%  260.00us
     75%  310.00us
     90%  400.00us
     99%    1.20ms
  57088 requests in 2.00s, 18.45MB read
Requests/sec:  57079.18
Transfer/sec:     18.44MB
`
	s, err := parseWrk([]byte(text), Cell{Size: 100})
	if err != nil || s.Value != 28544 || s.Bytes != 5708800 || s.Latency == nil || s.Latency.P50 != 260e-6 || s.Latency.P99 != 1.2e-3 {
		t.Errorf("parseWrk: %+v, %v", s, err)
	}
	for _, bad := range []string{"", "unable to connect to 127.0.0.1:5202 Connection refused", text + "  Non-2xx or 3xx responses: 3\n",
		text + "  Socket errors: connect 0, read 3, write 0, timeout 0\n", strings.ReplaceAll(text, "57088 requests", "0 requests")} {
		if s, err := parseWrk([]byte(bad), Cell{Size: 100}); err == nil {
			t.Errorf("parseWrk(%.60q): %+v, want an error", bad, s)
		}
	}
}

// TestDefects: a row that shows a known fault is marked, and not compared.
func TestDefects(t *testing.T) {
	// As many packets again, of a hundred times as many bytes.
	sick := Sample{Round: 1, Value: 56e6, Seconds: 1, Bytes: 7e6, Retransmits: 140}
	well := Sample{Round: 1, Value: 56e8, Seconds: 1, Bytes: 7e8, Retransmits: 140}
	host := Cell{Driver: DriverHost, Workload: WorkloadStream, Direction: DirectionLoopback, Streams: 1, Unit: UnitBitsPerSecond, Samples: []Sample{{Round: 1, Value: 5e10}}}
	row := func(driver string, mtu int, s Sample) Cell {
		return Cell{Driver: driver, Workload: WorkloadStream, Direction: DirectionUp, MTU: mtu, Streams: 1, Unit: UnitBitsPerSecond, Samples: []Sample{s}}
	}
	r := &Report{Cells: []Cell{host, row(DriverPasta, 1500, sick), row(DriverPasta, 1500, well), row(DriverSlipway, 1500, sick)}}
	r.summarize()
	if c := r.Cells[1]; !strings.Contains(c.Defect, "3 % of the packets") || c.Summary.Gap != 0 {
		t.Errorf("pasta that loses packets: defect %q, gap %g; want it marked and no gap", c.Defect, c.Summary.Gap)
	}
	for _, c := range r.Cells[2:] {
		if c.Defect != "" || c.Summary.Gap == 0 {
			t.Errorf("%s: defect %q, gap %g; want none and a gap", c.ID(), c.Defect, c.Summary.Gap)
		}
	}
}
