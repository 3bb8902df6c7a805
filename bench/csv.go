package bench

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
)

// writeCSV writes a line for each row, in base units: bit/s, seconds, bytes, ratios.
func (r *Report) writeCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	if err := out.Write([]string{
		"driver", "workload", "direction", "mtu", "streams", "size", "delay_ms", "lost_per_1000", "unit", "class",
		"samples", "median", "low", "high", "confidence", "min", "max", "spread",
		"gap_ratio", "slirp4netns_ratio", "peer_ratio", "best_peer",
		"cpu_seconds_per_gigabyte", "system_cpu_seconds_per_gigabyte", "steal", "retransmits", "loss", "rss_bytes",
		"p50_seconds", "p99_seconds", "p999_seconds", "defect", "error",
	}); err != nil {
		return fmt.Errorf("write CSV: %w", err)
	}
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	// what is not known is an empty field, not a zero
	known := func(v float64) string {
		if v == 0 {
			return ""
		}
		return number(v)
	}
	for _, c := range r.Cells {
		s, samples := c.Summary, ""
		if s == nil {
			s = &Summary{}
		} else {
			samples = strconv.Itoa(s.Samples)
		}
		measured := func(v float64) string {
			if samples == "" {
				return ""
			}
			return number(v)
		}
		latency := Latency{}
		if s.Latency != nil {
			latency = *s.Latency
		}
		if err := out.Write([]string{
			c.Driver, string(c.Workload), string(c.Direction), strconv.Itoa(c.MTU), strconv.Itoa(c.Streams),
			strconv.Itoa(c.Size), strconv.Itoa(c.DelayMillis), strconv.Itoa(c.LostPerThousand), string(c.Unit), string(c.class()),
			samples, measured(s.Median), measured(s.Low), measured(s.High), measured(s.Confidence), measured(s.Min), measured(s.Max), measured(s.Spread),
			known(s.Gap), known(s.Slirp4netns), known(s.Peer), s.BestPeer,
			known(s.CPUPerGB), known(s.SystemCPUPerGB), measured(s.Steal), measured(s.Retransmits), measured(s.Loss), known(s.RSS),
			known(latency.P50), known(latency.P99), known(latency.P999), c.Defect, c.failure(),
		}); err != nil {
			return fmt.Errorf("write CSV: %w", err)
		}
	}
	out.Flush()
	if err := out.Error(); err != nil {
		return fmt.Errorf("write CSV: %w", err)
	}
	return nil
}
