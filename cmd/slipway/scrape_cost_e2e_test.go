//go:build e2e

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

const (
	scrapeEvery    = 100 * time.Millisecond
	scrapeCostMost = 0.02
)

// TestScrapeCost: being scraped ten times a second costs no more than one byte in fifty
// would, in CPU time of all of Slipway for bytes carried both ways. Each pair is measured
// in turns.
func TestScrapeCost(t *testing.T) {
	if !onPrivateHostWithin(t, 10*time.Minute) {
		return
	}
	if err := os.WriteFile(congestionControl, []byte("reno"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := agentBulkServer([]string{at("127.0.0.1", bulkPort)}); err != nil {
		t.Fatal(err)
	}
	guest := newTarget(t)
	a := attachTo(t, "--pid", strconv.Itoa(guest.Process.Pid), "--host-access", "loopback", "--metrics", slipwayMetrics)
	unpaced(guest)
	s := startScraper(t)
	quiet := func() float64 { return bulkBothWays(guest, a.cpu) }
	scraped := func() float64 {
		s.on.Store(true)
		defer s.on.Store(false)
		return quiet()
	}
	quiet() // what is made once is made
	scraped()
	before := s.n.Load()
	cost := inPairs([2]func() float64{quiet, scraped})
	// A flow ends no earlier than it should, so there were this many at the very least, but
	// for one that was under way.
	if n, want := s.n.Load()-before, int64(costPairs*(2*costFlow/scrapeEvery-1)); n < want {
		t.Errorf("%d scrapes, want %d", n, want)
	}
	cost.print("quiet", "scraped")
	if cost.bound >= scrapeCostMost {
		t.Errorf("the 95 %% upper bound of the cost is %.1f %%, want less than %.0f %%", 100*cost.bound, 100*scrapeCostMost)
	}
}

// scraper scrapes as Prometheus does, in an interval and on one connection, while it is
// on.
type scraper struct {
	on atomic.Bool
	n  atomic.Int64 // scrapes
}

// startScraper starts one until the test ends.
func startScraper(t *testing.T) *scraper {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, ended := &scraper{}, make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *scraper) run(ctx context.Context) error {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	tick := time.NewTicker(scrapeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !s.on.Load() {
			continue
		}
		if err := scrapeOnce(ctx, transport); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.n.Add(1)
	}
}

func scrapeOnce(ctx context.Context, transport *http.Transport) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+slipwayMetrics+"/metrics", nil)
	if err != nil {
		return err
	}
	// What Prometheus 2.42 sends, scrape/scrape.go.
	req.Header.Set("Accept", "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	switch err := errors.Join(err, resp.Body.Close()); {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK || n < 1000:
		return fmt.Errorf("scrape: %s with %d bytes", resp.Status, n)
	}
	return nil
}
