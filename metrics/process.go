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
	return newUsageCollector()
}

func newUsageCollector() *usageCollector {
	return &usageCollector{
		cpu:     prometheus.NewDesc("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", nil, nil),
		start:   prometheus.NewDesc("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", nil, nil),
		maxRSS:  prometheus.NewDesc("process_resident_memory_max_bytes", "Most resident memory so far in bytes.", nil, nil),
		openFDs: prometheus.NewDesc("process_open_fds", "Number of open file descriptors.", nil, nil),
		maxFDs:  prometheus.NewDesc("process_max_fds", "Maximum number of open file descriptors.", nil, nil),
		started: time.Now(),
	}
}

var _ prometheus.Collector = (*usageCollector)(nil)

// usageCollector asks getrusage(2), getrlimit(2) and poll(2).
type usageCollector struct {
	cpu, start, maxRSS, openFDs, maxFDs *prometheus.Desc
	started                             time.Time
}

func (c *usageCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.cpu
	ch <- c.start
	ch <- c.maxRSS
	ch <- c.openFDs
	ch <- c.maxFDs
}

func (c *usageCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(c.start, prometheus.GaugeValue, float64(c.started.UnixMilli())/1e3)
	if open, limit, err := openDescriptors(); err == nil {
		ch <- prometheus.MustNewConstMetric(c.openFDs, prometheus.GaugeValue, float64(open))
		ch <- prometheus.MustNewConstMetric(c.maxFDs, prometheus.GaugeValue, float64(limit))
	}
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return // the sandbox may refuse this too; no number is better than a wrong one
	}
	seconds := time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
	ch <- prometheus.MustNewConstMetric(c.cpu, prometheus.CounterValue, seconds)
	ch <- prometheus.MustNewConstMetric(c.maxRSS, prometheus.GaugeValue, float64(u.Maxrss)*1024) // KiB, getrusage(2)
}

const (
	fdChunk = 1024 // descriptors looked at by one call of poll(2)
	// fdGap ends the count: the kernel gives the lowest free number, so this many
	// closed ones in a row are the end of all but what a great many once pushed up.
	fdGap = 1 << 12
)

// openDescriptors counts what is open without /proc, and returns how many may be:
// poll(2) tells which numbers are not. Descriptors above a limit that was lowered
// are not seen.
func openDescriptors() (open, limit uint64, err error) {
	var nofile unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &nofile); err != nil {
		return 0, 0, err
	}
	limit = nofile.Cur
	fds := make([]unix.PollFd, min(fdChunk, limit)) // more than the limit is EINVAL
	closed := 0
	for first := uint64(0); first < limit && closed < fdGap; first += uint64(len(fds)) {
		fds = fds[:min(uint64(len(fds)), limit-first)]
		for i := range fds {
			fds[i] = unix.PollFd{Fd: int32(first) + int32(i)}
		}
		if _, err := unix.Poll(fds, 0); err != nil {
			return 0, 0, err
		}
		for _, f := range fds {
			if f.Revents&unix.POLLNVAL != 0 {
				closed++
				continue
			}
			open, closed = open+1, 0
		}
	}
	return open, limit, nil
}
