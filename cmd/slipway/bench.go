package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"slipway/bench"
)

// newBenchCmd is slipway bench, with the hidden roles in which it starts itself.
func newBenchCmd() *cobra.Command {
	var (
		cfg      bench.Config
		seconds  int
		jsonPath string
	)
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the bandwidth gap between host and container",
		Long: `Measure the bandwidth gap between host and container with iperf3: host loopback,
the container to the host and back, and a published port each way, for Slipway and,
where they are installed, for slirp4netns and pasta. Everything, the host's side
included, runs in namespaces of its own and is gone afterwards.`,
		Example: `  slipway bench
  slipway bench --seconds 1 --repetitions 3 --only slipway,slirp4netns/stream
  slipway bench --json run.json`,
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
			cfg.Duration = time.Duration(seconds) * time.Second
			return runBench(cmd.Context(), cmd.OutOrStdout(), os.Stderr, cfg, jsonPath)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&seconds, "seconds", 4, "length of one measurement; iperf3 runs a second longer, which is not counted")
	flags.IntVar(&cfg.Repetitions, "repetitions", 5, "measurements of each row, after one warm-up")
	flags.IntVar(&cfg.MTU, "mtu", 1500, "MTU of the container's link in bytes, for every row")
	flags.StringSliceVar(&cfg.Only, "only", nil, "measure only these rows (and host loopback): DRIVER[/WORKLOAD[/DIRECTION]], e.g. slipway/stream/up")
	flags.StringVar(&jsonPath, "json", "", "also write the report with all samples and commands to this `file`")
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
	)
	return cmd
}

// runBench measures and writes the table to out, progress to progress.
func runBench(ctx context.Context, out io.Writer, progress *os.File, cfg bench.Config, jsonPath string) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	save := func(*bench.Report) error { return nil }
	if jsonPath != "" {
		// Made before the run: a path that cannot be written shall not cost minutes.
		file, err := bench.CreateFile(jsonPath)
		if err != nil {
			return err
		}
		defer file.Discard()
		save = func(r *bench.Report) error { return errors.Join(r.WriteJSON(file), file.Finish()) }
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	cfg.Progress = progressPrinter(progress, cfg.Estimate())
	report, err := bench.Run(ctx, cfg)
	if term.IsTerminal(int(progress.Fd())) {
		fmt.Fprint(progress, "\r\x1b[K")
	}
	if err != nil && !report.Measured() {
		return err
	}
	if err := errors.Join(err, report.WriteTable(out), save(report)); err != nil {
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
			fmt.Fprintf(w, "\r\x1b[K%d of %d: %s %.1f Gbit/s", p.Done, p.Total, p.Cell.ID(), p.Sample.Value/1e9)
		case p.Sample.Round != round:
			round = p.Sample.Round
			fmt.Fprintf(w, "measurement %d of %d\n", p.Done, p.Total)
		}
	}
}
