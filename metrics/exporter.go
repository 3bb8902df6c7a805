package metrics

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
	"golang.org/x/net/netutil"
)

// Limits of the HTTP endpoint: one who holds a connection open or sends garbage costs
// next to nothing.
const (
	maxConnections = 32
	maxScrapes     = 4 // at a time
	maxHeader      = 8 << 10
	typicalScrape  = 80 << 10 // bytes; one that is longer costs a copy
	readTimeout    = 5 * time.Second
	writeTimeout   = 15 * time.Second
	idleTimeout    = time.Minute
)

// Exporter serves the metrics of one source.
type Exporter struct {
	src      Source
	registry *prometheus.Registry // of the process' own metrics
	slots    chan struct{}        // one for each scrape at a time
	server   *http.Server

	mu       sync.Mutex // guards the following fields
	own      bytes.Buffer
	gathered time.Time // when own was; zero: never
}

// processAge is how long the process' own metrics are used again. To gather them costs
// more than all the rest: without /proc, open descriptors are counted by poll(2) on
// thousands of numbers.
const processAge = time.Second

// New makes an exporter with a registry of its own. version is that of Slipway.
func New(src Source, version string) *Exporter {
	e := &Exporter{src: src, registry: prometheus.NewRegistry(), slots: make(chan struct{}, maxScrapes)}
	e.registry.MustRegister(buildInfo(version), collectors.NewGoCollector(collectors.WithGoCollectorMemStatsMetricsDisabled()), processCollector())

	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", e.scrape)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "Slipway: metrics for Prometheus are at /metrics\n")
	})
	e.server = &http.Server{
		Handler:           mux,
		ReadTimeout:       readTimeout,
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		// What a client does wrong is no news for anybody.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	return e
}

// scrape answers one scrape. It does not compress: that would cost more than all the
// rest, for some 50 KB on what is mostly the loopback device.
func (e *Exporter) scrape(w http.ResponseWriter, _ *http.Request) {
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	default:
		http.Error(w, fmt.Sprintf("%d scrapes are under way", maxScrapes), http.StatusServiceUnavailable)
		return
	}
	b := buffers.Get().(*bytes.Buffer) //nolint:forcetypeassert // nothing else is put there
	defer buffers.Put(b)
	b.Reset()
	if err := e.appendTo(b); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	_, _ = w.Write(b.Bytes())
}

// buffers of scrapes, at most maxScrapes of them in use.
var buffers = sync.Pool{New: func() any { return bytes.NewBuffer(make([]byte, 0, typicalScrape)) }}

// appendTo writes what a scrape gets.
func (e *Exporter) appendTo(b *bytes.Buffer) error {
	snapshot := text(b.AvailableBuffer())
	e.src.Snapshot().appendTo(&snapshot)
	b.Write(snapshot)
	return e.appendProcess(b)
}

// appendProcess writes the process' own metrics, at most processAge old.
func (e *Exporter) appendProcess(b *bytes.Buffer) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gathered.IsZero() || time.Since(e.gathered) >= processAge {
		families, err := e.registry.Gather()
		if err != nil {
			return fmt.Errorf("gather the process' metrics: %w", err)
		}
		e.own.Reset()
		e.gathered = time.Time{} // until it is whole
		for _, f := range families {
			if _, err := expfmt.MetricFamilyToText(&e.own, f); err != nil {
				return fmt.Errorf("write the process' metrics: %w", err)
			}
		}
		e.gathered = time.Now()
	}
	b.Write(e.own.Bytes())
	return nil
}

func buildInfo(version string) prometheus.Collector {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace:   namespace,
		Name:        "build_info",
		Help:        "Always 1, its labels tell what is running.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version(), "goarch": runtime.GOARCH},
	})
	build.Set(1)
	return build
}

// Serve answers on a listener until Close, and closes it. It may be called for several
// listeners at a time. The error is nil after Close.
func (e *Exporter) Serve(l net.Listener) error {
	err := e.server.Serve(netutil.LimitListener(l, maxConnections))
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
	}
	return nil
}

// Close ends every Serve and the connections that are open.
func (e *Exporter) Close() error {
	if err := e.server.Close(); err != nil {
		return fmt.Errorf("close metrics: %w", err)
	}
	return nil
}
