package metrics

import (
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sys/unix"
)

// processCollector tells what the process itself uses. The usual collector reads
// /proc/self, which the engine's sandbox closes; there the kernel is asked directly,
// which answers less.
func processCollector() prometheus.Collector {
	if _, err := os.ReadFile("/proc/self/stat"); err == nil {
		return collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})
	}
	return &usageCollector{
		cpu:     prometheus.NewDesc("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", nil, nil),
		start:   prometheus.NewDesc("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", nil, nil),
		maxRSS:  prometheus.NewDesc("process_resident_memory_max_bytes", "Most resident memory so far in bytes.", nil, nil),
		started: time.Now(),
	}
}

var _ prometheus.Collector = (*usageCollector)(nil)

// usageCollector asks getrusage(2).
type usageCollector struct {
	cpu, start, maxRSS *prometheus.Desc
	started            time.Time
}

func (c *usageCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.cpu
	ch <- c.start
	ch <- c.maxRSS
}

func (c *usageCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(c.start, prometheus.GaugeValue, float64(c.started.UnixMilli())/1e3)
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return // the sandbox may refuse this too; no number is better than a wrong one
	}
	seconds := time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
	ch <- prometheus.MustNewConstMetric(c.cpu, prometheus.CounterValue, seconds)
	ch <- prometheus.MustNewConstMetric(c.maxRSS, prometheus.GaugeValue, float64(u.Maxrss)*1024) // KiB, getrusage(2)
}
