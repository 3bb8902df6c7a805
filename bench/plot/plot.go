package plot

import (
	"bytes"
	"fmt"
	"html"
	"image/color"
	"regexp"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"slipway/bench"
)

const (
	plotWidth vg.Length = 640 // points
	rowHeight vg.Length = 19
	pngDPI              = 160
)

// hues of the drivers, readable on white and on black. A driver without one gets one
// of the spare ones.
var (
	hues = map[string]color.RGBA{
		bench.DriverHost:        {0x8a, 0x8f, 0x98, 0xff},
		bench.DriverSlipway:     {0x2f, 0x80, 0xd0, 0xff},
		bench.DriverSlirp4netns: {0xd9, 0x7b, 0x1d, 0xff},
		bench.DriverPasta:       {0x3c, 0x9a, 0x5f, 0xff},
		bench.DriverVeth:        {0x6b, 0x70, 0x80, 0xff},
	}
	spareHues = []color.RGBA{
		{0xa8, 0x5c, 0xc2, 0xff}, {0xc9, 0x4f, 0x6d, 0xff}, {0x2a, 0x9d, 0xa6, 0xff}, {0x9a, 0x8a, 0x2c, 0xff}, {0x7a, 0x6a, 0xd8, 0xff},
	}
)

// hue of a row's driver, the same in every figure of a report.
func hue(r *bench.Report, driver string) color.RGBA {
	if h, ok := hues[driver]; ok {
		return h
	}
	var others []string
	for _, c := range r.Cells {
		if _, ok := hues[c.Driver]; ok {
			continue
		}
		at := len(others)
		for i, o := range others {
			if o == c.Driver {
				at = i
			}
		}
		if c.Driver == driver {
			return spareHues[at%len(spareHues)]
		}
		if at == len(others) {
			others = append(others, c.Driver)
		}
	}
	return spareHues[0]
}

// part of a row that is drawn.
type part byte

const (
	partBar part = 0xfc + iota
	partWhisker
	partDot
)

var partNames = map[part]string{partBar: "bar", partWhisker: "interval", partDot: "sample"}

// ink is the colour of a part of the n-th row.
type ink func(n int, p part) color.Color

// picture draws a figure.
type picture struct {
	bench.Figure
	ink ink
}

var _ plot.Plotter = picture{}

// Plot implements plot.Plotter.
func (f picture) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	if f.Line > 0 && f.Line < p.X.Max {
		c.StrokeLine2(draw.LineStyle{Color: color.Gray{0x8a}, Width: 1, Dashes: []vg.Length{3, 3}}, x(f.Line), c.Min.Y, x(f.Line), c.Max.Y)
	}
	style := p.X.Tick.Label
	style.YAlign, style.XAlign = text.YCenter, text.XLeft
	for i, b := range f.Bars {
		middle := y(float64(len(f.Bars) - 1 - i))
		if b.Heading != "" {
			c.FillText(style, vg.Point{X: x(0), Y: middle - 3}, b.Heading)
			continue
		}
		right := x(max(b.Value, b.High))
		if b.Cell.Summary != nil {
			const half = rowHeight * 0.36
			c.FillPolygon(f.ink(i, partBar), []vg.Point{
				{X: x(0), Y: middle - half}, {X: max(x(b.Value), x(0)+1), Y: middle - half},
				{X: max(x(b.Value), x(0)+1), Y: middle + half}, {X: x(0), Y: middle + half},
			})
			whisker := draw.LineStyle{Color: f.ink(i, partWhisker), Width: 1.2}
			c.StrokeLines(whisker,
				[]vg.Point{{X: x(b.Low), Y: middle}, {X: x(b.High), Y: middle}},
				[]vg.Point{{X: x(b.Low), Y: middle - 3}, {X: x(b.Low), Y: middle + 3}},
				[]vg.Point{{X: x(b.High), Y: middle - 3}, {X: x(b.High), Y: middle + 3}})
			for _, d := range b.Dots {
				c.DrawGlyph(draw.GlyphStyle{Color: f.ink(i, partDot), Radius: 1.6, Shape: draw.CircleGlyph{}}, vg.Point{X: x(d), Y: middle})
				right = max(right, x(d))
			}
		}
		c.FillText(style, vg.Point{X: right + 6, Y: middle}, b.Text)
	}
}

// drawing of a figure, and its height.
func drawing(f bench.Figure, ink ink) (*plot.Plot, vg.Length) {
	p := plot.New()
	p.BackgroundColor = nil
	for _, style := range []*text.Style{&p.Title.TextStyle, &p.X.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label} {
		style.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: 10}
	}
	p.Title.Text, p.X.Label.Text = f.Title, f.Axis
	p.Title.TextStyle.Font.Size, p.Title.TextStyle.Font.Weight = 12, 2 // bold
	p.Title.Padding, p.X.Label.Padding = 6, 4
	var labels []string
	widest := 0.0
	for i := range f.Bars {
		b := f.Bars[len(f.Bars)-1-i]
		labels = append(labels, b.Label)
		end := max(b.Value, b.High)
		for _, d := range b.Dots {
			end = max(end, d)
		}
		// A letter takes about a hundredth of the width.
		widest = max(widest, end/(1-min(0.6, 0.012*float64(len(b.Text))+0.03)))
	}
	p.NominalY(labels...)
	p.X.Min, p.X.Max = 0, max(widest, 1.05*f.Line)
	if p.X.Max == 0 {
		p.X.Max = 1
	}
	p.Y.Min, p.Y.Max = -0.6, float64(len(f.Bars))-0.4
	p.Add(picture{f, ink})
	return p, rowHeight*vg.Length(len(f.Bars)) + 74
}

