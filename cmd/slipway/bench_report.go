package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

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
openmetrics is also what the textfile collector of node_exporter reads.`,
		Example: `  slipway bench report run.json
  slipway bench report run.json -f html -o run.html
  slipway bench report run.json -f png -o plots/
  slipway bench report run.json -f openmetrics -o /var/lib/node_exporter/slipway_bench.prom`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return renderReport(cmd.OutOrStdout(), args[0], bench.Format(format), out)
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
func renderReport(stdout io.Writer, path string, format bench.Format, out string) error {
	if format.Plots() && out == "" {
		return fmt.Errorf("%s is a file for each plot: give a directory for them with -o DIR", format)
	}
	report, err := bench.ReadReport(path)
	if err != nil {
		return err
	}
	plots := ""
	if format == bench.FormatMarkdown && out != "" {
		if plots = strings.TrimSuffix(filepath.Base(out), ".md"); plots == filepath.Base(out) {
			return fmt.Errorf("write to %s: Markdown goes to a file that ends in .md, its plots to the directory of that name", out)
		}
	}
	files, err := report.Render(format, plots)
	if err != nil {
		return err
	}
	if out == "" {
		_, err := stdout.Write(files[0].Data)
		return err
	}
	dir := filepath.Dir(out)
	if format.Plots() {
		dir = out
	}
	for _, f := range files {
		to := filepath.Join(dir, f.Name)
		if f.Name == "" {
			to = out
		} else if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { //nolint:gosec // for everybody to read
			return fmt.Errorf("make the directory of the plots: %w", err)
		}
		if err := writeFile(to, func(w io.Writer) error { _, err := w.Write(f.Data); return err }); err != nil {
			return err
		}
	}
	return nil
}

// newFile is a file that takes its name only when it is whole.
type newFile struct {
	*os.File
	path string
}

// createFile makes a file that shall be called path. What is no ordinary file, like
// /dev/stdout, is written as it is.
func createFile(path string) (*newFile, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("write a file: %w", err)
		}
		return &newFile{File: f}, nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, fmt.Errorf("write a file: %w", err)
	}
	return &newFile{File: f, path: path}, nil
}

// discard removes the file unless it has been finished.
func (f *newFile) discard() {
	if f.path != "" {
		os.Remove(f.Name())
	}
	f.Close()
}

// finish gives the file its name.
func (f *newFile) finish() error {
	if f.path == "" {
		return f.Close()
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil { //nolint:gosec // for everybody to read
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	if err := os.Rename(f.Name(), f.path); err != nil {
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	f.path = ""
	return nil
}

// writeFile writes a file as a whole or not at all.
func writeFile(path string, write func(io.Writer) error) error {
	f, err := createFile(path)
	if err != nil {
		return err
	}
	defer f.discard()
	if err := write(f); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.finish()
}
