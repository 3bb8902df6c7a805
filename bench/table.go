package bench

import (
	"cmp"
	"fmt"
	"io"
	"slices"
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
		DirectionBoth:     "Both ways at once: the sum of upload and download",
	},
	WorkloadPublished: {
		DirectionDown: "Published port, in: a client on the host sends to a server in the container",
		DirectionUp:   "Published port, out: a server in the container sends to a client on the host",
		DirectionBoth: "Published port, both ways at once: the sum",
	},
	WorkloadUDP: {
		DirectionLoopback: "UDP on the host: datagrams as fast as they can be sent over 127.0.0.1; what arrives",
		DirectionUp:       "UDP upload: datagrams as fast as the container can send them; what arrives",
		DirectionDown:     "UDP download: datagrams as fast as the host can send them; what arrives",
	},
	WorkloadUDPLossless: {
		DirectionLoopback: "UDP on the host without loss: the highest rate found at which at most 1 of 1000 is lost",
		DirectionUp:       "UDP upload without loss: the highest rate found at which at most 1 of 1000 is lost",
		DirectionDown:     "UDP download without loss: the highest rate found at which at most 1 of 1000 is lost",
	},
	WorkloadLatency: {
		DirectionLoopback: "Latency on the host: one request and answer after the other over 127.0.0.1",
		DirectionUp:       "Latency: one request of the container to the host and its answer after the other",
		DirectionDown:     "Latency of a published port: one request of the host and its answer after the other",
	},
	WorkloadLatencyLoaded: {
		DirectionLoopback: "Latency on the host under load: the same beside a TCP stream",
		DirectionUp:       "Latency under load: requests of the container beside a TCP stream",
		DirectionDown:     "Latency of a published port under load: requests of the host beside a TCP stream",
	},
	WorkloadConnect: {
		DirectionLoopback: "Connections on the host: connect, one request and answer, close",
		DirectionUp:       "Connections of the container to the host: connect, one request and answer, close",
		DirectionDown:     "Connections to a published port: connect, one request and answer, close",
	},
	WorkloadHTTP: {
		DirectionLoopback: "HTTP on the host: pages of nginx, asked for by wrk",
		DirectionUp:       "HTTP of the container: pages of nginx on the host, asked for by wrk",
		DirectionDown:     "HTTP through a published port: pages of nginx in the container, asked for by wrk",
	},
	WorkloadDNS: {
		DirectionLoopback: "DNS on the host: queries to a resolver by UDP",
		DirectionUp:       "DNS of the container: queries to a resolver on the host by UDP",
	},
	WorkloadStart: {
		DirectionUp: "Start: from the start of the program to a network that is ready",
	},
	WorkloadPublish1000: {
		DirectionDown: "1000 published ports: from the start of the program to all of them open",
	},
	WorkloadPublish10000: {
		DirectionDown: "10000 published ports: the same, each of them on every address of the host",
	},
	WorkloadIdle: {
		DirectionUp: "Idle memory: resident, of all processes of the network, while nothing happens",
	},
}

// column of a table: what the terminal, Markdown and HTML show of a row.
type column struct {
	title  string
	legend string // for somebody who has never seen it
	text   func(c Cell) string
}

var columns = []column{
	{"median", "of the measurements that count; for latencies that of their medians",
		func(c Cell) string { return c.Unit.Format(c.Summary.Median) }},
	{"interval", "where the true median lies, with 95 % certainty from 6 measurements on; with fewer their range (5: 94 %, 3: 75 %)",
		func(c Cell) string { return c.Unit.formatRange(c.Summary.Low, c.Summary.High) }},
	{"gap", "the value divided by that of the host's loopback in the same round, the median of that; 1.00x: the container costs nothing",
		func(c Cell) string { return ratio(c.Summary.Gap) }},
	{"x slirp4netns", "the same with slirp4netns doing the same",
		func(c Cell) string { return ratio(c.Summary.Slirp4netns) }},
	{"x best peer", "the same with the best of the others, which is named; only in rows of Slipway",
		func(c Cell) string { return strings.TrimSpace(ratio(c.Summary.Peer) + " " + c.Summary.BestPeer) }},
	{"CPU s/GB", "CPU seconds that the network's own processes used for 10^9 bytes (iperf3 is not counted)",
		func(c Cell) string {
			if c.Driver == DriverHost || c.Summary.CPUPerGB == 0 {
				return "-"
			}
			return digits(c.Summary.CPUPerGB)
		}},
	{"all CPU s/GB", "the same of the whole machine: client, server and kernel counted",
		func(c Cell) string {
			if c.Summary.SystemCPUPerGB == 0 {
				return "-"
			}
			return digits(c.Summary.SystemCPUPerGB)
		}},
}

// section is the rows of one workload and direction.
type section struct {
	Workload  Workload
	Direction Direction
	Cells     []Cell
	// Choice says by what the rows were chosen of more of the same kind, "" for all.
	Choice string
}

// Heading of the section, for somebody who has never seen it.
func (s section) Heading() string {
	if h := headings[s.Workload][s.Direction]; h != "" {
		return h
	}
	return fmt.Sprintf("%s, %s", s.Workload, s.Direction)
}

// Title is the heading without its explanation.
func (s section) Title() string {
	title, _, _ := strings.Cut(s.Heading(), ":")
	return title + s.Choice
}

// Name of the section in names of files.
func (s section) Name() string { return string(s.Workload) + "-" + string(s.Direction) }

