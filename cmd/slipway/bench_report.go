package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"slipway/bench"
)

// badInput is the exit status of the commands on reports for what they cannot work with;
// 1 is that of slipway bench compare for something worse.
const badInput = 2

// inputErrors gives everything that goes wrong in a command, its options included, the
// exit status badInput.
func inputErrors(cmd *cobra.Command) *cobra.Command {
	bad := func(err error) error {
		var status exitError
		if err == nil || errors.As(err, &status) {
			return err
		}
		return statusError{badInput, err}
	}
	args, run := cmd.Args, cmd.RunE
	cmd.Args = func(cmd *cobra.Command, words []string) error { return bad(args(cmd, words)) }
	cmd.RunE = func(cmd *cobra.Command, words []string) error { return bad(run(cmd, words)) }
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return bad(cmd.Root().FlagErrorFunc()(cmd, err)) })
	return cmd
}

// newBenchReportCmd is slipway bench report.
func newBenchReportCmd() *cobra.Command {
	var format, out string
	cmd := &cobra.Command{
		Use:   "report FILE",
		Short: "Render a report: table, Markdown, CSV, HTML with plots, ...",
		Long: `Render the report that slipway bench --json or slipway bench import wrote.

svg and png are a file for each plot: give the directory for them with -o. Markdown
that goes to a file PATH.md comes with its plots, in the directory PATH beside it.
openmetrics is also what the textfile collector of node_exporter reads. Plots are drawn
by slipway-plot, which lies beside slipway or in PATH.`,
		Example: `  slipway bench report run.json
  slipway bench report run.json -f html -o run.html
  slipway bench report run.json -f png -o plots/
  slipway bench report run.json -f openmetrics -o /var/lib/node_exporter/slipway_bench.prom`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return renderReport(cmd.Context(), cmd.OutOrStdout(), args[0], bench.Output{Format: bench.Format(format), Path: out})
		},
	}
	var names []string
	for _, f := range bench.Formats {
		names = append(names, string(f))
	}
	cmd.Flags().StringVarP(&format, "format", "f", string(bench.FormatTable), "one of "+strings.Join(names, ", "))
	cmd.Flags().StringVarP(&out, "output", "o", "", "write to this `file`, or for plots directory, instead of standard output")
	return cmd
}

// renderReport writes a rendering of a report to a file or directory, or to stdout.
func renderReport(ctx context.Context, stdout io.Writer, path string, out bench.Output) error {
	if err := out.Validate(); err != nil {
		return err
	}
	report, err := bench.ReadReport(path)
	if err != nil {
		return err
	}
	if out.HasPlots() {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		program, err := findPlotter(filepath.Dir(self))
		if err != nil {
			return err
		}
		return draw(ctx, stdout, program, report, out)
	}
	text, err := report.Render(out)
	if err != nil {
		return err
	}
	return out.Write(stdout, []bench.File{{Data: text}})
}

// plotter is the program that draws. It is one of its own for its fonts, which would
// take 4 MB of each process of a network.
const plotter = "slipway-plot"

// findPlotter finds the plotter in a directory or else in PATH.
func findPlotter(dir string) (string, error) {
	if path, err := exec.LookPath(filepath.Join(dir, plotter)); err == nil {
		return path, nil
	}
	path, err := exec.LookPath(plotter)
	if err != nil {
		return "", fmt.Errorf("draw plots: there is no program %s in %s or in PATH; to get it where Slipway's source is, run: make build", plotter, dir)
	}
	return path, nil
}

// draw has the plotter render a report.
func draw(ctx context.Context, stdout io.Writer, program string, report *bench.Report, out bench.Output) error {
	var text, complaint bytes.Buffer
	if err := report.WriteJSON(&text); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "--format="+string(out.Format), "--output="+out.Path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &text, stdout, &complaint
	// It has time to leave nothing half-made behind.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		if said := strings.TrimSpace(complaint.String()); said != "" {
			return fmt.Errorf("draw plots: %s", said)
		}
		return fmt.Errorf("draw plots: run %s: %w", program, err)
	}
	return nil
}
