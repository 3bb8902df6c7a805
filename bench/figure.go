package bench

import (
	"fmt"
	"slices"
)

// figure is what one plot shows: a bar for each row, and a dot for each measurement.
type figure struct {
	name  string // of its file
	title string
	axis  string
	bars  []bar
	// line is a value worth a line of its own, 0: none.
	line float64
}

// bar is a row of a figure, in the unit of its axis.
type bar struct {
	heading   string // above the bars that follow; the other fields are empty then
	cell      Cell
	label     string
	value     float64
	low, high float64
	dots      []float64
	text      string // after the bar
}

// figures are the gap, where there is one, and one figure for each section.
func (r *Report) figures() []figure {
	var figures []figure
	if gap := r.gapFigure(); len(gap.bars) > 0 {
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
	loopback := map[int]float64{}
	for _, s := range host.counted() {
		loopback[s.Round] = s.Value
	}
	for _, s := range c.counted() {
		if h := loopback[s.Round]; h > 0 {
			values = append(values, s.Value/h)
		}
	}
	return values, true
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

func (r *Report) gapFigure() figure {
	f := figure{name: "gap", title: "The gap: speed as a share of the host's own loopback", axis: "1 = host loopback", line: 1}
	for _, s := range r.headline() {
		f.bars = append(f.bars, bar{heading: s.Title()})
		for _, c := range s.Cells {
			b := bar{cell: c, label: r.label(c), value: c.Summary.Gap, text: times(c.Summary.Gap)}
			b.low, b.high = b.value, b.value
			if b.dots, _ = r.ratios(c); len(b.dots) > 0 {
				i := interval(b.dots)
				b.low, b.high = i.Lo, i.Hi
			}
			f.bars = append(f.bars, b)
		}
	}
	return f
}

// sectionFigure shows the rows of a section, with those of the host that they are
// divided by above them. Rows of the host alone are nothing to look at where others are
// divided by them: nil.
func (r *Report) sectionFigure(s section) *figure {
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
	f := &figure{name: s.Name(), title: s.Title()}
	largest := 0.0
	unit := s.Cells[0].Unit
	for _, c := range cells {
		if c.Summary != nil {
			largest = max(largest, c.Summary.High)
		}
	}
	prefix, factor := unit.scale(largest)
	f.axis = unit.name(prefix)
	if unit.LessIsBetter() {
		f.axis += ", less is better"
	}
	for _, c := range cells {
		b := bar{cell: c, label: r.label(c)}
		if c.Summary == nil {
			b.text = "not measured"
			if c.failure() != "" {
				b.text = "failed"
			}
			f.bars = append(f.bars, b)
			continue
		}
		b.value, b.low, b.high = c.Summary.Median/factor, c.Summary.Low/factor, c.Summary.High/factor
		for _, sample := range c.counted() {
			b.dots = append(b.dots, sample.Value/factor)
		}
		b.text = c.Unit.format(c.Summary.Median)
		if c.Summary.Gap > 0 && c.Driver != DriverHost {
			b.text += fmt.Sprintf(" (%s)", times(c.Summary.Gap))
		}
		if l := c.Summary.Latency; l != nil {
			b.text += fmt.Sprintf(", p99 %s, p99.9 %s", UnitSeconds.format(l.P99), UnitSeconds.format(l.P999))
		}
		if c.Defect != "" {
			b.text += ", known defect"
		}
		f.bars = append(f.bars, b)
	}
	return f
}