// pngOf a figure of a report.
func pngOf(r *bench.Report, f bench.Figure) ([]byte, error) {
	p, height := drawing(f, func(n int, part part) color.Color {
		h := hue(r, f.Bars[n].Cell.Driver)
		if part == partBar {
			return color.NRGBA{h.R, h.G, h.B, 0x99}
		}
		return darker(h)
	})
	p.BackgroundColor = color.White
	canvas := vgimg.NewWith(vgimg.UseWH(plotWidth, height), vgimg.UseDPI(pngDPI))
	p.Draw(draw.Crop(draw.New(canvas), 8, -8, 6, -6))
	var b bytes.Buffer
	if _, err := (vgimg.PngCanvas{Canvas: canvas}).WriteTo(&b); err != nil {
		return nil, fmt.Errorf("draw %s: %w", f.Name, err)
	}
	return b.Bytes(), nil
}

func darker(c color.RGBA) color.Color {
	return color.RGBA{c.R / 3 * 2, c.G / 3 * 2, c.B / 3 * 2, 0xff}
}

// keyed is an element that was drawn in a key of svgOf.
var keyed = regexp.MustCompile(`<path ([^>]*)style="(fill:|fill:none;stroke:)#(F[CDE])([0-9A-F]{4})([^"]*)" ?/>`)

// written is a piece of text in SVG, with its weight and size in points.
var written = regexp.MustCompile(`<text ([^>]*font-weight:(\w+);[^>]*font-size:(\d+)px[^>]*)>([^<]*)</text>`)

// fixWidth keeps a piece of text as wide as it was measured to be, whatever font the
// reader has.
func fixWidth(element string) string {
	m := written.FindStringSubmatch(element)
	size, _ := strconv.Atoi(m[3])
	style := text.Style{Font: font.Font{Typeface: "Liberation", Variant: "Sans", Size: font.Length(size)}, Handler: plot.DefaultTextHandler}
	if m[2] != "normal" {
		style.Font.Weight = 2 // bold
	}
	return fmt.Sprintf(`<text textLength="%.1f" lengthAdjust="spacingAndGlyphs" %s>%s</text>`,
		style.Width(html.UnescapeString(m[4])).Points(), m[1], m[4])
}

// maxBars of a figure that can be told apart by a key.
const maxBars = 1 << 16

// svgOf a figure of a report, without a header of its own. gonum's canvas cannot name what it
// draws, so each part is drawn in a colour that is a key, and given its real colour and
// its name afterwards; the text takes that of the page.
func svgOf(r *bench.Report, f bench.Figure) (string, error) {
	if len(f.Bars) > maxBars {
		return "", fmt.Errorf("draw %s: %d rows, at most %d", f.Name, len(f.Bars), maxBars)
	}
	p, height := drawing(f, func(n int, part part) color.Color {
		return color.RGBA{byte(part), byte(n >> 8), byte(n), 0xff} //nolint:gosec // the bytes of a number below maxBars
	})
	canvas := vgsvg.New(plotWidth, height)
	p.Draw(draw.Crop(draw.New(canvas), 8, -8, 6, -6))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return "", fmt.Errorf("draw %s: %w", f.Name, err)
	}
	_, drawn, _ := strings.Cut(b.String(), "<svg ")
	drawn = keyed.ReplaceAllStringFunc(drawn, func(element string) string {
		m := keyed.FindStringSubmatch(element)
		kind, _ := strconv.ParseUint(m[3], 16, 8)
		n, _ := strconv.ParseUint(m[4], 16, 16)
		row := f.Bars[n]
		h := hue(r, row.Cell.Driver)
		opacity := ""
		if part(kind) == partBar {
			opacity = ";fill-opacity:0.55"
		}
		return fmt.Sprintf(`<path class="%s" data-series="%s" %sstyle="%s#%02x%02x%02x%s%s"><title>%s</title></path>`,
			partNames[part(kind)], html.EscapeString(row.Cell.ID()), m[1], m[2], h.R, h.G, h.B, opacity, m[5],
			html.EscapeString(row.Cell.ID()+": "+row.Text))
	})
	drawn = written.ReplaceAllStringFunc(drawn, fixWidth)
	drawn = strings.NewReplacer("#000000", "currentColor", "font-family:Liberation Sans", "font-family:Liberation Sans,Arial,sans-serif").Replace(drawn)
	return `<svg role="img" aria-label="` + html.EscapeString(f.Title) + `" fill="currentColor" ` + drawn, nil
}
