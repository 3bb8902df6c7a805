package portfwd

import (
	"net/netip"

	"slipway/netstack/relay"
)

var (
	broadcast    = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	thisNetwork  = netip.MustParsePrefix("0.0.0.0/8")   // RFC 1122 §3.2.1.3
	reserved     = netip.MustParsePrefix("240.0.0.0/4") // RFC 1112 §4, broadcast included
	v4Compatible = netip.MustParsePrefix("::/96")       // RFC 4291 §2.5.5.1
)

// routes returns the ways for a client to the container's port, best first: the
// container's address of the client's family, and for IPv6 clients also its IPv4
// address, because most servers listen on 0.0.0.0 only while `curl localhost`
// tries ::1 first. A Spec with an address of the container leads there only.
func (c *Config) routes(client netip.AddrPort, s Spec) relay.Ways {
	way := func(guest, gateway netip.Addr) relay.Way {
		return relay.Way{From: c.source(client, gateway), To: netip.AddrPortFrom(guest, s.ContainerPort)}
	}
	only := func(w relay.Way) relay.Ways { return relay.Ways{N: 1, Way: [2]relay.Way{w}} }
	is4 := client.Addr().Unmap().Is4()
	switch {
	case s.ContainerIP.Is4():
		return only(way(s.ContainerIP, c.Gateway4))
	case s.ContainerIP.IsValid():
		return only(way(s.ContainerIP, c.Gateway6))
	case !c.Guest6.IsValid(), is4 && c.Guest4.IsValid():
		return only(way(c.Guest4, c.Gateway4))
	case is4, !c.Guest4.IsValid():
		return only(way(c.Guest6, c.Gateway6))
	}
	return relay.Ways{N: 2, Way: [2]relay.Way{way(c.Guest6, c.Gateway6), way(c.Guest4, c.Gateway4)}}
}

// source is the address as which the container sees a client: its own, unless
// the container would take that for local, or cannot answer it. Then it is the
// gateway, with the client's port. The family is always that of gateway.
//
// A client that appears as 127.0.0.1 or as a neighbour would pass for trusted
// (CVE-2021-20199).
func (c *Config) source(client netip.AddrPort, gateway netip.Addr) netip.AddrPort {
	addr := client.Addr().Unmap().WithZone("")
	hidden := addr.BitLen() != gateway.BitLen() ||
		!addr.IsGlobalUnicast() || // unspecified, loopback, link-local, multicast, broadcast
		thisNetwork.Contains(addr) || reserved.Contains(addr) || v4Compatible.Contains(addr) ||
		addr == c.Guest4 || addr == c.Guest6
	for _, p := range c.Prefixes {
		hidden = hidden || p.Contains(addr)
	}
	if hidden {
		addr = gateway
	}
	return netip.AddrPortFrom(addr, client.Port())
}
