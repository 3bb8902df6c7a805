package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"slipway/netstack"
	"slipway/netstack/monitor"
	"slipway/netstack/netns"
	"slipway/netstack/tap"
	"slipway/portfwd"
)

const (
	tapName = "tap0"
	// txQueueLen lets a full TCP window of MTU-sized frames wait in the device:
	// with the kernel's default of 1000 a guest without offloads loses frames.
	txQueueLen = 8192
)

// engineConfig goes from the command line to the engine, through the monitor.
type engineConfig struct {
	Network       netstack.Network    `json:"network"`
	MTU           int                 `json:"mtu"`
	HostAccess    netstack.HostAccess `json:"host_access"`
	AllowMetadata bool                `json:"allow_metadata"`
	Limits        netstack.Limits     `json:"limits"`
	// Published is how many TCP connections the published ports serve at once.
	Published int `json:"published"`
	// Publish are the published ports; the monitor's listeners come in the same
	// order, the one of the metrics last.
	Publish []portfwd.Spec `json:"publish"`
	Metrics bool           `json:"metrics"`
	// Sandbox is "on" or "off".
	Sandbox string `json:"sandbox"`
	// Slirp4netns makes it the drop-in's engine. Then HostAccess, AllowMetadata, Publish
	// and Metrics are not looked at.
	Slirp4netns *slirpConfig `json:"slirp4netns,omitempty"`
}

// networkFlags are the options of a network, the same for run and attach.
type networkFlags struct {
	mtu           int
	cidr          string
	hostAccess    []string
	allowMetadata bool
	offload       string
	publish       []string
	publishPath   string
	metrics       string
	sandbox       string
	limits        netstack.Limits
	maxBuffer     string
	published     int
}

func (f *networkFlags) register(fs *pflag.FlagSet) {
	def := netstack.DefaultLimits()
	fs.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port: [ip:][hostPort]:containerPort[/tcp|udp]")
	fs.StringVar(&f.publishPath, "publish-path", "auto", "way into the container for published TCP ports: auto, kernel or tap")
	fs.StringArrayVar(&f.hostAccess, "host-access", nil, "what of the host is reachable: none, addresses[=PORTS] or loopback[=PORTS] (default none)")
	fs.BoolVar(&f.allowMetadata, "allow-metadata", false, "open link-local and cloud metadata addresses")
	fs.IntVar(&f.mtu, "mtu", 1500, "MTU of the link in bytes, 1280 to 65520")
	fs.StringVar(&f.cidr, "cidr", "10.0.2.0/24", "IPv4 network")
	fs.StringVar(&f.offload, "offload", "auto", "offloads of the TAP device: auto or off")
	fs.StringVar(&f.metrics, "metrics", "", "serve Prometheus metrics at unix:PATH or ADDR")
	fs.StringVar(&f.sandbox, "sandbox", "on", "lock down the process that reads the container's packets: on or off")
	fs.IntVar(&f.limits.Flows, "max-flows", def.Flows, "most TCP connections at a time")
	fs.IntVar(&f.limits.PendingDials, "max-pending-dials", def.PendingDials, "most TCP connections being made at a time")
	fs.IntVar(&f.limits.UDPSessions, "max-udp-sessions", def.UDPSessions, "most UDP sessions at a time")
	fs.StringVar(&f.maxBuffer, "max-buffer", strconv.FormatInt(def.Buffer>>20, 10)+"m", "most bytes that all TCP connections together may have queued, like 64m or 1g")
	fs.IntVar(&f.published, "max-published", portfwd.DefaultConnections, "most TCP connections of published ports at a time; one client address leaves a tenth of them to others")
}

