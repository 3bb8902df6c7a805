package main

import (
	"github.com/spf13/cobra"

	"slipway/bench"
)

// newBenchImportCmd is slipway bench import.
func newBenchImportCmd() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "import [NAME=]IPERF3.json...",
		Short: "Make a report of what iperf3 --json printed",
		Long: `Make a report of what iperf3 --json printed, one file for each measurement. NAME is the
driver, the row's first word, or the whole row as DRIVER/WORKLOAD/DIRECTION; without it
the driver is "iperf3" and the rest is what the file says: up, or down with --reverse.
Several files of one row are its repetitions. Rows are divided by host/stream/loopback.
All files must be of one iperf3, one machine and one length.`,
		Example: `  slipway bench import host/stream/loopback=lo1.json host/stream/loopback=lo2.json pasta=up1.json pasta=up2.json -o run.json
  slipway bench report run.json -f html -o run.html`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			report, err := bench.Import(args)
			if err != nil {
				return err
			}
			if out == "" {
				return report.WriteJSON(cmd.OutOrStdout())
			}
			return bench.WriteFile(out, report.WriteJSON)
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "write the report to this `file` instead of standard output")
	return cmd
}
