package runtime

import (
	"fmt"
	"net/netip"
	"strings"

	"slipway/netstack/monitor"
	"slipway/netstack/netns"
	"slipway/netstack/tap"
)

var _ connection = (*monitor.Process)(nil)

// guest is the container's own address, the zero Addr without a network of
// its own.
func (c Config) guest() netip.Addr {
	if c.Net == nil || len(c.Net.Guests) == 0 {
		return netip.Addr{}
	}
	return c.Net.Guests[0]
}

// reserved lists the published TCP ports, which the container's kernel must
// not give to an outgoing connection (net.ipv4.ip_local_reserved_ports in
// Documentation/networking/ip-sysctl.rst). Port 0 never is one.
func (c Config) reserved() string {
	if c.Net == nil {
		return ""
	}
	var ranges []string
	for _, p := range c.Net.KernelPorts {
		ranges = append(ranges, fmt.Sprintf("%d-%d", p.First, p.Last))
	}
	return strings.Join(ranges, ",")
}

// plainTAP names the plain device that the stage is to open inside: without
// offloads it comes from a library that opens it in its own process's network
// namespace.
func (c Config) plainTAP() string {
	if c.Net == nil || c.Net.Offload != tap.Off {
		return ""
	}
	return c.Net.Link.Name
}

// connect gives a waiting stage its network, or a guard where the network is
// not ours to make.
func connect(cfg Config, hostname string, ns namespaces) (connection, error) {
	if cfg.Network != Private {
		return &guardProcess{done: make(chan struct{})}, nil
	}
	net := *cfg.Net
	net.Target = netns.Target{User: ns.user, Net: ns.net}
	net.Device, net.Container = ns.tap, hostname
	p, ready, err := monitor.Start(net)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if cfg.Announce != nil {
		cfg.Announce(ready)
	}
	return p, nil
}
