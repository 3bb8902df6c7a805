package metrics

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Limits of the HTTP endpoint: one who holds a connection open or sends garbage costs
// next to nothing.
const (
	maxConnections = 32
	maxScrapes     = 4 // at a time
	maxHeader      = 8 << 10
	readTimeout    = 5 * time.Second
	writeTimeout   = 15 * time.Second
	idleTimeout    = time.Minute
)

// Exporter serves the metrics of one source.
type Exporter struct {
	registry *prometheus.Registry
	server   *http.Server
}

// New makes an exporter with a registry of its own. version is that of Slipway.
func New(src Source, version string) *Exporter {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{src}, buildInfo(version), collectors.NewGoCollector(), processCollector())

	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes,
		Timeout:             writeTimeout - time.Second,
		EnableOpenMetrics:   true,
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "Slipway: metrics for Prometheus are at /metrics\n")
	})
	return &Exporter{
		registry: registry,
		server: &http.Server{
			Handler:           mux,
			ReadTimeout:       readTimeout,
			ReadHeaderTimeout: readTimeout,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeader,
			// What a client does wrong is no news for anybody.
			ErrorLog: log.New(io.Discard, "", 0),
		},
	}
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
