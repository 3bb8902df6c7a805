package bench

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// Format of a rendering.
type Format string

// Formats there are. Markdown and HTML are for people, the table for a terminal; JSON is
// what the others are made from.
const (
	FormatTable       Format = "table"
	FormatMarkdown    Format = "md"
	FormatCSV         Format = "csv"
	FormatJSON        Format = "json"
	FormatHTML        Format = "html"
	FormatSVG         Format = "svg"
	FormatPNG         Format = "png"
	FormatBenchfmt    Format = "benchfmt"
	FormatOpenMetrics Format = "openmetrics"
)

// Formats in the order in which help names them.
var Formats = []Format{
	FormatTable, FormatMarkdown, FormatCSV, FormatJSON, FormatHTML, FormatSVG, FormatPNG, FormatBenchfmt, FormatOpenMetrics,
}

// Plots says whether a format is a file for each plot.
func (f Format) Plots() bool { return f == FormatSVG || f == FormatPNG }

// File is a rendering, or a part of one. Its name is a path relative to where the
// rendering is put, empty for what stands alone.
type File struct {
	Name string
	Data []byte
}

// Render renders the report. It is one file without a name; plots are a file each. With
// the name of a directory for them, Markdown comes with its plots, relative to it.
func (r *Report) Render(format Format, plots string) ([]File, error) {
	writers := map[Format]func(io.Writer) error{
		FormatTable: r.WriteTable, FormatCSV: r.writeCSV, FormatJSON: r.WriteJSON, FormatHTML: r.writeHTML,
		FormatBenchfmt: r.writeBenchfmt, FormatOpenMetrics: r.writeOpenMetrics,
		FormatMarkdown: func(w io.Writer) error { return r.writeMarkdown(w, plots) },
	}
	if format.Plots() {
		return r.plots(format, "")
	}
	write := writers[format]
	if write == nil {
		var names []string
		for _, f := range Formats {
			names = append(names, string(f))
		}
		return nil, fmt.Errorf("render report: unknown format %q, there are %s", format, strings.Join(names, ", "))
	}
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return nil, fmt.Errorf("render report: %w", err)
	}
	files := []File{{Data: b.Bytes()}}
	if format == FormatMarkdown && plots != "" {
		drawn, err := r.plots(FormatSVG, plots+"/")
		if err != nil {
			return nil, err
		}
		files = append(files, drawn...)
	}
	return files, nil
}

// svgHead makes an SVG a file of its own, readable on light and dark pages.
const svgHead = `<?xml version="1.0" encoding="UTF-8"?>
`
const svgStyle = `<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>`

// plots are the figures, a file each.
func (r *Report) plots(format Format, prefix string) ([]File, error) {
	var files []File
	for _, f := range r.figures() {
		var data []byte
		if format == FormatPNG {
			png, err := r.png(f)
			if err != nil {
				return nil, err
			}
			data = png
		} else {
			svg, err := r.svg(f)
			if err != nil {
				return nil, err
			}
			data = []byte(svgHead + strings.Replace(svg, ">\n", ">"+svgStyle+"\n", 1))
		}
		files = append(files, File{prefix + f.name + "." + string(format), data})
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("render report: nothing was measured, there is no plot")
	}
	return files, nil
}
