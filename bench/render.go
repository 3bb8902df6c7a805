package bench

import (
	"bytes"
	"fmt"
	"io"
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
	FormatCommands    Format = "commands"
)

// Formats in the order in which help names them.
var Formats = []Format{
	FormatTable, FormatMarkdown, FormatCSV, FormatJSON, FormatHTML, FormatSVG, FormatPNG, FormatBenchfmt, FormatOpenMetrics, FormatCommands,
}

// Render renders the report in a format that needs no plots to be drawn; those of
// Markdown are links to files beside it.
func (r *Report) Render(out Output) ([]byte, error) {
	writers := map[Format]func(io.Writer) error{
		FormatTable: r.WriteTable, FormatCSV: r.writeCSV, FormatJSON: r.WriteJSON,
		FormatBenchfmt: r.writeBenchfmt, FormatOpenMetrics: r.writeOpenMetrics, FormatCommands: r.WriteCommands,
		FormatMarkdown: func(w io.Writer) error { return r.writeMarkdown(w, out.PlotDir()) },
	}
	if err := out.Validate(); err != nil {
		return nil, err
	}
	write := writers[out.Format]
	if write == nil {
		return nil, fmt.Errorf("render report: %s is drawn, slipway-plot does it", out.Format)
	}
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return nil, fmt.Errorf("render report: %w", err)
	}
	return b.Bytes(), nil
}
