package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"slipway/bench"
)

// newBenchCmd is slipway bench, with the hidden roles in which it starts itself.
func newBenchCmd() *cobra.Command {
	var (
		cfg     bench.Config
		seconds float64
		omit    int
		o       benchOptions
	)
	suites := bench.Suites()
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the bandwidth gap between host and container",
		Long: `Measure the bandwidth gap between host and container with iperf3: host loopback,
the container to the host and back, and a published port each way, for Slipway and,
where they are installed, for slirp4netns and pasta. Everything, the host's side
included, runs in namespaces of its own and is gone afterwards.

The suites choose the rows, and the other options change what a suite begins with:
` + suiteList(suites),
		Example: `  slipway bench
  slipway bench --seconds 1 --repetitions 3 --only slipway,slirp4netns/stream
  slipway bench --suite quick
  slipway bench --mtu 1500,65520 --streams 1,4 --dry-run
  slipway bench --peer pasta=/opt/passt/pasta --json run.json`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			cfg.Slipway, cfg.Version = self, cmd.Root().Version
			cfg.Command = strings.Join(append([]string{"slipway"}, os.Args[1:]...), " ")
			cfg.Duration = time.Duration(seconds * float64(time.Second))
			cfg.Omit = time.Duration(omit) * time.Second
			cfg.Only = rowNames(cfg.Only)
			suite, err := bench.LookSuite(cfg.Suite)
			if err != nil {
				return err
			}
			changed := cmd.Flags().Changed
			if !changed("seconds") {
				cfg.Duration = suite.Duration
			}
			if !changed("omit") {
				cfg.Omit = suite.Omit
			}
			if !changed("repetitions") {
				cfg.Repetitions = suite.Repetitions
			}
			if !changed("mtu") {
				cfg.MTUs = suite.MTUs
			}
			if !changed("streams") {
				cfg.Streams = suite.Streams
			}
			return runBench(cmd.Context(), cmd.OutOrStdout(), os.Stderr, cfg, o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Suite, "suite", suites[0].Name, "rows to measure and how: "+strings.Join(suiteNames(suites), ", "))
	flags.Float64Var(&seconds, "seconds", 4, "length of one measurement; parts of a second for latency, connect and dns only")
	flags.IntVar(&omit, "omit", 1, "seconds that iperf3 runs longer with TCP, at the start of each measurement, which are not counted")
	flags.IntVar(&cfg.Repetitions, "repetitions", 5, "measurements of each row, after one warm-up")
	flags.IntSliceVar(&cfg.MTUs, "mtu", []int{1500}, "MTUs of the container's link in bytes, for every driver")
	flags.IntSliceVar(&cfg.Streams, "streams", []int{1}, "numbers of TCP connections at a time")
	flags.StringToStringVar(&cfg.Peers, "peer", nil, "a program that is not the one in PATH, or with "+bench.DriverSlipwayOld+" another build of this one, to measure beside it, `NAME=PATH`: "+strings.Join(bench.PeerPrograms(), ", "))
	flags.StringSliceVar(&cfg.Only, "only", nil, "measure only these rows (and host loopback): DRIVER[/WORKLOAD[/DIRECTION]] or a whole name, e.g. slipway/stream/up or slipway/stream/up,streams=4")
	flags.BoolVar(&o.dryRun, "dry-run", false, "say which rows would be measured and how long it would take, and end")
	flags.BoolVar(&o.showCommands, "show-commands", false, "also print the commands behind each row")
	flags.StringVar(&o.json, "json", "", "also write the report with all samples and commands to this `file`")
	cmd.AddCommand(
		inputErrors(newBenchReportCmd()), inputErrors(newBenchCompareCmd()), inputErrors(newBenchImportCmd()),
		newBenchServeCmd(), newBenchListCmd(), newBenchEnvCmd(),
		&cobra.Command{
			Use: "inside", Hidden: true, Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
			RunE: func(*cobra.Command, []string) error { return bench.Inside() },
		},
		&cobra.Command{
			Use: "hold", Hidden: true, Args: cobra.ExactArgs(1), SilenceUsage: true, SilenceErrors: true,
			RunE: func(_ *cobra.Command, args []string) error { return bench.Hold(args[0]) },
		},
		&cobra.Command{
			Use: "generate", Hidden: true, DisableFlagParsing: true, SilenceUsage: true, SilenceErrors: true,
			RunE: func(cmd *cobra.Command, args []string) error { return bench.Generate(args, cmd.OutOrStdout()) },
		},
	)
	return cmd
}

