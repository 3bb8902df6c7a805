package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"slipway/netstack"
	"slipway/netstack/monitor"
	"slipway/runtime"
)

// exitRun is Docker's exit status for a container that could not be started.
const exitRun = 125

// runFlags are the options of run beside those of its network.
type runFlags struct {
	cfg     runtime.Config
	net     networkFlags
	network string
	volumes []string
}

func newRunCmd() *cobra.Command {
	f := &runFlags{}
	cmd := &cobra.Command{
		Use:                   "run [OPTIONS] IMAGE [COMMAND [ARG...]]",
		DisableFlagsInUseLine: true,
		Short:                 "Run a command in a container, in the foreground",
		Long: "Run a command in a rootless container and stay until it ends. Nothing of the container is left then.\n\n" +
			"IMAGE is host (this machine's own programs), dir:PATH (a root file system) or oci:PATH[:TAG] (an OCI layout).\n" +
			"The exit status is the command's, 128+n when signal n ended it, 125 when the container could not be started,\n" +
			"126 when the command cannot be executed and 127 when it is not there.",
		Example: "  slipway run --rm host id\n  slipway run --rm -it host bash\n  slipway run -p 8080:80 -v ./site:/mnt/site:ro host nginx -c /mnt/site/nginx.conf",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return runError(errors.New("no image given; try: slipway run --rm host id"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, args)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return runError(fmt.Errorf("%w; see slipway run --help for the options there are", err))
	})
	f.register(cmd.Flags())
	return cmd
}

func (f *runFlags) register(fs *pflag.FlagSet) {
	// What follows the image is the command's own.
	fs.SetInterspersed(false)
	fs.Bool("rm", true, "remove the container when it ends; always so in the foreground")
	fs.StringArrayVarP(&f.cfg.Env, "env", "e", nil, "set an environment variable: NAME=VALUE, or NAME to pass yours on")
	fs.StringVarP(&f.cfg.Workdir, "workdir", "w", "", "working directory in the container")
	fs.StringVarP(&f.cfg.User, "user", "u", "", "user[:group], names or numbers of the container")
	fs.StringVar(&f.cfg.Hostname, "hostname", "", "host name of the container (default random)")
	fs.StringArrayVarP(&f.volumes, "volume", "v", nil, "bind a file or directory: SOURCE:TARGET[:ro]")
	fs.StringVar(&f.network, "network", string(runtime.Private), "network: private, none or host")
	fs.BoolVar(&f.cfg.ReadOnly, "read-only", false, "write-protect the container's root file system")
	fs.StringArrayVar(&f.cfg.CapAdd, "cap-add", nil, "add a capability, or all")
	fs.StringArrayVar(&f.cfg.CapDrop, "cap-drop", nil, "drop a capability, or all")
	fs.BoolVarP(&f.cfg.TTY, "tty", "t", false, "give the command a terminal")
	fs.BoolVarP(&f.cfg.Interactive, "interactive", "i", false, "keep standard input")
	f.net.register(fs)
}

// networkOnly are the options that mean nothing without a private network.
var networkOnly = []string{"publish", "publish-path", "host-access", "allow-metadata", "mtu", "cidr", "offload", "metrics", "sandbox", "max-flows", "max-pending-dials", "max-udp-sessions", "max-buffer", "max-published"}

func (f *runFlags) run(cmd *cobra.Command, args []string) error {
	if rm, err := cmd.Flags().GetBool("rm"); err != nil || !rm {
		return runError(errors.New("--rm=false is not supported: a container in the foreground is removed when it ends"))
	}
	cfg := f.cfg
	cfg.Image, cfg.Args = args[0], args[1:]
	cfg.Stdin, cfg.Stdout, cfg.Stderr = os.Stdin, os.Stdout, os.Stderr
	cfg.Log = logger()
	for _, v := range f.volumes {
		volume, err := runtime.ParseVolume(v)
		if err != nil {
			return runError(err)
		}
		cfg.Volumes = append(cfg.Volumes, volume)
	}
	var err error
	if cfg.Network, err = runtime.ParseNetwork(f.network); err != nil {
		return runError(err)
	}
	if cfg.Network == runtime.Private {
		if err := f.private(&cfg); err != nil {
			return runError(err)
		}
	} else {
		for _, name := range networkOnly {
			if cmd.Flags().Changed(name) {
				return runError(fmt.Errorf("--%s has no meaning with --network %s; leave one of them out", name, f.network))
			}
		}
	}
	// SIGINT and SIGTERM are the workload's: they do not end this context.
	status, err := runtime.Run(context.WithoutCancel(cmd.Context()), cfg)
	if err != nil {
		fmt.Fprintf(os.Stderr, "slipway: %v\n", err)
	}
	if status != 0 {
		return exitError(status)
	}
	return nil
}

// private prepares the container's own network.
func (f *runFlags) private(cfg *runtime.Config) error {
	net, err := f.net.config()
	if err != nil {
		return err
	}
	net.Log = cfg.Log
	cfg.Net = net
	cfg.Announce = func(r monitor.Ready) { announce(*net, r) }
	network, err := netstack.DefaultNetwork().WithPrefix4(f.net.cidr)
	if err != nil {
		return err
	}
	cfg.DNS = []netip.Addr{network.DNS4()}
	cfg.Hosts = []runtime.HostEntry{{Addr: network.Gateway4(), Names: strings.Fields(hostNames)}}
	return nil
}

// hostNames are what the machine is called in a container: by Slipway, Docker and
// podman.
const hostNames = "host.slipway.internal host.docker.internal host.containers.internal"

// runError says what is wrong and makes it exit status 125, as Docker does.
func runError(err error) error {
	fmt.Fprintf(os.Stderr, "slipway: %v\n", err)
	return exitError(exitRun)
}
