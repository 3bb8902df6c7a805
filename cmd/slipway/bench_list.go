package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"slipway/bench"
)

// newBenchListCmd is slipway bench list.
func newBenchListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the drivers and rows that there are, for --only",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return bench.WriteList(cmd.OutOrStdout()) },
	}
}

// newBenchEnvCmd is slipway bench env.
func newBenchEnvCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print what a report would say about this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			e := bench.Describe(cmd.Context(), self, cmd.Root().Version)
			if !asJSON {
				return e.Write(cmd.OutOrStdout())
			}
			out := json.NewEncoder(cmd.OutOrStdout())
			out.SetIndent("", "  ")
			if err := out.Encode(e); err != nil {
				return fmt.Errorf("write the environment: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
