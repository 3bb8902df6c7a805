// Command slipway gives rootless containers a fast network: it launches them (run),
// attaches to what others launched (attach), measures (bench) and explains what a
// host lacks (doctor).
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"slipway/netstack/monitor"
	"slipway/runtime"
)

// version is set by the linker.
var version = "0.1.0-dev"

// exitError carries the exit status of a command that has said what there is to
// say.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// statusError is an error with an exit status other than 1.
type statusError struct {
	status int
	error
}

func (e statusError) Unwrap() error { return e.error }

func main() {
	if err := keepDescriptors(); err != nil {
		os.Exit(exitStatus(err))
	}
	if state, ok := os.LookupEnv(sandboxState); ok {
		os.Exit(inSandbox(state))
	}
	if filepath.Base(os.Args[0]) == "slirp4netns" {
		os.Exit(asSlirp4netns(os.Args[0], os.Args[1:]))
	}
	if len(os.Args) == 2 {
		if role, ok := roles[os.Args[1]]; ok {
			os.Exit(exitStatus(role()))
		}
	}
	os.Exit(exitStatus(command()))
}

// roles are the processes that slipway starts of itself.
var roles = map[string]func() error{
	"monitor": monitor.Serve,
	"engine":  engine,
	"sandbox": sandboxStage,
	"stage":   func() error { runtime.Stage(); return nil },
}

func command() error {
	// These end what runs in order; run passes them to the workload instead and takes them
	// over itself.
	ctx, stop := signal.NotifyContext(context.Background(), heeded(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)...)
	defer stop()
	root := &cobra.Command{
		Use:           "slipway",
		Short:         "Fast networks for rootless containers",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		// Cobra's own check answers in several lines.
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q; see slipway --help for those there are", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help for the options there are", err, cmd.CommandPath())
	})
	root.SetVersionTemplate("slipway version {{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newRunCmd(), newAttachCmd(), newSlirp4netnsCmd(), newBenchCmd(), newDoctorCmd())
	return root.ExecuteContext(ctx)
}

// heeded are those of some signals that the program was not told to ignore, by nohup(1) or
// by a shell that starts it in the background; SIGTERM always is.
func heeded(signals ...os.Signal) []os.Signal {
	return slices.DeleteFunc(slices.Clone(signals), func(s os.Signal) bool { return s != syscall.SIGTERM && signal.Ignored(s) })
}

func exitStatus(err error) int {
	var status exitError
	var other statusError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	fmt.Fprintf(os.Stderr, "slipway: %v\n", err)
	if errors.As(err, &other) {
		return other.status
	}
	return 1
}

// logger writes what a person should know to stderr, one line each.
func logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}
