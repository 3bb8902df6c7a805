package metrics

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/sys/unix"
)

// start serves on a unix socket and returns a client for it.
func start(t *testing.T) (*http.Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "metrics.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	e := New(fixed(sample()), "1.2.3")
	served := make(chan error, 1)
	go func() { served <- e.Serve(l) }()
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve after Close: %v, want nil", err)
		}
	})
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}, path
}

func TestEndpoint(t *testing.T) {
	client, _ := start(t)
	tests := []struct {
		method, path string
		status       int
		contains     []string
	}{
		{"GET", "/metrics", 200, []string{
			"slipway_tcp_flows_open 9\n",
			`slipway_port_payload_bytes_total{container_port="80",direction="to_container",listen="0.0.0.0:8080",path="kernel",protocol="tcp"} 36`,
			`slipway_build_info{goarch="`, `version="1.2.3"} 1`,
			"go_goroutines ", "process_cpu_seconds_total ",
		}},
		{"GET", "/", 200, []string{"/metrics"}},
		{"POST", "/metrics", 405, nil},
		{"GET", "/debug/pprof/", 404, nil},
		{"GET", "/debug/vars", 404, nil},
		{"GET", "/metrics/x", 404, nil},
	}
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://slipway"+tt.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status {
				t.Errorf("status %d, want %d", resp.StatusCode, tt.status)
			}
			for _, want := range tt.contains {
				if !strings.Contains(string(body), want) {
					t.Errorf("no %q in:\n%.2000s", want, body)
				}
			}
			if tt.path != "/metrics" || tt.status != 200 {
				return
			}
			problems, err := promlint.New(strings.NewReader(string(body))).Lint()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range problems {
				t.Errorf("lint: %s: %s", p.Metric, p.Text)
			}
		})
	}
}

// TestHeaderBounded: a request with an endless header is refused, and its connection ends.
func TestHeaderBounded(t *testing.T) {
	_, path := start(t)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// net/http reads 4 KiB more than it was told; the peer may close before all is sent.
	_, _ = io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("a", maxHeader+8<<10))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d, want %d", resp.StatusCode, http.StatusRequestHeaderFieldsTooLarge)
	}
}

// TestUsage: the collector of the sandbox gives the numbers that it promises.
func TestUsage(t *testing.T) {
	c := newUsageCollector()
	if n := testutil.CollectAndCount(c); n != 5 {
		t.Errorf("%d metrics, want 5", n)
	}
	problems, err := testutil.CollectAndLint(c)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// TestOpenDescriptors: the count without /proc is that of /proc, wherever they lie.
func TestOpenDescriptors(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	far, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 900)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(far)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	got, limit, err := openDescriptors()
	// One of the entries is the directory's own descriptor.
	if want := uint64(len(entries) - 1); err != nil || got != want || limit <= uint64(far) {
		t.Errorf("%d of %d descriptors are open, %v; want %d", got, limit, err, want)
	}
}
