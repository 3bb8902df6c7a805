package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Why Policy.Route closes a destination. Every error of Route wraps one of them.
var (
	ErrInvalidDestination = errors.New("not a unicast destination")
	ErrOwnNetwork         = errors.New("no such host in the guest's own network")
	ErrHostClosed         = errors.New("the host is closed to the guest (see --host-access)")
	ErrMetadataClosed     = errors.New("link-local and metadata addresses are closed to the guest (see --allow-metadata)")
	ErrOwnListener        = errors.New("a listener of this network itself")
)

// PortRange is a range of ports, both ends included.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// Grant opens ports of the host to the guest. The zero value opens none.
type Grant struct {
	// Open says that the grant was given at all.
	Open bool `json:"open,omitempty"`
	// Ports limits it; empty means every port.
	Ports []PortRange `json:"ports,omitempty"`
}

func (g Grant) allows(port uint16) bool {
	if !g.Open || len(g.Ports) == 0 {
		return g.Open
	}
	for _, r := range g.Ports {
		if r.First <= port && port <= r.Last {
			return true
		}
	}
	return false
}

// HostAccess says what of the host the guest may reach. The host is every address
// that is local to it when the guest asks, because traffic to them passes most
// firewalls.
type HostAccess struct {
	// Addresses opens the host's addresses other than loopback. The gateway then
	// stands for the address the host uses towards the world.
	Addresses Grant `json:"addresses"`
	// Loopback makes the gateway stand for 127.0.0.1 and ::1. It wins over
	// Addresses where both are given.
	Loopback Grant `json:"loopback"`
}

// ParseHostAccess reads the values of --host-access: none, addresses[=PORTS] or
// loopback[=PORTS], PORTS being a list like 80,8000-8010.
func ParseHostAccess(values []string) (HostAccess, error) {
	var a HostAccess
	for _, v := range values {
		kind, list, limited := strings.Cut(v, "=")
		g := Grant{Open: true}
		if limited {
			ports, err := parsePorts(list)
			if err != nil {
				return a, fmt.Errorf("host access %q: %w", v, err)
			}
			g.Ports = ports
		}
		switch {
		case kind == "none" && !limited:
			if len(values) > 1 {
				return a, fmt.Errorf("host access none contradicts %q", values)
			}
		case kind == "addresses":
			a.Addresses = g
		case kind == "loopback":
			a.Loopback = g
		default:
			return a, fmt.Errorf("host access %q is unknown: use none, addresses[=PORTS] or loopback[=PORTS]", v)
		}
	}
	return a, nil
}

func parsePorts(list string) ([]PortRange, error) {
	var out []PortRange
	for _, item := range strings.Split(list, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err != nil || err2 != nil || a == 0 || b < a {
			return nil, fmt.Errorf("ports %q: write them like 80 or 8000-8010, from 1 to 65535", item)
		}
		out = append(out, PortRange{uint16(a), uint16(b)})
	}
	return out, nil
}

// metadata are addresses at which clouds hand out credentials to whoever asks
// from the machine, beside those that are link-local.
var metadata = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),   // AWS
	netip.MustParseAddr("100.100.100.200"), // Alibaba Cloud
	netip.MustParseAddr("168.63.129.16"),   // Azure
	netip.MustParseAddr("192.0.0.192"),     // Oracle Cloud
}

var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96")   // RFC 6052
	nat64Own  = netip.MustParsePrefix("64:ff9b:1::/48") // RFC 8215
	sixToFour = netip.MustParsePrefix("2002::/16")      // RFC 3056
	compat4   = netip.MustParsePrefix("::/96")          // RFC 4291 section 2.5.5.1
	thisNet   = netip.MustParsePrefix("0.0.0.0/8")      // RFC 1122 section 3.2.1.3
	class240  = netip.MustParsePrefix("240.0.0.0/4")    // RFC 1112 section 4, and broadcast
)

// Gateway is what the gateway's address stands for.
type Gateway int

// The meanings of the gateway.
const (
	// GatewayIsHost: the host's loopback where HostAccess opens it, otherwise its own
	// address where HostAccess opens that.
	GatewayIsHost Gateway = iota
	// GatewayIsLoopback: the host's loopback or nothing, as in slirp4netns(1).
	GatewayIsLoopback
)

