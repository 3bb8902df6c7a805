package netstack

import (
	"fmt"
	"net"
	"net/netip"
)

// Hosts of a network by their number in it, as every user of slirp4netns expects
// them (slirp4netns(1), DESCRIPTION).
const (
	gatewayHost = 2
	dnsHost     = 3
	guestHost   = 100
)

// Network is the address plan of one network.
type Network struct {
	// Prefix4 holds guest .100, gateway .2 and resolver .3.
	Prefix4 netip.Prefix `json:"prefix4"`
	// Prefix6 holds guest ::64 (100), gateway ::2 and resolver ::3.
	Prefix6 netip.Prefix `json:"prefix6"`
}

// DefaultNetwork is 10.0.2.0/24 and fd00::/64.
func DefaultNetwork() Network {
	return Network{Prefix4: netip.MustParsePrefix("10.0.2.0/24"), Prefix6: netip.MustParsePrefix("fd00::/64")}
}

// WithPrefix4 returns n with the IPv4 network cidr, which must have room for host
// number 100: a prefix length of at most 25.
func (n Network) WithPrefix4(cidr string) (Network, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil || !p.Addr().Is4() {
		return n, fmt.Errorf("network %q is no IPv4 network: write it like 10.0.2.0/24", cidr)
	}
	if p.Masked() != p {
		return n, fmt.Errorf("network %q is the address of a host: did you mean %s?", cidr, p.Masked())
	}
	if p.Bits() < 1 || p.Bits() > 25 {
		return n, fmt.Errorf("network %q has a prefix of %d bits, want 1 to 25", cidr, p.Bits())
	}
	if p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsUnspecified() {
		return n, fmt.Errorf("network %q is reserved: use a private one like 10.0.2.0/24", cidr)
	}
	n.Prefix4 = p
	return n, nil
}

func host(p netip.Prefix, number uint32) netip.Addr {
	b := p.Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && number > 0; i-- {
		number += uint32(b[i])
		b[i] = byte(number)
		number >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Guest4 is the IPv4 address of the guest.
func (n Network) Guest4() netip.Addr { return host(n.Prefix4, guestHost) }

// Gateway4 is the IPv4 address of the gateway, which stands for the host.
func (n Network) Gateway4() netip.Addr { return host(n.Prefix4, gatewayHost) }

// DNS4 is the IPv4 address of the resolver.
func (n Network) DNS4() netip.Addr { return host(n.Prefix4, dnsHost) }

// Guest6 is the IPv6 address of the guest.
func (n Network) Guest6() netip.Addr { return host(n.Prefix6, guestHost) }

// Gateway6 is the IPv6 address of the gateway.
func (n Network) Gateway6() netip.Addr { return host(n.Prefix6, gatewayHost) }

// DNS6 is the IPv6 address of the resolver.
func (n Network) DNS6() netip.Addr { return host(n.Prefix6, dnsHost) }

// MAC is the gateway's Ethernet address: 52:55 and its IPv4 address.
func (n Network) MAC() net.HardwareAddr {
	a := n.Gateway4().As4()
	return net.HardwareAddr{0x52, 0x55, a[0], a[1], a[2], a[3]}
}

// Prefixes are the networks there are.
func (n Network) Prefixes() []netip.Prefix {
	if !n.Prefix6.IsValid() {
		return []netip.Prefix{n.Prefix4}
	}
	return []netip.Prefix{n.Prefix4, n.Prefix6}
}

// contains reports whether a is inside the network.
func (n Network) contains(a netip.Addr) bool { return n.Prefix4.Contains(a) || n.Prefix6.Contains(a) }

// isGateway reports whether a is the gateway, isDNS whether it is the resolver.
func (n Network) isGateway(a netip.Addr) bool { return a == n.Gateway4() || a == n.Gateway6() }
func (n Network) isDNS(a netip.Addr) bool     { return a == n.DNS4() || a == n.DNS6() }
