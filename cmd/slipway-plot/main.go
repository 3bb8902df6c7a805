// Command slipway-plot draws what slipway bench has measured; slipway bench report runs
// it for every format that has plots.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"slipway/bench"
	"slipway/bench/plot"
)

// version is set by the linker.
var version = "0.1.0-dev"

// badInput is the exit status for everything that goes wrong, as that of slipway bench
// report is.
const badInput = 2

func main() {
	// What is being written when a signal comes is written whole.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := newCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "slipway-plot: %v\n", err)
		os.Exit(badInput)
	}
}

// newCommand is the program's only command.
func newCommand() *cobra.Command {
	var format, path string
	cmd := &cobra.Command{
		Use:   "slipway-plot [FILE]",
		Short: "Draw a report of slipway bench: HTML with plots, SVG, PNG, Markdown with plots",
		Long: `Draw the report in FILE, or on standard input, as slipway bench report does, which
runs this program.`,
		Example: `  slipway-plot run.json -f html -o run.html
  slipway-plot -f png -o plots/ < run.json`,
		Version:       version,
		Args:          cobra.MaximumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			out := bench.Output{Format: bench.Format(format), Path: path}
			if err := out.Validate(); err != nil {
				return err
			}
			report, err := read(cmd.InOrStdin(), args)
			if err != nil {
				return err
			}
			files, err := plot.Render(report, out)
			if err != nil {
				return err
			}
			if cmd.Context().Err() != nil {
				return errors.New("ended by a signal, nothing was written")
			}
			return out.Write(cmd.OutOrStdout(), files)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", string(bench.FormatHTML), "one of html, svg, png, md")
	cmd.Flags().StringVarP(&path, "output", "o", "", "write to this `file`, or for svg and png directory, instead of standard output")
	return cmd
}

// read reads the report in the file that args name, or else from stdin.
func read(stdin io.Reader, args []string) (*bench.Report, error) {
	if len(args) == 0 {
		return bench.ReadReportFrom(stdin, "standard input")
	}
	return bench.ReadReport(args[0])
}
