package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"slipway/bench"
)

// share is a flag's value: a part of one, written as "5%" or "0.05".
type share float64

func (s *share) String() string { return strconv.FormatFloat(100*float64(*s), 'g', -1, 64) + "%" }
func (s *share) Type() string   { return "percent" }

// Set implements pflag.Value.
func (s *share) Set(text string) error {
	number, isPercent := strings.CutSuffix(text, "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if isPercent {
		v /= 100
	}
	if err != nil || !(v >= 0 && v < 1) {
		return fmt.Errorf("want 0%% to less than 100%%, like 5%%")
	}
	*s = share(v)
	return nil
}

// newBenchCompareCmd is slipway bench compare.
func newBenchCompareCmd() *cobra.Command {
	var (
		only   []string
		anyway bool
	)
	threshold := share(0.05)
	cmd := &cobra.Command{
		Use:   "compare RUN | OLD NEW",
		Short: "Say whether a build, or a run, is worse than another; exit 1 when it is",
		Long: `Compare two builds of Slipway that one run has measured in turns, round by round; or
two reports of one machine, as ratios to host loopback of the same round. The former
finds smaller differences, for a machine that is a tenth faster the next minute does not
count. Exit status: 0 when nothing got worse by more than the threshold, 1 when a row
did and it is no chance, 2 when the reports cannot be read, do not compare, or have too
few measurements to find any difference.`,
		Example: `  slipway bench --json run.json --repetitions 12 --only slipway/stream --peer slipway-old=/usr/bin/slipway
  slipway bench compare run.json

  slipway bench --json old.json --repetitions 10 --only slipway
  slipway bench --json new.json --repetitions 10 --only slipway
  slipway bench compare old.json new.json --threshold 5%`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var reports []*bench.Report
			for _, path := range args {
				r, err := bench.ReadReport(path)
				if err != nil {
					return err
				}
				if err := r.Only(rowNames(only)); err != nil {
					return fmt.Errorf("%s: %w", path, err)
				}
				reports = append(reports, r)
			}
			if len(reports) == 2 && !anyway {
				if different := bench.Differences(reports[0], reports[1]); len(different) > 0 {
					return fmt.Errorf("%w: %s (--anyway compares them all the same)", bench.ErrDifferent, strings.Join(different, "; "))
				}
			}
			c, err := compareReports(reports, float64(threshold))
			if err != nil {
				return err
			}
			if err := c.Write(cmd.OutOrStdout()); err != nil {
				return err
			}
			if c.Blind() {
				return fmt.Errorf("%w: too few measurements to find any difference", bench.ErrDifferent)
			}
			if len(c.Worse()) > 0 {
				return exitError(1)
			}
			return nil
		},
	}
	cmd.Flags().Var(&threshold, "threshold", "how much worse a row may get")
	cmd.Flags().StringSliceVar(&only, "only", nil, "compare only these rows: DRIVER[/WORKLOAD[/DIRECTION]]")
	cmd.Flags().BoolVar(&anyway, "anyway", false, "compare runs of different machines, iperf3 versions or lengths too; rows of different units are left out")
	return cmd
}

// compareReports compares the builds in one report, or two reports.
func compareReports(reports []*bench.Report, threshold float64) (*bench.Comparison, error) {
	if len(reports) == 1 {
		return bench.CompareBuilds(reports[0], threshold)
	}
	return bench.Compare(reports[0], reports[1], threshold)
}
