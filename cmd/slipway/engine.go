package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"

	"golang.org/x/sys/unix"

	"slipway/metrics"
	"slipway/netstack"
	"slipway/netstack/confine"
	"slipway/netstack/monitor"
	"slipway/netstack/tap"
	"slipway/portfwd"
)

// engine is the process that reads the container's packets. It is locked down
// before the first of them.
func engine() error {
	client, start, err := monitor.Connect()
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	var cfg engineConfig
	if err := json.Unmarshal(start.Config, &cfg); err != nil {
		return fmt.Errorf("engine: configuration: %w", err)
	}
	if cfg.Sandbox != "off" {
		if err := confine.Lock(); err != nil {
			return fmt.Errorf("engine: lock down (--sandbox=off runs without): %w", err)
		}
	}
	limits, published, err := withinFiles(cfg, start)
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	debug.SetMemoryLimit(limits.Memory())
	device, err := tap.Adopt(start.Device, start.Name, start.Offload)
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	stackConfig := netstack.Config{
		Network: cfg.Network, MTU: cfg.MTU, Device: device, GuestMAC: start.MAC, Limits: limits,
		Resolvers: client.Resolvers, Log: logger(), ReturnMemory: returnMemory,
		Policy: netstack.Policy{
			HostAccess: cfg.HostAccess, AllowMetadata: cfg.AllowMetadata,
			Listeners: ownListeners(start.Listeners), Local: netstack.HostAddresses{},
		},
	}
	if cfg.Slirp4netns != nil {
		cfg.Slirp4netns.adapt(&stackConfig)
	}
	stack, err := netstack.New(stackConfig)
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	defer stack.Close()
	go shareCPUs(stack, client.Done())
	ports := portfwd.New(portfwd.Config{
		Stack: stack, Namespace: client, Kernel: start.Kernel,
		Guest4: cfg.Network.Guest4(), Guest6: cfg.Network.Guest6(),
		Gateway4: cfg.Network.Gateway4(), Gateway6: cfg.Network.Gateway6(),
		Prefixes: cfg.Network.Prefixes(),
		Limits:   portfwd.Limits{Connections: published}, Raise: raisePublished(cfg, published),
		Log: logger(),
	})
	defer ports.Close()
	if cfg.Slirp4netns != nil {
		err = cfg.Slirp4netns.serve(client, start, cfg.Network, ports)
	} else {
		err = serve(cfg, client, start, stack, ports)
	}
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	if err := client.Ready(); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	if err := confine.ReleaseImage(); err != nil {
		logger().Debug("the engine keeps more memory than it needs", "error", err)
	}
	<-client.Done()
	return nil
}

// serve hands the listeners to those who accept on them.
func serve(cfg engineConfig, client *monitor.Client, start *monitor.StartMessage, stack *netstack.Stack, ports *portfwd.Manager) error {
	want := len(cfg.Publish)
	if cfg.Metrics {
		want++
	}
	if len(start.Listeners) != want {
		return fmt.Errorf("got %d groups of listeners, want %d", len(start.Listeners), want)
	}
	if _, err := ports.AddAll(cfg.Publish, start.Listeners[:len(cfg.Publish)]); err != nil {
		return err
	}
	if !cfg.Metrics {
		return nil
	}
	exporter := metrics.New(source{stack: stack, ports: ports, monitor: client, start: start}, version)
	for _, f := range start.Listeners[want-1] {
		l, err := net.FileListener(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
		go func() {
			if err := exporter.Serve(l); err != nil {
				logger().Error("metrics ended", "error", err)
			}
		}()
	}
	return nil
}

// returnMemory gives the kernel what is not in use. A sync.Pool keeps what it has for one
// collection of garbage.
func returnMemory() {
	runtime.GC()
	debug.FreeOSMemory()
}

// withinFiles fits the limits, and how many connections published ports serve, into what
// the process may open; the Go runtime has raised the soft limit to the hard one.
func withinFiles(cfg engineConfig, start *monitor.StartMessage) (l netstack.Limits, published int, err error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return l, 0, fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	published = cfg.Published
	kernel := start.Kernel && slices.ContainsFunc(cfg.Publish, func(s portfwd.Spec) bool { return s.Proto == portfwd.TCP })
	want := 0
	if kernel {
		want = portfwd.Limits{Connections: published}.Files()
	}
	l, have := cfg.Limits.Within(files.Cur, want)
	if have != want {
		published = max(1, published*have/want)
	}
	// Nobody has asked for the default of published ports, and it leaves thousands of each.
	alone, _ := cfg.Limits.Within(files.Cur, 0)
	if asked := cfg.Published != portfwd.DefaultConnections && published < cfg.Published; asked || alone != cfg.Limits {
		args := []any{"files", files.Cur, "flows", l.Flows}
		if kernel {
			args = append(args, "published", published)
		}
		logger().Warn("fewer flows than asked for: the limit of open files is low", append(args, "fix", "ulimit -n 65536")...)
	}
	if !kernel { // each is a flow
		published = min(published, l.Flows)
	}
	return l, published, nil
}

// raisePublished is how a person has published ports serve more than so many connections.
func raisePublished(cfg engineConfig, published int) string {
	switch {
	case cfg.Slirp4netns != nil:
		return ""
	case published == cfg.Published:
		return fmt.Sprintf("--max-published above %d, or end connections that are idle", published)
	}
	return "--max-published, --max-flows where --publish-path is tap, and ulimit -n 65536"
}

// ownListeners are the addresses at which this network itself listens.
func ownListeners(groups [][]*os.File) []netip.AddrPort {
	var out []netip.AddrPort
	for _, g := range groups {
		for _, f := range g {
			if a, ok := localAddr(f); ok {
				out = append(out, a)
			}
		}
	}
	return out
}
