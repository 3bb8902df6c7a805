package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"slipway/netstack/monitor"
	"slipway/netstack/netns"
)

func newAttachCmd() *cobra.Command {
	var (
		net             networkFlags
		pid             int
		netnsP, usernsP string
		readyFD, exitFD int
	)
	cmd := &cobra.Command{
		Use:   "attach (--pid N | --netns PATH [--userns PATH])",
		Short: "Give an existing network namespace a network",
		Long: "Give a network namespace that somebody else made (unshare, podman, apptainer, bubblewrap) a network,\n" +
			"until it is interrupted or --exit-fd is closed.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := net.config()
			if err != nil {
				return err
			}
			if cfg.Target, err = attachTarget(cmd, pid, netnsP, usernsP); err != nil {
				return err
			}
			defer cfg.Target.Close()
			if cfg.Container = netnsP; pid > 0 {
				cfg.Container = "pid " + strconv.Itoa(pid)
			}
			return attach(cmd.Context(), *cfg, readyFD, exitFD)
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&pid, "pid", 0, "process whose namespaces get the network")
	fs.StringVar(&netnsP, "netns", "", "path of the network namespace")
	fs.StringVar(&usernsP, "userns", "", "path of the user namespace that owns --netns")
	fs.IntVar(&readyFD, "ready-fd", -1, "write one byte to this descriptor when the network is up")
	fs.IntVar(&exitFD, "exit-fd", -1, "end when this descriptor is closed by the other side")
	net.register(fs)
	cmd.MarkFlagsMutuallyExclusive("pid", "netns")
	cmd.MarkFlagsMutuallyExclusive("pid", "userns")
	cmd.MarkFlagsOneRequired("pid", "netns")
	return cmd
}

func attachTarget(cmd *cobra.Command, pid int, netnsP, usernsP string) (netns.Target, error) {
	if cmd.Flags().Changed("pid") {
		if pid < 1 {
			return netns.Target{}, fmt.Errorf("pid %d: must be positive", pid)
		}
		return netns.FromPID(pid)
	}
	return netns.FromPath(netnsP, usernsP)
}

func attach(ctx context.Context, cfg monitor.Config, readyFD, exitFD int) error {
	cfg.Log = logger()
	// Who reads what is said may go; the network stays.
	signal.Ignore(syscall.SIGPIPE)
	ready, err := inherited("ready-fd", readyFD)
	if err != nil {
		return err
	}
	exit, err := inherited("exit-fd", exitFD)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if exit != nil {
		go func() {
			defer cancel()
			// Any event ends the network, as slirp4netns(1) does it.
			_, _ = exit.Read(make([]byte, 1))
		}()
	}
	err = monitor.Run(ctx, cfg, func(r monitor.Ready) error {
		announce(cfg, r)
		if ready == nil {
			return nil
		}
		_, err := ready.Write([]byte("1"))
		return errors.Join(err, ready.Close())
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// announce says what a person would not expect: lost speed, chosen ports.
func announce(cfg monitor.Config, r monitor.Ready) {
	if r.OffloadReason != "" {
		cfg.Log.Warn("the TAP device has no offloads: large transfers are slower", "reason", r.OffloadReason)
	}
	if r.KernelReason != "" && len(cfg.KernelPorts) > 0 {
		cfg.Log.Warn("published ports go through the TAP device: large transfers are slower", "reason", r.KernelReason)
	}
	for i, l := range cfg.Listen {
		if i < len(r.Bound) && len(l.Addrs) > 0 && l.Addrs[0].Port() == 0 {
			cfg.Log.Info("port chosen by the kernel", "listen", fmt.Sprint(r.Bound[i]), "network", l.Network)
		}
	}
}

// inherited returns the open descriptor number fd; nil for -1.
func inherited(name string, fd int) (*os.File, error) {
	if fd == -1 {
		return nil, nil //nolint:nilnil // no descriptor is no error
	}
	if fd < 0 {
		return nil, fmt.Errorf("--%s %d: must not be negative", name, fd)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return nil, fmt.Errorf("--%s %d: %w", name, fd, err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name), nil
}
