package netstack

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// HostAddresses asks the kernel which addresses are local, each time anew: it
// binds a UDP socket, which succeeds for local addresses only (ip(7), ipv6(7)).
// That holds while addresses come and go, and for ranges that are routed to
// loopback. Where net.ipv4.ip_nonlocal_bind is set, every address counts as
// local: closed rather than open.
type HostAddresses struct{}

// IsLocal implements Local.
func (HostAddresses) IsLocal(a netip.Addr) bool {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		// Whatever the kernel did not answer for certain counts as local.
		return !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EAFNOSUPPORT)
	}
	_ = conn.Close()
	return true
}

// Documentation addresses (RFC 5737, RFC 3849): nothing is sent to them, a
// connected UDP socket only makes the kernel choose a source address.
var (
	world4 = netip.MustParseAddrPort("192.0.2.1:9")
	world6 = netip.MustParseAddrPort("[2001:db8::1]:9")
)

// Primary implements Local.
func (HostAddresses) Primary(like netip.Addr) netip.Addr {
	network, world := "udp4", world4
	if like.Is6() {
		network, world = "udp6", world6
	}
	conn, err := net.DialUDP(network, nil, net.UDPAddrFromAddrPort(world))
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}
	}
	return local.AddrPort().Addr().Unmap()
}
