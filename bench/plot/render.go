// Package plot draws reports of package bench: the HTML page, and each figure as SVG or
// PNG. It stands apart, and is linked into slipway-plot alone, because the fonts that it
// draws with would take 4 MB of each process of a network.
package plot

import (
	"fmt"
	"strings"

	"slipway/bench"
)

// Render renders a report in a format that has plots. HTML is one file without a name,
// SVG and PNG are a file for each plot. Markdown has links to plots in a directory, whose
// name out tells, and comes with them.
func Render(r *bench.Report, out bench.Output) ([]bench.File, error) {
	switch out.Format {
	case bench.FormatHTML:
		text, err := page(r)
		if err != nil {
			return nil, fmt.Errorf("render report: %w", err)
		}
		return []bench.File{{Data: text}}, nil
	case bench.FormatSVG, bench.FormatPNG:
		return plots(r, out.Format, "")
	case bench.FormatMarkdown:
		text, err := r.Render(out)
		if err != nil {
			return nil, err
		}
		files := []bench.File{{Data: text}}
		if dir := out.PlotDir(); dir != "" {
			drawn, err := plots(r, bench.FormatSVG, dir+"/")
			if err != nil {
				return nil, err
			}
			files = append(files, drawn...)
		}
		return files, nil
	}
	return nil, fmt.Errorf("render report: there are no plots in %s: slipway bench report writes it", out.Format)
}

// svgHead makes an SVG a file of its own, readable on light and dark pages.
const svgHead = `<?xml version="1.0" encoding="UTF-8"?>
`
const svgStyle = `<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>`

// plots are the figures, a file each.
func plots(r *bench.Report, format bench.Format, prefix string) ([]bench.File, error) {
	var files []bench.File
	for _, f := range r.Figures() {
		var data []byte
		if format == bench.FormatPNG {
			png, err := pngOf(r, f)
			if err != nil {
				return nil, err
			}
			data = png
		} else {
			svg, err := svgOf(r, f)
			if err != nil {
				return nil, err
			}
			data = []byte(svgHead + strings.Replace(svg, ">\n", ">"+svgStyle+"\n", 1))
		}
		files = append(files, bench.File{Name: prefix + f.Name + "." + string(format), Data: data})
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("render report: nothing was measured, there is no plot")
	}
	return files, nil
}
