package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"slipway/bench"
)

// TestBenchServe: metrics as long as the context lasts, and no longer.
func TestBenchServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := serveReports(ctx, w, bench.Gauges{Path: sampleReport}, "127.0.0.1:0")
		w.CloseWithError(io.EOF)
		ended <- err
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatalf("it says nothing: %v, %v", err, <-ended)
	}
	address := strings.TrimSpace(strings.TrimPrefix(line, "serving "))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	const want = `slipway_bench_gap_ratio{delay_ms="",direction="up",driver="slipway",lost_per_1000="",mtu="1500",size="",streams="1",workload="stream"} 0.48`
	if !strings.Contains(string(body), want) {
		t.Errorf("no %s in:\n%s", want, body)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
	if err := serveReports(t.Context(), io.Discard, bench.Gauges{Path: filepath.Join(t.TempDir(), "none")}, "127.0.0.1:0"); err == nil {
		t.Error("serve of nothing gave no error")
	}
}
