package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
)

//go:embed page.html
var pageText string

// pageRow is a row of a table of the page.
type pageRow struct {
	Label, ID, Class string
	Hue              template.CSS
	Ours             bool
	Numbers          []string // none: not measured
	Notes            []string
	Commands         []string
	Processes        []string
}

// pageSection is a section of the page.
type pageSection struct {
	Name, Title, Text string
	Plot              template.HTML // empty: the rows are in other plots
	Rows              []pageRow
}

// pageCard is a number of the headline.
type pageCard struct{ Title, Gap, Speed, Peers string }

// page is what page.html shows.
type page struct {
	Report   *Report
	Cards    []pageCard
	Gap      template.HTML
	Columns  []column
	Sections []pageSection
	Warnings []string
	Failures []string
	Words    [][2]string
	Limits   []string
	About    [][2]string
}

// Title of a column, for the page.
func (c column) Title() string { return c.title }

// writeHTML renders the report as one page that needs nothing from elsewhere.
func (r *Report) writeHTML(w io.Writer) error {
	p := page{Report: r, Columns: columns, Warnings: r.warnings(), Limits: limits}
	plots := map[string]template.HTML{}
	for _, f := range r.figures() {
		svg, err := r.svg(f)
		if err != nil {
			return err
		}
		plots[f.name] = template.HTML(svg) //nolint:gosec // svg escapes what it writes
	}
	p.Gap = plots["gap"]
	for _, s := range r.headline() {
		for _, c := range s.Cells {
			if c.Driver != DriverSlipway || s.Choice != "" {
				continue
			}
			card := pageCard{Title: s.Title(), Gap: times(c.Summary.Gap), Speed: c.Unit.format(c.Summary.Median)}
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
	used := map[class]bool{}
	for _, s := range r.sections() {
		section := pageSection{Name: s.Name(), Title: s.Title(), Text: s.Heading(), Plot: plots[s.Name()]}
		for _, c := range s.Cells {
			h := r.hue(c.Driver)
			row := pageRow{
				Label: r.label(c), ID: c.ID(), Class: string(c.class()), Ours: c.ours(), Notes: c.notes(),
				Hue:      template.CSS(fmt.Sprintf("#%02x%02x%02x", h.R, h.G, h.B)), //nolint:gosec // three numbers
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
	t, err := template.New("page").Parse(pageText)
	if err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	if err := t.Execute(w, p); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}
