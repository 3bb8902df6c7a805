package link

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// OwnMAC is the Ethernet address by which the guest knows own, an address of the stack:
// 52:55 and all of an IPv4 address, 52:56:00:00:00 and the last byte of an IPv6 address,
// as slirp4netns has it. All frames to the guest come from the gateway's all the same,
// and where a frame of the guest goes is told by its IP destination alone.
func OwnMAC(own netip.Addr) [6]byte {
	if own.Is4() {
		a := own.As4()
		return [6]byte{0x52, 0x55, a[0], a[1], a[2], a[3]}
	}
	a := own.As16()
	return [6]byte{0x52, 0x56, 0, 0, 0, a[15]}
}

// claim puts the Ethernet address of its own into an answer of gVisor's, which knows one
// for the whole link: into an ARP reply (RFC 826) and a neighbour advertisement
// (RFC 4861 section 4.4), whose checksum is made anew.
func claim(pkt *stack.PacketBuffer) {
	switch pkt.NetworkProtocolNumber {
	case header.ARPProtocolNumber:
		arp := header.ARP(pkt.NetworkHeader().Slice())
		if arp.IsValid() && arp.Op() == header.ARPReply {
			mac := OwnMAC(netip.AddrFrom4([4]byte(arp.ProtocolAddressSender())))
			copy(arp.HardwareAddressSender(), mac[:])
		}
	case header.IPv6ProtocolNumber:
		if pkt.TransportProtocolNumber == header.ICMPv6ProtocolNumber {
			claimNeighbour(pkt)
		}
	}
}

// optionsOff is where a neighbour advertisement's options begin in its ICMPv6 message.
const optionsOff = header.ICMPv6NeighborAdvertMinimumSize

// The target link-layer address option of RFC 4861 section 4.6.1, and its length in bytes
// for Ethernet (RFC 2464 section 6).
const (
	targetLinkLayerAddress = 2
	targetOption           = 8
)

func claimNeighbour(pkt *stack.PacketBuffer) {
	ip, msg := header.IPv6(pkt.NetworkHeader().Slice()), header.ICMPv6(pkt.TransportHeader().Slice())
	if len(ip) < header.IPv6MinimumSize || len(msg) != optionsOff+targetOption || msg.Type() != header.ICMPv6NeighborAdvert || pkt.Data().Size() != 0 {
		return
	}
	if option := msg[optionsOff:]; option[0] != targetLinkLayerAddress || option[1] != targetOption/8 {
		return
	}
	target := header.NDPNeighborAdvert(msg.MessageBody()).TargetAddress()
	mac := OwnMAC(netip.AddrFrom16(target.As16()))
	copy(msg[optionsOff+2:], mac[:])
	msg.SetChecksum(0)
	msg.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header: msg, Src: tcpip.AddrFrom16(ip.SourceAddress().As16()), Dst: tcpip.AddrFrom16(ip.DestinationAddress().As16()),
	}))
}
