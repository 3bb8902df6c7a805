package netstack

import (
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"slipway/netstack/tap"
)

// handler is what the receive loop asks before gVisor: UDP and echo requests need
// no TCP/IP stack, and some SYNs have to wait.
type handler struct{ s *Stack }

// Input implements link.Handler.
func (h handler) Input(v tap.Header, frame []byte) bool {
	return h.s.serve.input(v, frame) || h.s.nat.Input(v, frame) || h.s.echo.Input(v, frame) || h.s.held.input(frame)
}

// Flush implements link.Handler.
func (h handler) Flush() { h.s.nat.Flush() }

// serveDNS is the resolver's address: queries are relayed to the host's
// resolvers.
func (s *Stack) serveDNS(src, dst netip.AddrPort, payload []byte, reply func([]byte)) bool {
	if s.dns == nil || dst.Port() != dnsPort || !s.cfg.Network.isDNS(dst.Addr()) {
		return false
	}
	s.dns.Query(src, payload, reply)
	return true
}

// handleFragmentedUDP takes a datagram that arrived in fragments: gVisor has
// reassembled it, and it goes the way of all others from here. So does one with IPv4
// options, whose checksum the guest may have left to the device that it thinks it has: it
// is not looked at again.
func (s *Stack) handleFragmentedUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	s.stats.reassembled.Add(1)
	return s.nat.Input(tap.Header{Flags: tap.FlagDataValid}, s.reassembled(id, pkt))
}

// handleEcho takes the echo requests that the receive loop left: those for our own
// addresses, which gVisor answers, and those that arrived in fragments.
func (s *Stack) handleEcho(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	a := addrPort(id.LocalAddress, 0).Addr()
	if slices.Contains(s.own, a) {
		return false
	}
	s.stats.reassembled.Add(1)
	s.echo.Input(tap.Header{}, s.reassembled(id, pkt))
	return true // gVisor would answer for the whole world
}

// reassembled is the frame that pkt, a packet of the guest, would have been without
// fragments.
func (s *Stack) reassembled(id stack.TransportEndpointID, pkt *stack.PacketBuffer) []byte {
	transport := pkt.TransportHeader().Slice()
	payload := pkt.Data().AsRange().ToSlice()
	length := uint16(len(transport) + len(payload))
	var ip []byte
	if id.RemoteAddress.Len() == header.IPv4AddressSize {
		ip = make([]byte, header.IPv4MinimumSize)
		h := header.IPv4(ip)
		h.Encode(&header.IPv4Fields{
			TotalLength: header.IPv4MinimumSize + length, TTL: 64, Protocol: uint8(pkt.TransportProtocolNumber),
			SrcAddr: id.RemoteAddress, DstAddr: id.LocalAddress,
		})
		h.SetChecksum(^h.CalculateChecksum())
	} else {
		ip = make([]byte, header.IPv6MinimumSize)
		header.IPv6(ip).Encode(&header.IPv6Fields{
			PayloadLength: length, TransportProtocol: pkt.TransportProtocolNumber, HopLimit: 64,
			SrcAddr: id.RemoteAddress, DstAddr: id.LocalAddress,
		})
	}
	frame := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(ip)+int(length))
	header.Ethernet(frame).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(s.cfg.GuestMAC), DstAddr: s.link.LinkAddress(), Type: pkt.NetworkProtocolNumber,
	})
	return append(append(append(frame, ip...), transport...), payload...)
}
