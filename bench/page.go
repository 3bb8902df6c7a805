package bench

import (
	"fmt"
	"slices"
)

// PageRow is a row of a table of the page.
type PageRow struct {
	Driver, Label, ID, Class string
	Ours                     bool
	Numbers                  []string // none: not measured
	Notes                    []string
	Commands                 []string
	Processes                []string
}

// PageSection is a section of the page; the figure of its name shows its rows, unless
// they are in other figures.
type PageSection struct {
	Name, Title, Text string
	Rows              []PageRow
}

// PageCard is a number of the headline.
type PageCard struct{ Title, Gap, Speed, Peers string }

// Page is what a report has to say on a page of its own, in words.
type Page struct {
	Report   *Report
	Cards    []PageCard
	Columns  []string
	Sections []PageSection
	// Targets are lines of a table with TargetColumns, TargetSummary says what became of them.
	Targets       [][]string
	TargetColumns []string
	TargetSummary string
	Warnings      []string
	Failures      []string
	Words         [][2]string // each with its meaning
	Limits        []string
	About         [][2]string // each with its name
}

// Page of the report.
func (r *Report) Page() Page {
	p := Page{Report: r, Warnings: r.warnings(), Limits: limits}
	for _, s := range r.headline() {
		for _, c := range s.Cells {
			if c.Driver != DriverSlipway || s.Choice != "" {
				continue
			}
			card := PageCard{Title: s.Title(), Gap: times(c.Summary.Gap), Speed: c.Unit.Format(c.Summary.Median)}
			for _, peer := range r.peers(c) {
				if peer.ours() || peer.kernel() {
					continue
				}
				if card.Peers != "" {
					card.Peers += ", "
				}
				card.Peers += times(c.Summary.Median/peer.Summary.Median) + " " + peer.Driver
			}
			p.Cards = append(p.Cards, card)
		}
	}
	if reached := r.Targets(); len(reached) > 0 {
		p.TargetColumns, p.TargetSummary = targetColumns, summaryOf(reached)
		for _, t := range reached {
			p.Targets = append(p.Targets, t.line())
		}
	}
	used := map[class]bool{}
	for _, s := range r.sections() {
		section := PageSection{Name: s.Name(), Title: s.Title(), Text: s.Heading()}
		for _, c := range s.Cells {
			row := PageRow{
				Driver: c.Driver, Label: r.label(c), ID: c.ID(), Class: string(c.class()), Ours: c.ours(), Notes: c.notes(),
				Commands: c.Commands, Processes: c.Processes,
			}
			used[c.class()] = true
			for _, column := range columns {
				if c.Summary != nil {
					row.Numbers = append(row.Numbers, column.text(c))
				}
			}
			if failure := c.failure(); failure != "" {
				p.Failures = append(p.Failures, c.ID()+": "+failure)
			}
			if c.Defect != "" {
				p.Failures = append(p.Failures, c.ID()+": known defect, no ratio: "+c.Defect)
			}
			section.Rows = append(section.Rows, row)
		}
		p.Sections = append(p.Sections, section)
	}
	for _, s := range r.Skipped {
		p.Failures = append(p.Failures, "no rows of "+s.String())
	}
	for _, column := range columns {
		p.Columns = append(p.Columns, column.title)
		p.Words = append(p.Words, [2]string{column.title, column.legend})
	}
	for _, c := range classes {
		if used[c.class] {
			p.Words = append(p.Words, [2]string{string(c.class), c.text})
		}
	}
	p.About = [][2]string{{"method", r.method()}, {"machine", r.machine()}, {"user", r.Environment.User},
		{"time", r.Environment.Time.Format("2 January 2006, 15:04 MST")}, {"load before", fmt.Sprintf("%g", r.Environment.Load1)},
		{"command", r.Method.Command}, {"schema", fmt.Sprint(r.Schema)}}
	for _, v := range r.versions() {
		p.About = append(p.About, [2]string{"version", v})
	}
	p.About = slices.DeleteFunc(p.About, func(about [2]string) bool { return about[1] == "" })
	return p
}
