package bench

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestConfig(t *testing.T) {
	good := Config{Omit: time.Second, Suite: "plain", Duration: 4 * time.Second, Repetitions: 5, MTUs: []int{1500}, Streams: []int{1}}
	tests := []struct {
		name   string
		change func(*Config)
		want   string // in the error, "" for none
		cells  int
	}{
		{"all", func(*Config) {}, "", 13},
		{"driver", func(c *Config) { c.Only = []string{"slipway"} }, "", 5},
		{"workload", func(c *Config) { c.Only = []string{"pasta/stream"} }, "", 3},
		{"rows", func(c *Config) { c.Only = []string{"pasta/stream/up", "slipway/published/down"} }, "", 3},
		{"host", func(c *Config) { c.Only = []string{"host"} }, "", 1},
		{"MTUs", func(c *Config) { c.MTUs = []int{1500, 9000, 65520} }, "", 1 + 3*12},
		{"streams", func(c *Config) { c.Streams = []int{1, 4, 16} }, "", 3 * 13},
		{"a whole name", func(c *Config) {
			c.Streams, c.Only = []int{1, 4}, []string{"slipway/published/up,streams=4"}
		}, "", 2},
		{"quick", func(c *Config) { c.Suite = "quick" }, "", 9},
		{"article", func(c *Config) { c.Suite = "article" }, "", 5},
		{"a yardstick of its own", func(c *Config) { c.Suite, c.Only = "full", []string{"slipway/latency/up"} }, "", 2},
		{"unknown row", func(c *Config) { c.Only = []string{"slip"} }, `no row "slip" in the suite plain, its rows are host/stream/loopback`, 0},
		{"empty row", func(c *Config) { c.Only = []string{""} }, `no row ""`, 0},
		{"unknown suite", func(c *Config) { c.Suite = "fast" }, `no suite "fast", the suites are plain, quick, article, targets, full`, 0},
		{"no time", func(c *Config) { c.Duration = 0 }, "0s for one measurement", 0},
		{"half a second", func(c *Config) { c.Duration = 1500 * time.Millisecond }, "whole seconds", 0},
		{"a quarter of a second", func(c *Config) {
			c.Suite, c.Only, c.Duration = "full", []string{"slipway/connect/up"}, time.Second/4
		}, "", 2},
		{"half a second omitted", func(c *Config) { c.Omit = time.Second / 2 }, "left out of one measurement, want 0 to 60 whole seconds", 0},
		{"too long", func(c *Config) { c.Duration = time.Hour }, "0.1 to 600 seconds", 0},
		{"no repetition", func(c *Config) { c.Repetitions = 0 }, "0 repetitions", 0},
		{"small MTU", func(c *Config) { c.MTUs = []int{1279} }, "MTU 1279, want 1280 to 65520", 0},
		{"large MTU", func(c *Config) { c.MTUs = []int{1500, 65521} }, "MTU 65521", 0},
		{"no MTU", func(c *Config) { c.MTUs = nil }, "no MTU", 0},
		{"an MTU twice", func(c *Config) { c.MTUs = []int{1500, 9000, 1500} }, "MTU 1500 twice", 0},
		{"no streams", func(c *Config) { c.Streams = []int{0} }, "streams 0, want 1 to 128", 0},
		{"unknown peer", func(c *Config) { c.Peers = map[string]string{"passt": "/bin/true"} }, `no peer "passt", the peers are iperf3, nginx`, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			tt.change(&c)
			err := c.Validate()
			if tt.want == "" {
				if err != nil || len(c.cells()) != tt.cells {
					t.Errorf("%d cells, %v; want %d", len(c.cells()), err, tt.cells)
				}
				return
			}
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Validate: %v, want an ErrConfig with %q", err, tt.want)
			}
		})
	}
}

// TestSuites: what a suite promises. Each row has a name of its own, a driver that can do
// it, and a row of the host to be divided by where the host can do it too.
func TestSuites(t *testing.T) {
	for _, s := range Suites() {
		cfg := Config{Suite: s.Name, Duration: s.Duration, Omit: s.Omit, Repetitions: s.Repetitions, MTUs: s.MTUs, Streams: s.Streams}
		if err := cfg.Validate(); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		ids := cfg.CellIDs()
		if sorted := slices.Sorted(slices.Values(ids)); len(slices.Compact(sorted)) != len(ids) {
			t.Errorf("%s: a row is there twice", s.Name)
		}
		for _, c := range cfg.cells() {
			d, w := lookDriver(c.Driver), workOf(c.Workload)
			able := d.start
			switch {
			case c.Workload == WorkloadPublish1000:
				able = d.many
			case c.Workload == WorkloadPublish10000:
				able = d.wide
			case sideOf(c) == sideHost:
				able = d.publish
			}
			if able == nil && d.reason == "" {
				t.Errorf("%s: %s cannot do %s", s.Name, c.Driver, c.ID())
			}
			if !w.fresh && !slices.Contains(ids, c.yardstick().ID()) {
				t.Errorf("%s: %s has no row %s beside it", s.Name, c.ID(), c.yardstick().ID())
			}
		}
		if s.Name == "quick" && cfg.Estimate() > 80*time.Second {
			t.Errorf("quick takes %s, want less than 90 s with what else there is to do", cfg.Estimate())
		}
		cfg.Only = []string{DriverSlipway, DriverSlipwayTAP, DriverSlirp4netns, DriverPasta}
		if s.Name == "targets" && cfg.Estimate() > 11*time.Minute+30*time.Second {
			t.Errorf("targets takes %s, want less than 12 minutes with what else there is to do", cfg.Estimate())
		}
	}
}
