package bench

import (
	"fmt"
	"slices"
)

// Figure is what one plot shows: a bar for each row, and a dot for each measurement.
type Figure struct {
	Name  string // of its file
	Title string
	Axis  string
	Bars  []Bar
	// Line is a value worth a line of its own, 0: none.
	Line float64
}

// Bar is a row of a figure, in the unit of its axis.
type Bar struct {
	Heading   string // above the bars that follow; the other fields are empty then
	Cell      Cell
	Label     string
	Value     float64
	Low, High float64 // of the median's interval
	Dots      []float64
	Text      string // after the bar
}

// Figures are the gap, where there is one, and one figure for each section.
func (r *Report) Figures() []Figure {
	var figures []Figure
	if gap := r.gapFigure(); len(gap.Bars) > 0 {
		figures = append(figures, gap)
	}
	for _, s := range r.sections() {
		if f := r.sectionFigure(s); f != nil {
			figures = append(figures, *f)
		}
	}
	return figures
}

// ratios of a row's samples to those of its reference, round by round; the samples
// themselves, and false, when there is no reference to divide by.
func (r *Report) ratios(c Cell) (values []float64, divided bool) {
	host := r.reference(c)
	if host == nil || c.Defect != "" {
		for _, s := range c.counted() {
			values = append(values, s.Value)
		}
		return values, false
	}
	return r.quotients(c, *host), true
}

// headline are the sections whose rows have a gap, under the ordinary conditions, each
// followed by its best against best where rows have an MTU of their own.
func (r *Report) headline() []section {
	var headline []section
	for _, s := range r.sections() {
		var ordinary, best []Cell
		chosen := false
		for _, c := range s.Cells {
			atAnyMTU := c
			atAnyMTU.MTU = r.Method.MTU
			if c.Driver == DriverHost || r.conditions(atAnyMTU) != "" || c.Summary == nil || c.Summary.Gap == 0 || c.Unit.LessIsBetter() {
				continue
			}
			if r.conditions(c) == "" {
				ordinary = append(ordinary, c)
			} else {
				chosen = true
			}
			i := slices.IndexFunc(best, func(b Cell) bool { return b.Driver == c.Driver })
			switch {
			case i < 0:
				best = append(best, c)
			case c.Summary.Median > best[i].Summary.Median:
				best[i] = c
			}
		}
		if s.Cells = ordinary; len(ordinary) > 0 {
			headline = append(headline, s)
		}
		if s.Cells, s.Choice = best, ", each at its best MTU"; chosen {
			headline = append(headline, s)
		}
	}
	return headline
}

func (r *Report) gapFigure() Figure {
	f := Figure{Name: "gap", Title: "The gap: speed as a share of the host's own loopback", Axis: "1 = host loopback", Line: 1}
	for _, s := range r.headline() {
		f.Bars = append(f.Bars, Bar{Heading: s.Title()})
		for _, c := range s.Cells {
			b := Bar{Cell: c, Label: r.label(c), Value: c.Summary.Gap, Text: times(c.Summary.Gap)}
			b.Low, b.High = b.Value, b.Value
			if b.Dots, _ = r.ratios(c); len(b.Dots) > 0 {
				i := interval(b.Dots)
				b.Low, b.High = i.Lo, i.Hi
			}
			f.Bars = append(f.Bars, b)
		}
	}
	return f
}

// sectionFigure shows the rows of a section, with those of the host that they are
// divided by above them. Rows of the host alone are nothing to look at where others are
// divided by them: nil.
func (r *Report) sectionFigure(s section) *Figure {
	isHost := func(c Cell) bool { return c.Driver == DriverHost }
	used := func(c Cell) bool {
		return slices.ContainsFunc(r.Cells, func(other Cell) bool {
			host := r.reference(other)
			return !isHost(other) && host != nil && host.ID() == c.ID()
		})
	}
	if !slices.ContainsFunc(s.Cells, func(c Cell) bool { return !isHost(c) || !used(c) }) {
		return nil
	}
	var cells []Cell
	for _, c := range s.Cells {
		if host := r.reference(c); host != nil && !slices.ContainsFunc(cells, func(has Cell) bool { return has.ID() == host.ID() }) {
			cells = append(cells, *host)
		}
		if !slices.ContainsFunc(cells, func(has Cell) bool { return has.ID() == c.ID() }) {
			cells = append(cells, c)
		}
	}
	f := &Figure{Name: s.Name(), Title: s.Title()}
	largest := 0.0
	unit := s.Cells[0].Unit
	for _, c := range cells {
		if c.Summary != nil {
			largest = max(largest, c.Summary.High)
		}
	}
	prefix, factor := unit.scale(largest)
	f.Axis = unit.name(prefix)
	if unit.LessIsBetter() {
		f.Axis += ", less is better"
	}
	for _, c := range cells {
		b := Bar{Cell: c, Label: r.label(c)}
		if c.Summary == nil {
			b.Text = "not measured"
			if c.failure() != "" {
				b.Text = "failed"
			}
			f.Bars = append(f.Bars, b)
			continue
		}
		b.Value, b.Low, b.High = c.Summary.Median/factor, c.Summary.Low/factor, c.Summary.High/factor
		for _, sample := range c.counted() {
			b.Dots = append(b.Dots, sample.Value/factor)
		}
		b.Text = c.Unit.Format(c.Summary.Median)
		if c.Summary.Gap > 0 && c.Driver != DriverHost {
			b.Text += fmt.Sprintf(" (%s)", times(c.Summary.Gap))
		}
		if l := c.Summary.Latency; l != nil {
			b.Text += ", " + l.tail()
		}
		if c.Defect != "" {
			b.Text += ", known defect"
		}
		f.Bars = append(f.Bars, b)
	}
	return f
}
