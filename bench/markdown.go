package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// escapeMarkdown keeps what programs have printed from becoming markup.
var escapeMarkdown = strings.NewReplacer("|", `\|`, "<", "&lt;", "&", "&amp;", "*", `\*`, "_", `\_`, "`", "'", "[", `\[`, "\n", " ", "\r", " ")

// markdownRow is a row of a table.
func markdownRow(w *strings.Builder, cells ...string) {
	fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
}

// writeMarkdown renders the report as a page, with the plots of a directory beside it.
func (r *Report) writeMarkdown(w io.Writer, plots string) error {
	var b strings.Builder
	b.WriteString("# Benchmark\n\n")
	r.writeHeadline(&b)
	plot := func(name, alt string) {
		if plots != "" {
			fmt.Fprintf(&b, "\n![%s](%s/%s.svg)\n", escapeMarkdown.Replace(alt), plots, name)
		}
	}
	drawn := map[string]bool{}
	for _, f := range r.Figures() {
		drawn[f.Name] = true
	}
	if drawn["gap"] {
		plot("gap", "The gap to host loopback")
	}
	b.WriteString("\nBars are medians, dots the single measurements, and the thin line is the interval in which the true median lies.\n")
	for _, warning := range r.warnings() {
		fmt.Fprintf(&b, "\n**Warning:** %s.\n", escapeMarkdown.Replace(warning))
	}
	if reached := r.Targets(); len(reached) > 0 {
		fmt.Fprintf(&b, "\n## Targets\n\nWhat the project wants of itself, and what this run reached: %s. A figure is the median over rounds in which both rows that it is made of were measured, "+
			"and a peer is the best of the others doing the same, at its best MTU.\n\n", summaryOf(reached))
		markdownRow(&b, targetColumns...)
		markdownRow(&b, "---", "---:", "---:", "---:", "---", "---")
		for _, t := range reached {
			line := t.line()
			for i := range line {
				line[i] = escapeMarkdown.Replace(line[i])
			}
			if t.Verdict == NotMet {
				line[len(line)-1] = "**" + line[len(line)-1] + "**"
			}
			markdownRow(&b, line...)
		}
	}
	for _, s := range r.sections() {
		fmt.Fprintf(&b, "\n## %s\n", escapeMarkdown.Replace(s.Title()))
		if _, rest, ok := strings.Cut(s.Heading(), ": "); ok {
			fmt.Fprintf(&b, "\n%s.\n", escapeMarkdown.Replace(strings.ToUpper(rest[:1])+rest[1:]))
		}
		if drawn[s.Name()] {
			plot(s.Name(), s.Title())
		}
		b.WriteByte('\n')
		header, rule := []string{""}, []string{"---"}
		for _, column := range columns {
			header, rule = append(header, column.title), append(rule, "---:")
		}
		markdownRow(&b, append(header, "class")...)
		markdownRow(&b, append(rule, "---")...)
		var notes []string
		for _, c := range s.Cells {
			row := []string{escapeMarkdown.Replace(r.label(c))}
			for _, column := range columns {
				text := "-"
				if c.Summary != nil {
					text = column.text(c)
				}
				row = append(row, text)
			}
			markdownRow(&b, append(row, string(c.class()))...)
			for _, note := range c.notes() {
				notes = append(notes, r.label(c)+": "+note)
			}
		}
		for _, note := range notes {
			fmt.Fprintf(&b, "\n%s\n", escapeMarkdown.Replace(note))
		}
	}
	list := func(title string, lines ...string) {
		if len(lines) == 0 {
			return
		}
		fmt.Fprintf(&b, "\n## %s\n\n", title)
		for _, line := range lines {
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	var words []string
	for _, column := range columns {
		words = append(words, fmt.Sprintf("**%s**: %s", column.title, column.legend))
	}
	for _, c := range classes {
		words = append(words, fmt.Sprintf("**%s**: %s", c.class, c.text))
	}
	list("What the words mean", words...)
	list("What it does not show", limits...)
	for _, s := range r.Skipped {
		fmt.Fprintf(&b, "- No rows of %s.\n", escapeMarkdown.Replace(s.String()))
	}
	about := []string{r.method(), r.machine(), "user: " + r.Environment.User, r.Environment.Time.Format("2 January 2006, 15:04 MST")}
	for i := range about {
		about[i] = escapeMarkdown.Replace(about[i])
	}
	for _, v := range r.versions() {
		about = append(about, escapeMarkdown.Replace(v))
	}
	list("Method and environment", about...)
	if r.Method.Command != "" {
		fmt.Fprintf(&b, "\nThe whole run:\n\n```\n%s\n```\n", r.Method.Command)
	}
	b.WriteString("\nThe commands of each row are in the report in JSON: `slipway bench report FILE -f commands`.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteHeadline writes the table of a README: the speed of each driver in each way, and
// how far that is from host loopback.
func (r *Report) WriteHeadline(w io.Writer) error {
	var b strings.Builder
	r.writeHeadline(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) writeHeadline(b *strings.Builder) {
	var drivers []string
	headline := r.headline()
	rows := map[string]map[string]Cell{}
	for _, s := range headline {
		rows[s.Title()] = map[string]Cell{}
		for _, c := range s.Cells {
			if rows[s.Title()][c.Driver] = c; !slices.Contains(drivers, c.Driver) {
				drivers = append(drivers, c.Driver)
			}
		}
	}
	if len(drivers) == 0 {
		b.WriteString("No row has a gap to host loopback.\n")
		return
	}
	rule := []string{"---"}
	for range drivers {
		rule = append(rule, "---:")
	}
	markdownRow(b, append([]string{"gap to host loopback (median speed)"}, drivers...)...)
	markdownRow(b, rule...)
	for _, s := range headline {
		line := []string{escapeMarkdown.Replace(s.Title())}
		for _, d := range drivers {
			c, ok := rows[s.Title()][d]
			text := "-"
			if ok {
				text = times(c.Summary.Gap)
				if c.ours() {
					text = "**" + text + "**"
				}
				text += " (" + c.Unit.Format(c.Summary.Median)
				if conditions := r.conditions(c); conditions != "" {
					text += ", " + conditions
				}
				text += ")"
			}
			line = append(line, text)
		}
		markdownRow(b, line...)
	}
	line := []string{"CPU-seconds per GB, in the same order"}
	for _, d := range drivers {
		var values []string
		for _, s := range headline {
			text := "-"
			if c, ok := rows[s.Title()][d]; ok && c.Summary.CPUPerGB > 0 {
				text = digits(c.Summary.CPUPerGB)
			}
			values = append(values, text)
		}
		line = append(line, strings.Join(values, " / "))
	}
	markdownRow(b, line...)
	for _, c := range r.Cells {
		if c.Driver == DriverHost && c.Workload == WorkloadStream && c.Streams == 1 && c.Summary != nil {
			fmt.Fprintf(b, "\nHost loopback itself: %s (%s). %s. %s.\n", c.Unit.Format(c.Summary.Median),
				c.Unit.formatRange(c.Summary.Min, c.Summary.Max), escapeMarkdown.Replace(r.machine()), escapeMarkdown.Replace(r.method()))
			break
		}
	}
}
