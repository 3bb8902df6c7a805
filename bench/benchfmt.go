package bench

import (
	"fmt"
	"io"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// writeBenchfmt writes every counted sample as a line of Go's benchmark format, for
// benchstat and its like.
func (r *Report) writeBenchfmt(w io.Writer) error {
	out := benchfmt.NewWriter(w)
	for _, u := range []struct{ unit, better string }{
		{"bit/s", "higher"}, {"op/s", "higher"}, {"gap-ratio", "higher"}, {"sec/op", "lower"}, {"rss-bytes", "lower"}, {"p50-sec", "lower"}, {"p99-sec", "lower"}, {"p99.9-sec", "lower"},
		{"cpu-sec/GB", "lower"}, {"system-cpu-sec/GB", "lower"},
	} {
		if err := out.Write(&benchfmt.UnitMetadata{
			UnitMetadataKey: benchfmt.UnitMetadataKey{Unit: u.unit, Key: "better"}, OrigUnit: u.unit, Value: u.better,
		}); err != nil {
			return fmt.Errorf("write benchmark lines: %w", err)
		}
	}
	units := map[Unit]string{UnitBitsPerSecond: "bit/s", UnitPerSecond: "op/s", UnitSeconds: "sec/op", UnitBytes: "rss-bytes"}
	for _, c := range r.Cells {
		gaps, divided := r.ratios(c)
		for i, s := range c.counted() {
			result := &benchfmt.Result{
				Config: r.configuration(),
				Name:   benchfmt.Name(benchmarkName(c)),
				Iters:  1,
				Values: []benchfmt.Value{{Value: s.Value, Unit: units[c.Unit]}},
			}
			add := func(value float64, unit string) {
				result.Values = append(result.Values, benchfmt.Value{Value: value, Unit: unit})
			}
			// Where a round of the host's own row is missing, rounds and ratios are not paired.
			if divided && len(gaps) == len(c.counted()) && !c.Unit.LessIsBetter() {
				add(gaps[i], "gap-ratio")
			}
			if s.Latency != nil {
				add(s.Latency.P50, "p50-sec")
				add(s.Latency.P99, "p99-sec")
				if s.Latency.P999 > 0 {
					add(s.Latency.P999, "p99.9-sec")
				}
			}
			if s.Bytes > 0 {
				gigabytes := float64(s.Bytes) / 1e9
				if c.Driver != DriverHost {
					add(s.CPUSeconds/gigabytes, "cpu-sec/GB")
				}
				if s.SystemCPUSeconds > 0 {
					add(s.SystemCPUSeconds/gigabytes, "system-cpu-sec/GB")
				}
			}
			if err := out.Write(result); err != nil {
				return fmt.Errorf("write benchmark lines: %w", err)
			}
		}
	}
	return nil
}

// configuration of the run, as lines before its results.
func (r *Report) configuration() []benchfmt.Config {
	e := r.Environment
	var config []benchfmt.Config
	for _, line := range append([]string{"goos: linux", "goarch: " + e.Arch, "cpu: " + e.CPUModel, "kernel: " + e.Kernel, "congestion: " + e.Congestion}, r.versions()...) {
		key, value, _ := strings.Cut(line, ": ")
		if value = strings.Join(strings.Fields(value), " "); value != "" {
			config = append(config, benchfmt.Config{Key: key, Value: []byte(value), File: true})
		}
	}
	return config
}

// benchmarkName is the name of a row: its workload, and key=value for the rest.
func benchmarkName(c Cell) string {
	name := strings.ToUpper(string(c.Workload[:1])) + strings.ReplaceAll(string(c.Workload[1:]), "-", "_")
	name += "/driver=" + c.Driver + "/direction=" + string(c.Direction)
	for _, p := range []struct {
		key   string
		value int
	}{{"mtu", c.MTU}, {"streams", c.Streams}, {"size", c.Size}, {"delay_ms", c.DelayMillis}, {"lost_per_1000", c.LostPerThousand}} {
		if p.value > 0 {
			name += fmt.Sprintf("/%s=%d", p.key, p.value)
		}
	}
	return name
}