// benchOptions are what is done with the report of a run.
type benchOptions struct {
	dryRun       bool
	showCommands bool
	json         string // path, "": not written
}

// rowNames puts the words of a list of rows together again: a row's name may have commas
// in it, as in slipway/stream/up,streams=4.
func rowNames(words []string) []string {
	var names []string
	for _, w := range words {
		if len(names) > 0 && strings.Contains(w, "=") {
			names[len(names)-1] += "," + w
			continue
		}
		names = append(names, w)
	}
	return names
}

func suiteNames(suites []bench.Suite) []string {
	var names []string
	for _, s := range suites {
		names = append(names, s.Name)
	}
	return names
}

func suiteList(suites []bench.Suite) string {
	var lines []string
	for _, s := range suites {
		lines = append(lines, fmt.Sprintf("  %-8s %s; %d times %g s", s.Name, s.Text, s.Repetitions, s.Duration.Seconds()))
	}
	return strings.Join(lines, "\n")
}

// planBench says what a run would do.
func planBench(out io.Writer, cfg bench.Config) error {
	ids := cfg.MeasurableIDs()
	text := fmt.Sprintf("%s\n%d rows, %d times %s each after one warm-up: about %s\n",
		strings.Join(ids, "\n"), len(ids), cfg.Repetitions, cfg.Duration, cfg.Estimate().Round(time.Second))
	if more := len(cfg.CellIDs()) - len(ids); more > 0 {
		text += fmt.Sprintf("%d more rows need programs that are not installed, see slipway bench list\n", more)
	}
	_, err := io.WriteString(out, text)
	return err
}

// runBench measures and writes the table to out, progress to progress.
func runBench(ctx context.Context, out io.Writer, progress *os.File, cfg bench.Config, o benchOptions) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if o.dryRun {
		return planBench(out, cfg)
	}
	jsonPath := o.json
	save := func(*bench.Report) error { return nil }
	if jsonPath != "" {
		// Made before the run: a path that cannot be written shall not cost minutes.
		file, err := bench.CreateFile(jsonPath)
		if err != nil {
			return err
		}
		defer file.Discard()
		save = func(r *bench.Report) error {
			if err := r.WriteJSON(file); err != nil {
				return err
			}
			return file.Finish()
		}
	}
	cfg.Progress = progressPrinter(progress, cfg.Estimate())
	report, err := bench.Run(ctx, cfg)
	if term.IsTerminal(int(progress.Fd())) {
		fmt.Fprint(progress, "\r\x1b[K")
	}
	if err != nil && !report.Measured() {
		return err
	}
	shown := report.WriteTable(out)
	if cfg.Suite == "article" {
		shown = errors.Join(shown, report.WriteArticle(out))
	}
	if o.showCommands {
		fmt.Fprintln(out)
		shown = errors.Join(shown, report.WriteCommands(out))
	}
	if err := errors.Join(err, shown, save(report)); err != nil {
		return err
	}
	if failed := report.Failed(); len(failed) > 0 {
		return fmt.Errorf("measurements failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

// progressPrinter says how long it takes once the first measurement has gone well, and
// then keeps one line up to date on a terminal, and elsewhere prints a line for each round.
func progressPrinter(w *os.File, estimate time.Duration) func(bench.Progress) {
	terminal := term.IsTerminal(int(w.Fd()))
	round := -1
	return func(p bench.Progress) {
		if p.Done == 1 {
			fmt.Fprintf(w, "this takes about %s\n", estimate.Round(time.Second))
		}
		switch {
		case terminal:
			fmt.Fprintf(w, "\r\x1b[K%d of %d: %s %s", p.Done, p.Total, p.Cell.ID(), p.Cell.Unit.Format(p.Sample.Value))
		case p.Sample.Round != round:
			round = p.Sample.Round
			fmt.Fprintf(w, "measurement %d of %d\n", p.Done, p.Total)
		}
	}
}
