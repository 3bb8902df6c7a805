package metrics

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// BenchmarkScrape is a scrape of an engine in its sandbox, with as many of gVisor's
// counters as it has. What is gathered once a second is in it once.
func BenchmarkScrape(b *testing.B) {
	s := sample()
	s.GVisor = map[string]uint64{}
	for i := range 250 {
		s.GVisor[fmt.Sprintf("nics_malformed_l4_rcvd_packets_%d", i)] = uint64(i) * 1000003
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(buildInfo("1.2.3"), collectors.NewGoCollector(collectors.WithGoCollectorMemStatsMetricsDisabled()), newUsageCollector())
	e := &Exporter{src: fixed(s), registry: registry}
	var scrape bytes.Buffer
	b.ReportAllocs()
	for b.Loop() {
		scrape.Reset()
		if err := e.appendTo(&scrape); err != nil {
			b.Fatal(err)
		}
	}
}

// TestProcessAge: the process' own metrics are gathered once a second, however often
// somebody scrapes, and are in every scrape.
func TestProcessAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gathered := 0.0
		registry := prometheus.NewRegistry()
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "gathered_total", Help: "How often."}, func() float64 {
			gathered++
			return gathered
		}))
		e := &Exporter{src: fixed(sample()), registry: registry}
		for _, tt := range []struct {
			after time.Duration
			want  string
		}{{0, "gathered_total 1\n"}, {processAge - 1, "gathered_total 1\n"}, {1, "gathered_total 2\n"}} {
			time.Sleep(tt.after)
			var scrape bytes.Buffer
			if err := e.appendTo(&scrape); err != nil {
				t.Fatal(err)
			}
			if !bytes.HasSuffix(scrape.Bytes(), []byte(tt.want)) {
				t.Errorf("%s later a scrape ends with %q, want %q", tt.after, scrape.Bytes()[scrape.Len()-40:], tt.want)
			}
		}
	})
}

// TestNetstackChanges: a scrape has the counters that there are, also when they are others
// than before.
func TestNetstackChanges(t *testing.T) {
	for _, values := range []map[string]uint64{{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5, "c": 6}, {"a": 7}, {"a": 8, "B": 9}} {
		var scrape text
		Snapshot{GVisor: values}.appendTo(&scrape)
		families := parse(t, scrape)
		got := map[string]uint64{}
		for name, f := range families {
			var key string
			if n, _ := fmt.Sscanf(name, "slipway_netstack_%s", &key); n == 1 {
				got[key[:len(key)-len("_total")]] = uint64(f.GetMetric()[0].GetCounter().GetValue())
			}
		}
		want := map[string]uint64{}
		for key, v := range values {
			if !isName(key) {
				key = overflow
			}
			want[key] = v
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("counters %v, want %v", got, want)
		}
	}
}
