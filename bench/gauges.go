package bench

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// rowLabels tell one row from another; size, delay and loss are empty where there is none.
var rowLabels = []string{"driver", "workload", "direction", "mtu", "streams", "size", "delay_ms", "lost_per_1000"}

func rowDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("slipway_bench_"+name, help, rowLabels, nil)
}

var (
	gapGauge     = rowDesc("gap_ratio", "The value divided by that of the host's own loopback in the same round, the median of that; of speeds 1 is the most, of latencies the least.")
	bitsGauge    = rowDesc("bits_per_second", "Median of the payload's speed.")
	rateGauge    = rowDesc("operations_per_second", "Median of the connections, requests, queries or pages in a second.")
	timeGauge    = rowDesc("duration_seconds", "Median of the time that one operation, or getting ready, took.")
	memoryGauge  = rowDesc("resident_memory_bytes", "Median of the memory of the network's own processes.")
	cpuGauge     = rowDesc("cpu_seconds_per_gigabyte", "Median of the CPU seconds of the network's own processes for 10^9 bytes.")
	systemGauge  = rowDesc("system_cpu_seconds_per_gigabyte", "The same of the whole machine.")
	lossGauge    = rowDesc("loss_ratio", "Median of the share of datagrams that did not arrive.")
	spreadGauge  = rowDesc("spread_ratio", "Distance of the slowest and the fastest measurement, divided by the median.")
	lastRun      = rowDesc("last_run_timestamp_seconds", "When the run began that the row is of.")
	latencyGauge = rowDesc("latency_seconds", "Latency of single requests: medians over the measurements of each quantile. The count is that of measurements, the sum that of their medians.")
	unreadable   = prometheus.NewDesc("slipway_bench_unreadable_reports", "Files that are no report this program can read.", nil, nil)
)

// Gauges shows reports as metrics: of each row the newest that there is. Path is a
// report or a directory of reports (*.json), and read at each scrape.
type Gauges struct{ Path string }

var _ prometheus.Collector = Gauges{}

// Describe sends nothing: which rows there are is known only when they are read.
func (Gauges) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (g Gauges) Collect(ch chan<- prometheus.Metric) {
	reports, failures := g.Read()
	collectReports(ch, reports)
	ch <- prometheus.MustNewConstMetric(unreadable, prometheus.GaugeValue, float64(len(failures)))
}

// maxReports of a directory that are read.
const maxReports = 1000

// Read reads what there is, and says what could not be read and why.
func (g Gauges) Read() (reports []*Report, failures []error) {
	paths := []string{g.Path}
	if info, err := os.Stat(g.Path); err != nil {
		return nil, []error{fmt.Errorf("read reports: %w", err)}
	} else if info.IsDir() {
		if paths, err = filepath.Glob(filepath.Join(escapeGlob(g.Path), "*.json")); err != nil {
			return nil, []error{fmt.Errorf("read reports: %w", err)}
		}
		if len(paths) == 0 {
			return nil, []error{fmt.Errorf("read reports: %w: no *.json in %s", fs.ErrNotExist, g.Path)}
		}
		if len(paths) > maxReports {
			return nil, []error{fmt.Errorf("read reports: %d files in %s, at most %d", len(paths), g.Path, maxReports)}
		}
	}
	for _, path := range paths {
		r, err := ReadReport(path)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		reports = append(reports, r)
	}
	return reports, failures
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// collector of one report.
type collector struct{ report *Report }

func (collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(ch chan<- prometheus.Metric) { collectReports(ch, []*Report{c.report}) }

// collectReports sends the newest of each row.
func collectReports(ch chan<- prometheus.Metric, reports []*Report) {
	slices.SortStableFunc(reports, func(a, b *Report) int { return b.Environment.Time.Compare(a.Environment.Time) })
	seen := map[string]bool{}
	for _, r := range reports {
		for _, c := range r.Cells {
			if c.Summary == nil || seen[c.ID()] {
				continue
			}
			seen[c.ID()] = true
			c.collect(ch, r)
		}
	}
}

// collect sends the metrics of a row.
func (c Cell) collect(ch chan<- prometheus.Metric, r *Report) {
	given := func(n int) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(n)
	}
	labels := []string{
		c.Driver, string(c.Workload), string(c.Direction), given(c.MTU), strconv.Itoa(c.Streams), given(c.Size), given(c.DelayMillis), given(c.LostPerThousand),
	}
	s := c.Summary
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	byUnit := map[Unit]*prometheus.Desc{UnitBitsPerSecond: bitsGauge, UnitPerSecond: rateGauge, UnitSeconds: timeGauge, UnitBytes: memoryGauge}
	gauge(byUnit[c.Unit], s.Median)
	gauge(spreadGauge, s.Spread)
	gauge(lastRun, float64(r.Environment.Time.Unix()))
	if s.Gap > 0 {
		gauge(gapGauge, s.Gap)
	}
	if s.CPUPerGB > 0 && c.Driver != DriverHost {
		gauge(cpuGauge, s.CPUPerGB)
	}
	if s.SystemCPUPerGB > 0 {
		gauge(systemGauge, s.SystemCPUPerGB)
	}
	if s.Loss > 0 {
		gauge(lossGauge, s.Loss)
	}
	if l := s.Latency; l != nil {
		var n uint64
		var sum float64
		for _, sample := range c.counted() {
			if sample.Latency != nil {
				n++
				sum += sample.Latency.P50
			}
		}
		quantiles := map[float64]float64{0.5: l.P50, 0.99: l.P99}
		if l.P999 > 0 {
			quantiles[0.999] = l.P999
		}
		ch <- prometheus.MustNewConstSummary(latencyGauge, n, sum, quantiles, labels...)
	}
}

// writeOpenMetrics writes the report's metrics, also for node_exporter's textfile
// collector, which takes the closing "# EOF" for a comment.
func (r *Report) writeOpenMetrics(w io.Writer) error {
	registry := prometheus.NewRegistry()
	if err := registry.Register(collector{r}); err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	families, err := registry.Gather()
	if err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	if len(families) == 0 {
		return errors.New("write metrics: nothing was measured")
	}
	out := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeOpenMetrics))
	for _, f := range families {
		if err := out.Encode(f); err != nil {
			return fmt.Errorf("write metrics: %w", err)
		}
	}
	if closer, ok := out.(expfmt.Closer); ok {
		if err := closer.Close(); err != nil {
			return fmt.Errorf("write metrics: %w", err)
		}
	}
	return nil
}
