package bench

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// headings say what the rows of a workload and direction do, for somebody who has
// never seen them.
var headings = map[Workload]map[Direction]string{
	WorkloadStream: {
		DirectionLoopback: "Host loopback: iperf3 to itself over 127.0.0.1, no container; the most that this machine can do",
		DirectionUp:       "Upload: the container sends to a server on the host",
		DirectionDown:     "Download: the container receives from a server on the host",
	},
	WorkloadPublished: {
		DirectionDown: "Published port, in: a client on the host sends to a server in the container",
		DirectionUp:   "Published port, out: a server in the container sends to a client on the host",
	},
}

// tableColumns of numbers, after the driver's name.
var tableColumns = []string{"Gbit/s", "min - max", "gap", "x slirp4netns", "CPU s/GB"}

const (
	nameWidth   = 14
	numberWidth = 15
)

// WriteTable renders the report for a person at a terminal.
func (r *Report) WriteTable(w io.Writer) error {
	var b strings.Builder
	r.writePreamble(&b)
	fmt.Fprintf(&b, "%-*s", nameWidth, "")
	for _, column := range tableColumns {
		b.WriteString(padLeft(column, numberWidth))
	}
	b.WriteByte('\n')
	heading := ""
	for _, c := range r.Cells {
		if h := headings[c.Workload][c.Direction]; h != heading {
			heading = h
			fmt.Fprintf(&b, "%s\n", h)
		}
		c.writeRow(&b)
	}
	r.writeLegend(&b)
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

func (r *Report) writePreamble(b *strings.Builder) {
	m, e := r.Method, r.Environment
	fmt.Fprintf(b, "One iperf3 TCP stream of %g s, median of %d, one warm-up before; container MTU %d bytes\n", m.Seconds, m.Repetitions, m.MTU)
	fmt.Fprintf(b, "Linux %s %s, %d CPUs", e.Kernel, e.Arch, e.CPUs)
	if e.CPUModel != "" {
		fmt.Fprintf(b, " (%s)", e.CPUModel)
	}
	fmt.Fprintf(b, ", TCP congestion control %s everywhere\n", e.Congestion)
	var versions []string
	for _, program := range []string{"slipway", "iperf3", "slirp4netns", "pasta"} {
		if v := e.Versions[program]; v != "" {
			versions = append(versions, program+": "+v)
		}
	}
	fmt.Fprintf(b, "%s\n\n", strings.Join(versions, "; "))
}

// writeRow writes the numbers of a cell, or why there are none.
func (c Cell) writeRow(b *strings.Builder) {
	failure := c.failure()
	if c.Summary == nil {
		if failure == "" {
			failure = "not measured"
		} else {
			failure = "failed: " + failure
		}
		fmt.Fprintf(b, "  %-*s  %s\n", nameWidth-2, c.Driver, failure)
		return
	}
	s := c.Summary
	cpu := "-"
	if c.Driver != DriverHost {
		cpu = fmt.Sprintf("%.2f", s.CPUPerGB)
	}
	fmt.Fprintf(b, "  %-*s", nameWidth-2, c.Driver)
	for _, number := range []string{gigabits(s.Median), gigabits(s.Min) + " - " + gigabits(s.Max), ratio(s.Gap), ratio(s.Slirp4netns), cpu} {
		b.WriteString(padLeft(number, numberWidth))
	}
	b.WriteByte('\n')
	if failure != "" {
		fmt.Fprintf(b, "  %-*s  only %d measurements: %s\n", nameWidth-2, "", s.Samples, failure)
	}
}

func (r *Report) writeLegend(b *strings.Builder) {
	b.WriteString("\ngap            speed divided by host loopback in this run; 1.00x: the container costs nothing\n")
	b.WriteString("x slirp4netns  speed divided by slirp4netns doing the same in this run\n")
	b.WriteString("CPU s/GB       CPU seconds that the network's own processes used for 10^9 bytes (iperf3 is not counted)\n")
	for _, s := range r.Skipped {
		fmt.Fprintf(b, "no rows of %s: %s\n", s.Driver, s.Reason)
	}
	var wide []string
	for _, c := range r.Cells {
		if c.Summary != nil && c.Summary.Spread > wideSpread {
			wide = append(wide, fmt.Sprintf("%s (%.0f %%)", c.ID(), 100*c.Summary.Spread))
		}
	}
	if len(wide) > 0 {
		fmt.Fprintf(b, "warning: more than %.0f %% of the median between the slowest and the fastest measurement, small differences mean nothing: %s\n",
			100*wideSpread, strings.Join(wide, ", "))
	}
	if r.Error != "" {
		fmt.Fprintf(b, "warning: this run is not complete: %s\n", r.Error)
	}
}

// gigabits of a speed in bits per second, with three significant digits or so.
func gigabits(bitsPerSecond float64) string {
	if g := bitsPerSecond / 1e9; g < 10 {
		return fmt.Sprintf("%.2f", g)
	}
	return fmt.Sprintf("%.1f", bitsPerSecond/1e9)
}

// ratio with two significant digits or more, "-" where there is nothing to divide by.
func ratio(value float64) string {
	switch {
	case value == 0:
		return "-"
	case value < 0.1:
		return fmt.Sprintf("%.3fx", value)
	case value < 10:
		return fmt.Sprintf("%.2fx", value)
	}
	return fmt.Sprintf("%.1fx", value)
}

func padLeft(text string, width int) string {
	return strings.Repeat(" ", max(1, width-utf8.RuneCountInString(text))) + text
}
