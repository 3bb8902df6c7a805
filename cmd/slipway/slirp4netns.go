package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"slipway/netstack"
	"slipway/netstack/confine"
	"slipway/netstack/monitor"
	"slipway/netstack/netns"
	"slipway/netstack/tap"
	"slipway/portfwd"
	"slipway/portfwd/slirp4netns"
)

func newSlirp4netnsCmd() *cobra.Command {
	return &cobra.Command{
		Use:                "slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]",
		Short:              "Do what slirp4netns does, with its own command line",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return exitError(asSlirp4netns("slipway slirp4netns", args))
		},
	}
}

// deadly are the signals that end slirp4netns. They end this program the same way, as
// its parent sees it, but not before the API socket's file has gone.
var deadly = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1}

// asSlirp4netns is the whole of the drop-in; it returns the exit status.
func asSlirp4netns(argv0 string, args []string) int {
	program := slirp4netns.Program{Name: argv0, Version: version, Stdout: os.Stdout, Stderr: os.Stderr}
	opts, err := program.Parse(args)
	var exit slirp4netns.Exit
	if errors.As(err, &exit) {
		return int(exit)
	}
	if err := claim(&opts); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return network(opts, func(ctx context.Context, cancel context.CancelCauseFunc) error {
		return serveSlirp4netns(ctx, cancel, append([]string{argv0}, args...), opts)
	})
}