// Policy decides where a flow of the guest goes. It is safe for concurrent use.
type Policy struct {
	// Network is the guest's own.
	Network Network
	// HostAccess opens parts of the host.
	HostAccess HostAccess
	// Gateway says what the gateway's address stands for.
	Gateway Gateway
	// AllowMetadata opens link-local and cloud metadata addresses.
	AllowMetadata bool
	// Listeners are this network's own sockets on the host, closed whatever
	// HostAccess says. An unspecified address means every local one.
	Listeners []netip.AddrPort
	// Local tells what is local to the host.
	Local Local
}

// Local tells which addresses are the host's own, now.
type Local interface {
	// IsLocal reports whether a is an address of the host.
	IsLocal(a netip.Addr) bool
	// Primary is the host's own address towards the world in the family of like;
	// invalid when it has none.
	Primary(like netip.Addr) netip.Addr
}

// Route returns the address on the host's side for a flow of the guest to dst:
// exactly that address must be dialled. An error says why the destination is
// closed.
func (p *Policy) Route(dst netip.AddrPort) (netip.AddrPort, error) {
	a := dst.Addr()
	if a.Is4In6() {
		a = a.Unmap()
	}
	if a.Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%s: %w", dst, ErrInvalidDestination)
	}
	switch {
	case p.Network.isGateway(a):
		return p.gateway(a, dst.Port())
	case p.Network.contains(a):
		return netip.AddrPort{}, fmt.Errorf("%s: %w", dst, ErrOwnNetwork)
	}
	if err := p.check(a, dst.Port()); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s: %w", dst, err)
	}
	return netip.AddrPortFrom(a, dst.Port()), nil
}

// gateway maps the gateway's address to what it stands for.
func (p *Policy) gateway(a netip.Addr, port uint16) (netip.AddrPort, error) {
	var to netip.Addr
	switch {
	case p.HostAccess.Loopback.allows(port):
		to = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if a.Is6() {
			to = netip.IPv6Loopback()
		}
	case p.Gateway == GatewayIsHost && p.HostAccess.Addresses.allows(port):
		to = p.Local.Primary(a)
	}
	if !to.IsValid() {
		return netip.AddrPort{}, fmt.Errorf("%s: %w", netip.AddrPortFrom(a, port), ErrHostClosed)
	}
	if p.isListener(to, port) {
		return netip.AddrPort{}, fmt.Errorf("%s: %w", netip.AddrPortFrom(a, port), ErrOwnListener)
	}
	return netip.AddrPortFrom(to, port), nil
}

// check is the policy for an address outside of the guest's network. Addresses
// that carry an IPv4 address are held to what that address is allowed, too:
// a translator on the way would send the flow there.
func (p *Policy) check(a netip.Addr, port uint16) error {
	switch {
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback():
		return ErrInvalidDestination
	case a.Is4() && (thisNet.Contains(a) || class240.Contains(a)):
		return ErrInvalidDestination
	case a.Is6() && compat4.Contains(a):
		return ErrInvalidDestination
	}
	if a.IsLinkLocalUnicast() || contains(metadata, a) {
		// A scoped address cannot be dialled without its zone, and the guest's
		// zone means nothing here.
		if a.Is6() && a.IsLinkLocalUnicast() {
			return ErrInvalidDestination
		}
		if !p.AllowMetadata {
			return ErrMetadataClosed
		}
	}
	if v4, ok := embedded(a); ok {
		if p.Network.contains(v4) {
			return ErrOwnNetwork
		}
		if err := p.check(v4, port); err != nil {
			return err
		}
	}
	if p.Local.IsLocal(a) {
		if p.isListener(a, port) {
			return ErrOwnListener
		}
		if !p.HostAccess.Addresses.allows(port) {
			return ErrHostClosed
		}
	}
	return nil
}

func (p *Policy) isListener(a netip.Addr, port uint16) bool {
	for _, l := range p.Listeners {
		if l.Port() == port && (l.Addr() == a || l.Addr().IsUnspecified()) {
			return true
		}
	}
	return false
}

// embedded returns the IPv4 address inside an address of a translation prefix.
func embedded(a netip.Addr) (netip.Addr, bool) {
	b := a.As16()
	switch {
	case nat64.Contains(a), nat64Own.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}

func contains(list []netip.Addr, a netip.Addr) bool {
	for _, b := range list {
		if a == b {
			return true
		}
	}
	return false
}
