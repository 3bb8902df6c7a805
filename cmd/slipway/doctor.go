package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"slipway/runtime"
)

func newDoctorCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine lacks for rootless containers, and what mends it",
		Long:  "Try what a container needs of this machine, and say what is missing, why it matters and what mends it.\nThe exit status is 1 when something is missing without which there is no container or no network.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report := runtime.Diagnose(cmd.Context())
			if asJSON {
				e := json.NewEncoder(os.Stdout)
				e.SetIndent("", "  ")
				e.SetEscapeHTML(false)
				if err := e.Encode(report); err != nil {
					return fmt.Errorf("write the report: %w", err)
				}
			} else if err := report.Write(os.Stdout); err != nil {
				return fmt.Errorf("write the report: %w", err)
			}
			if report.Failed() {
				return exitError(1)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
