package netstack

import (
	"fmt"
	"net"
	"net/netip"

	"slipway/netstack/link"
)

// Hosts of a network by their number in it, as every user of slirp4netns expects
// them (slirp4netns(1), DESCRIPTION).
const (
	gatewayHost = 2
	dnsHost     = 3
	leaseHost   = 15
	guestHost   = 100
)

// Network is the address plan of one network.
type Network struct {
	// Prefix4 holds guest .100, gateway .2, resolver .3, and what is leased from .15 on.
	Prefix4 netip.Prefix `json:"prefix4"`
	// Prefix6 holds guest ::64 (100), gateway ::2 and resolver ::3. The zero Prefix is a
	// network without IPv6, whose IPv6 addresses are all invalid.
	Prefix6 netip.Prefix `json:"prefix6"`
}

// router6 is the address that the gateway has as a router: routes lead to link-local
// addresses (RFC 4861 section 4.2).
var router6 = netip.MustParseAddr("fe80::2")

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

// host is a host of p by its number; invalid where p is.
func host(p netip.Prefix, number uint32) netip.Addr {
	if !p.IsValid() {
		return netip.Addr{}
	}
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

// Lease4 is the first of the addresses that DHCP leases.
func (n Network) Lease4() netip.Addr { return host(n.Prefix4, leaseHost) }

// Guest6 is the IPv6 address of the guest.
func (n Network) Guest6() netip.Addr { return host(n.Prefix6, guestHost) }

// Gateway6 is the IPv6 address of the gateway.
func (n Network) Gateway6() netip.Addr { return host(n.Prefix6, gatewayHost) }

// DNS6 is the IPv6 address of the resolver.
func (n Network) DNS6() netip.Addr { return host(n.Prefix6, dnsHost) }

// Router6 is the link-local address of the gateway; invalid in a network without IPv6.
func (n Network) Router6() netip.Addr {
	if !n.Prefix6.IsValid() {
		return netip.Addr{}
	}
	return router6
}

// guests are the addresses of the guest, each as a network of its own.
func (n Network) guests() []netip.Prefix {
	out := []netip.Prefix{netip.PrefixFrom(n.Guest4(), 32)}
	if a := n.Guest6(); a.IsValid() {
		out = append(out, netip.PrefixFrom(a, 128))
	}
	return out
}

// own are the addresses of gateway and resolver, the gateway's first of each family.
func (n Network) own() []netip.Addr {
	out := []netip.Addr{n.Gateway4(), n.DNS4()}
	if n.Prefix6.IsValid() {
		out = append(out, n.Gateway6(), n.DNS6())
	}
	return out
}

// bits is the length of the prefix that a, an address of the stack, is in.
func (n Network) bits(a netip.Addr) int {
	for _, p := range n.Prefixes() {
		if p.Contains(a) {
			return p.Bits()
		}
	}
	return 64 // link-local (RFC 4291 section 2.5.6)
}

// MAC is the gateway's Ethernet address.
func (n Network) MAC() net.HardwareAddr {
	mac := link.OwnMAC(n.Gateway4())
	return mac[:]
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