// sections in the order in which the report has them, in each the rows of the ordinary
// conditions first, and then those of any other together.
func (r *Report) sections() []section {
	var sections []section
	at := map[[2]string]int{}
	for _, c := range r.Cells {
		key := [2]string{string(c.Workload), string(c.Direction)}
		i, ok := at[key]
		if !ok {
			i = len(sections)
			at[key] = i
			sections = append(sections, section{Workload: c.Workload, Direction: c.Direction})
		}
		sections[i].Cells = append(sections[i].Cells, c)
	}
	for _, s := range sections {
		rank := map[string]int{"": 0}
		for _, c := range s.Cells {
			if name := r.conditions(c); rank[name] == 0 && name != "" {
				rank[name] = len(rank)
			}
		}
		slices.SortStableFunc(s.Cells, func(a, b Cell) int { return cmp.Compare(rank[r.conditions(a)], rank[r.conditions(b)]) })
	}
	return sections
}

// conditions of a row that are not the ordinary ones of the run, "" when all are.
func (r *Report) conditions(c Cell) string {
	var parts []string
	add := func(differs bool, format string, value int) {
		if differs {
			parts = append(parts, fmt.Sprintf(format, value))
		}
	}
	add(c.Streams > 1 && c.Workload != WorkloadIdle, "%d streams", c.Streams)
	add(c.Streams > 0 && c.Workload == WorkloadIdle, "%d open flows", c.Streams)
	add(c.Size > 0, "%d bytes", c.Size)
	add(c.DelayMillis > 0, "%d ms round trip", c.DelayMillis)
	add(c.LostPerThousand > 0, "%d of 1000 packets lost", c.LostPerThousand)
	add(c.MTU > 0 && c.MTU != r.Method.MTU, "MTU %d", c.MTU)
	return strings.Join(parts, ", ")
}

// label of a row where its section is known: the driver and the conditions.
func (r *Report) label(c Cell) string {
	if conditions := r.conditions(c); conditions != "" {
		return c.Driver + ", " + conditions
	}
	return c.Driver
}

// notes are what a row has to say besides its numbers.
func (c Cell) notes() []string {
	var notes []string
	if s := c.Summary; s != nil {
		if l := s.Latency; l != nil {
			notes = append(notes, fmt.Sprintf("p50 %s, %s", UnitSeconds.Format(l.P50), l.tail()))
		}
		if s.Loss > 0 {
			notes = append(notes, "lost "+percent(s.Loss))
		}
	}
	if c.Defect != "" {
		notes = append(notes, "known defect, no ratio: "+c.Defect)
	}
	switch failure := c.failure(); {
	case c.Summary == nil && failure == "":
		notes = append(notes, "not measured")
	case c.Summary == nil:
		notes = append(notes, "failed: "+failure)
	case failure != "":
		notes = append(notes, fmt.Sprintf("only %s: %s", count(c.Summary.Samples, "measurement"), failure))
	}
	return notes
}

// numberWidth of a column, at least.
const numberWidth = 10

// WriteTable renders the report for a person at a terminal.
func (r *Report) WriteTable(w io.Writer) error {
	var b strings.Builder
	for _, line := range []string{r.method(), r.machine(), strings.Join(r.versions(), "; ")} {
		fmt.Fprintln(&b, line)
	}
	nameWidth := 0
	for _, c := range r.Cells {
		nameWidth = max(nameWidth, 4+utf8.RuneCountInString(c.Driver))
	}
	widths := make([]int, len(columns))
	for i, column := range columns {
		widths[i] = max(numberWidth, 2+utf8.RuneCountInString(column.title))
		for _, c := range r.Cells {
			if c.Summary != nil {
				widths[i] = max(widths[i], 2+utf8.RuneCountInString(column.text(c)))
			}
		}
	}
	fmt.Fprintf(&b, "\n%-*s", nameWidth, "")
	for i, column := range columns {
		b.WriteString(padLeft(column.title, widths[i]))
	}
	b.WriteByte('\n')
	for _, s := range r.sections() {
		fmt.Fprintln(&b, s.Heading())
		last := ""
		for _, c := range s.Cells {
			if conditions := r.conditions(c); conditions != last {
				fmt.Fprintf(&b, " %s:\n", conditions)
				last = conditions
			}
			fmt.Fprintf(&b, "  %-*s", nameWidth-2, c.Driver)
			notes := c.notes()
			if c.Summary == nil {
				fmt.Fprintf(&b, "  %s\n", strings.Join(notes, "; "))
				continue
			}
			for i, column := range columns {
				b.WriteString(padLeft(column.text(c), widths[i]))
			}
			b.WriteByte('\n')
			for _, note := range notes {
				fmt.Fprintf(&b, "  %-*s  %s\n", nameWidth-2, "", note)
			}
		}
	}
	r.writeTargets(&b)
	b.WriteByte('\n')
	for _, column := range columns {
		fmt.Fprintf(&b, "%-13s  %s\n", column.title, column.legend)
	}
	for _, warning := range r.warnings() {
		fmt.Fprintf(&b, "warning: %s\n", warning)
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(&b, "no rows of %s\n", s)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// writeTargets writes the table of targets, where the report is one of them.
func (r *Report) writeTargets(b *strings.Builder) {
	reached := r.Targets()
	if len(reached) == 0 {
		return
	}
	fmt.Fprintf(b, "\nTargets: %s\n", summaryOf(reached))
	lines := [][]string{targetColumns}
	for _, t := range reached {
		lines = append(lines, t.line())
	}
	widths := make([]int, len(targetColumns))
	for _, line := range lines {
		for i, text := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	for _, line := range lines {
		text := "  " + line[0] + strings.Repeat(" ", widths[0]-utf8.RuneCountInString(line[0]))
		for i, word := range line[1:] {
			text += padLeft(word, widths[i+1]+2)
		}
		fmt.Fprintln(b, strings.TrimRight(text, " "))
	}
}

func padLeft(text string, width int) string {
	return strings.Repeat(" ", max(1, width-utf8.RuneCountInString(text))) + text
}
