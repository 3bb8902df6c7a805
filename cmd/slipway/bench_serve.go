package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/net/netutil"

	"slipway/bench"
)

// Limits of the endpoint: reports change seldom, and one Prometheus or two ask.
const (
	benchConnections = 16
	benchScrapes     = 2 // at a time
	benchTimeout     = 15 * time.Second
)

// newBenchServeCmd is slipway bench serve.
func newBenchServeCmd() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "serve FILE|DIR",
		Short: "Serve the gap and its like of reports as Prometheus metrics",
		Long: `Serve the gap and its like of a report, or of all reports (*.json) in a directory, as
Prometheus metrics at /metrics. The files are read anew at each scrape; of each row the
newest counts.`,
		Example: "  slipway bench serve --listen 127.0.0.1:9631 reports/",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return serveReports(cmd.Context(), cmd.ErrOrStderr(), bench.Gauges{Path: args[0]}, listen)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:9631", "address and port; everybody who reaches it may read")
	return cmd
}

// serveReports serves until the context ends.
func serveReports(ctx context.Context, stderr io.Writer, gauges bench.Gauges, address string) error {
	// Better now than in a scrape that nobody looks at.
	if reports, failures := gauges.Read(); len(reports) == 0 {
		return errors.Join(failures...)
	}
	registry := prometheus.NewRegistry()
	if err := registry.Register(gauges); err != nil {
		return fmt.Errorf("serve reports: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: benchScrapes, Timeout: benchTimeout - time.Second, EnableOpenMetrics: true,
	}))
	server := &http.Server{
		Handler: mux, ReadTimeout: benchTimeout, WriteTimeout: benchTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		// What a client does wrong is no news for anybody.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("serve reports: %w", err)
	}
	fmt.Fprintf(stderr, "serving http://%s/metrics\n", listener.Addr())
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(netutil.LimitListener(listener, benchConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve reports: %w", err)
	}
	return nil
}