// claim keeps the caller's descriptors from the processes that are started here: one that
// waits for the end of --ready-fd shall not wait for those. A number that is not open is
// soon one of our own files, so it is replaced: by none, or by what ends at once.
func claim(opts *slirp4netns.Options) error {
	own := func(fd int) bool {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
		return err == nil
	}
	if opts.ReadyFD >= 0 && !own(opts.ReadyFD) {
		opts.ReadyFD = -1
	}
	if opts.ExitFD < 0 || own(opts.ExitFD) {
		return nil
	}
	var ended [2]int
	if err := unix.Pipe2(ended[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("--exit-fd: pipe: %w", err)
	}
	opts.ExitFD = ended[0]
	return unix.Close(ended[1])
}

// keep has the caller's descriptors survive an exec.
func keep(opts slirp4netns.Options) error {
	for _, fd := range []int{opts.ReadyFD, opts.ExitFD} {
		if fd < 0 {
			continue
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// network runs serve, whose context ends with a signal, and says what there is to say
// of its end; it returns the exit status.
func network(opts slirp4netns.Options, serve func(context.Context, context.CancelCauseFunc) error) int {
	// Who reads what is said may go; the network stays.
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, heeded(deadly...)...)
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() { cancel(&signalled{<-signals}) }()

	err := serve(ctx, cancel)
	var s *signalled
	switch {
	case err != nil:
		for _, line := range inTheirWords(opts, err) {
			fmt.Fprintln(os.Stderr, line)
		}
		return 1
	case errors.As(context.Cause(ctx), &s):
		return s.die()
	}
	fmt.Fprintln(os.Stderr, "do_slirp is exiting")
	return 0
}

// signalled is the end of the program by a signal.
type signalled struct{ signal os.Signal }

func (s *signalled) Error() string { return s.signal.String() }

// dieTimeout is how long a signal to this process itself may take.
const dieTimeout = time.Second

// die ends the program by the signal where the Go runtime lets it, and returns the
// status that a shell shows for such an end where it does not: SIGQUIT prints all
// stacks, SIGUSR1 does nothing, and what was ignored at the start still is.
func (s *signalled) die() int {
	number, ok := s.signal.(syscall.Signal)
	if !ok {
		return 1
	}
	if number != syscall.SIGQUIT && number != syscall.SIGUSR1 {
		signal.Reset(number)
		_ = syscall.Kill(os.Getpid(), number)
		<-time.After(dieTimeout)
	}
	return 128 + int(number)
}

// serveSlirp4netns makes the network and runs it until ctx ends, which is no error. args
// is the whole command line.
func serveSlirp4netns(ctx context.Context, cancel context.CancelCauseFunc, args []string, opts slirp4netns.Options) error {
	cfg, err := slirp4netnsConfig(opts)
	if err != nil {
		return err
	}
	defer cfg.Target.Close()
	if cfg.Device != nil {
		defer cfg.Device.Close()
	}
	if late := opts.Late(); late != nil {
		fmt.Print(opts.Banner())
		return late
	}
	prepared, err := monitor.Prepare(*cfg)
	if err != nil {
		return err
	}
	if reason := prepared.Ready().OffloadReason; reason != "" {
		cfg.Log.Warn("the TAP device has no offloads: large transfers are slower", "reason", reason)
	}
	if opts.EnableSandbox {
		return errors.Join(enterSandbox(ctx, prepared, args, opts), prepared.Close())
	}
	return runSlirp4netns(ctx, cancel, prepared, opts)
}

// runSlirp4netns runs what has been prepared.
func runSlirp4netns(ctx context.Context, cancel context.CancelCauseFunc, prepared *monitor.Prepared, opts slirp4netns.Options) error {
	if opts.ExitFD >= 0 {
		go func() {
			awaitExit(opts.ExitFD)
			fmt.Fprintln(os.Stderr, "exitfd event")
			cancel(nil)
		}()
	}
	if opts.EnableSeccomp {
		if err := confine.DenyCalls(); err != nil {
			return errors.Join(fmt.Errorf("enable seccomp: %w", err), prepared.Close())
		}
	}
	return prepared.Run(ctx, func(monitor.Ready) error {
		fmt.Print(opts.Banner())
		if opts.EnableSeccomp {
			fmt.Println("seccomp: the process that reads the guest's packets has an allow-list, this one a deny-list")
		}
		if opts.ReadyFD >= 0 {
			// A descriptor that cannot be written to is the caller's loss.
			_, _ = unix.Write(opts.ReadyFD, []byte("1"))
			_ = unix.Close(opts.ReadyFD)
		}
		return nil
	})
}

// awaitExit waits for any event at a descriptor, one that it is not open included.
func awaitExit(fd int) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, -1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// offloadEnv is --offload of the other commands: slirp4netns has no option for it, and
// clients would have no way to give one.
const offloadEnv = "SLIPWAY_OFFLOAD"

// slirp4netnsConfig is the network that the options describe.
func slirp4netnsConfig(opts slirp4netns.Options) (*monitor.Config, error) {
	network := netstack.Network{Prefix4: opts.Network}
	if opts.EnableIPv6 {
		network.Prefix6 = netstack.DefaultNetwork().Prefix6
	}
	own := slirpConfig{
		HostLoopback: !opts.DisableHostLoopback, DNS: !opts.DisableDNS, API: opts.APISocket != "",
		Outbound4: opts.OutboundAddr, Outbound6: opts.OutboundAddr6,
	}
	engine, err := json.Marshal(engineConfig{
		Network: network, MTU: opts.MTU, Limits: netstack.DefaultLimits(), Published: portfwd.DefaultConnections, Sandbox: "on", Slirp4netns: &own,
	})
	if err != nil {
		return nil, fmt.Errorf("engine configuration: %w", err)
	}
	offload := tap.Auto
	if v := os.Getenv(offloadEnv); v != "" {
		if offload, err = tap.ParseMode(v); err != nil {
			return nil, fmt.Errorf("environment variable %s: %w", offloadEnv, err)
		}
	}
	cfg := &monitor.Config{
		Offload: offload, Forwards: own.API, PublishPath: monitor.PathTAP, Engine: engine, Log: logger(),
		Link: netns.Link{Name: opts.TapName, Untouched: !opts.Configure, TxQueueLen: txQueueLen, MAC: opts.MAC},
	}
	if opts.Configure {
		cfg.Link.MTU = opts.MTU
		cfg.Link.Addresses = []netip.Prefix{netip.PrefixFrom(network.Guest4(), network.Prefix4.Bits())}
		cfg.Link.Gateways = []netip.Addr{network.Gateway4()}
	}
	if own.API {
		cfg.Listen = []monitor.Listen{{Network: "unix", Path: opts.APISocket}}
	}
	switch opts.Kind {
	case slirp4netns.KindPID:
		cfg.Target, err = netns.FromPID(opts.PID)
	case slirp4netns.KindPath:
		cfg.Target, err = netns.FromPath(opts.NetnsPath, opts.UsernsPath)
	case slirp4netns.KindTapFD:
		if _, err := unix.FcntlInt(uintptr(opts.TapFD), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("TAPFD %d: %w", opts.TapFD, err)
		}
		unix.CloseOnExec(opts.TapFD)
		cfg.Device = os.NewFile(uintptr(opts.TapFD), "tapfd")
	}
	return cfg, err
}

// inTheirWords is what slirp4netns says of a failure: those who start it show these lines
// to people, who search for them.
func inTheirWords(opts slirp4netns.Options, err error) []string {
	child := func(text string) []string { return []string{slirp4netns.Perror(text, err), "child failed(1)"} }
	var theirs slirp4netns.Refusal
	if errors.As(err, &theirs) {
		return []string{theirs.Error()}
	}
	var sandbox *sandboxError
	if errors.As(err, &sandbox) {
		return []string{"create_sandbox failed", sandbox.Error()}
	}
	var at *netns.Error
	var listen *monitor.ListenError
	if errors.As(err, &at) {
		switch at.Step {
		case netns.StepOpen:
			if opts.Kind == slirp4netns.KindPID { // whose directory is opened first
				return child(fmt.Sprintf("/proc/%d/ns/net", opts.PID))
			}
			return child(at.Path)
		case netns.StepNamespace: // which setns(2) would find out
			return []string{"setns(CLONE_NEWNET): Invalid argument", "child failed(1)"}
		case netns.StepSetnsUser:
			return child("setns(CLONE_NEWUSER)")
		case netns.StepSetnsNet:
			return child("setns(CLONE_NEWNET)")
		case netns.StepOpenTUN:
			return append(child(fmt.Sprintf("open(%q)", at.Path)), err.Error())
		}
	}
	if errors.As(err, &listen) && listen.Network == "unix" {
		return []string{"cannot open the API socket " + listen.Addr, err.Error()}
	}
	if strings.Contains(err.Error(), "find link") { // a pattern, of which the kernel made another name
		return []string{"cannot set device up: No such device", "child failed(1)"}
	}
	for _, step := range []struct{ ours, theirs string }{
		{"TUNSETIFF", "ioctl(TUNSETIFF)"},
		{"set MTU", "cannot set MTU"},
		{"set MAC address", "cannot set MAC address"},
		{"add address", "cannot set device address"},
		{"add default route", "set route"},
		{"set link " + opts.TapName + " up", "cannot set device up"},
	} {
		if strings.Contains(err.Error(), step.ours) {
			return child(step.theirs)
		}
	}
	return []string{"slirp4netns: " + err.Error()}
}