// config checks the options and turns them into what the monitor needs, without
// the namespace.
func (f *networkFlags) config() (*monitor.Config, error) {
	if f.mtu < 1280 || f.mtu > 65520 {
		return nil, fmt.Errorf("MTU %d is out of range: IPv6 needs 1280, a TAP takes 65520", f.mtu)
	}
	for name, v := range map[string]int{"max-flows": f.limits.Flows, "max-pending-dials": f.limits.PendingDials, "max-udp-sessions": f.limits.UDPSessions, "max-published": f.published} {
		if v < 1 || v > 1<<20 {
			return nil, fmt.Errorf("--%s %d is out of range: 1 to %d", name, v, 1<<20)
		}
	}
	limits := f.limits
	var err error
	if limits.Buffer, err = units.RAMInBytes(f.maxBuffer); err != nil {
		return nil, fmt.Errorf("--max-buffer %q is no size: use a number of bytes, or one with k, m or g", f.maxBuffer)
	}
	if least := limits.MinBuffer(); limits.Buffer < least || limits.Buffer > 1<<40 {
		return nil, fmt.Errorf("--max-buffer %s is out of range: %s to 1t with --max-flows %d", f.maxBuffer, units.CustomSize("%.4g%s", float64(least), 1024, []string{"", "k", "m", "g"}), limits.Flows)
	}
	if f.sandbox != "on" && f.sandbox != "off" {
		return nil, fmt.Errorf("sandbox %q is unknown: use on or off", f.sandbox)
	}
	switch f.publishPath {
	case "auto", "kernel", "tap":
	default:
		return nil, fmt.Errorf("publish path %q is unknown: use auto, kernel or tap", f.publishPath)
	}
	network, err := netstack.DefaultNetwork().WithPrefix4(f.cidr)
	if err != nil {
		return nil, err
	}
	access, err := netstack.ParseHostAccess(f.hostAccess)
	if err != nil {
		return nil, err
	}
	offload, err := tap.ParseMode(f.offload)
	if err != nil {
		return nil, err
	}
	specs, err := portfwd.Parse(f.publish)
	if err != nil {
		return nil, err
	}
	engine, err := json.Marshal(engineConfig{
		Network: network, MTU: f.mtu, HostAccess: access, AllowMetadata: f.allowMetadata,
		Limits: limits, Published: f.published, Publish: specs, Metrics: f.metrics != "", Sandbox: f.sandbox,
	})
	if err != nil {
		return nil, fmt.Errorf("engine configuration: %w", err)
	}
	cfg := &monitor.Config{
		Offload: offload,
		Link: netns.Link{
			Name: tapName, MTU: f.mtu, TxQueueLen: txQueueLen,
			Addresses: []netip.Prefix{
				netip.PrefixFrom(network.Guest4(), network.Prefix4.Bits()),
				netip.PrefixFrom(network.Guest6(), network.Prefix6.Bits()),
			},
			Gateways: []netip.Addr{network.Gateway4(), network.Gateway6()},
		},
		PublishPath: f.publishPath,
		Guests:      []netip.Addr{network.Guest4(), network.Guest6()},
		Status:      f.metrics != "",
		Engine:      engine,
	}
	for _, s := range specs {
		cfg.Listen = append(cfg.Listen, monitor.Listen{Network: string(s.Proto), Addrs: s.Addrs()})
		if s.Proto == portfwd.TCP {
			cfg.KernelPorts = append(cfg.KernelPorts, netns.PortRange{First: s.ContainerPort, Last: s.ContainerPort})
		}
	}
	if f.metrics != "" {
		l, err := metricsListen(f.metrics)
		if err != nil {
			return nil, err
		}
		cfg.Listen = append(cfg.Listen, l)
	}
	return cfg, nil
}

// metricsListen reads the value of --metrics.
func metricsListen(v string) (monitor.Listen, error) {
	if path, ok := strings.CutPrefix(v, "unix:"); ok {
		// sun_path of struct sockaddr_un holds 108 bytes with the final zero (unix(7)).
		if path == "" || len(path) > 107 {
			return monitor.Listen{}, fmt.Errorf("metrics %q: the path of a unix socket has 1 to 107 bytes", v)
		}
		return monitor.Listen{Network: "unix", Path: path}, nil
	}
	if port, ok := strings.CutPrefix(v, ":"); ok {
		v = "127.0.0.1:" + port
	}
	a, err := netip.ParseAddrPort(v)
	if err != nil {
		return monitor.Listen{}, errors.New("metrics " + v + ": want unix:PATH or an address with a port, like 127.0.0.1:9100")
	}
	return monitor.Listen{Network: "tcp", Addrs: []netip.AddrPort{a}}, nil
}
