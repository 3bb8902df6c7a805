package link

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func TestOwnMAC(t *testing.T) {
	for addr, want := range map[string]string{
		"10.0.2.2": "52550a000202", "10.9.135.131": "52550a098783",
		"fe80::2": "525600000002", "fd00::3": "525600000003",
	} {
		mac := OwnMAC(netip.MustParseAddr(addr))
		if got := hex.EncodeToString(mac[:]); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

// TestClaim: answers carry the address of what was asked for, and everything else stays.
func TestClaim(t *testing.T) {
	arp := func(op header.ARPOp) []byte {
		b := make(header.ARP, header.ARPSize)
		b.SetIPv4OverEthernet()
		b.SetOp(op)
		copy(b.HardwareAddressSender(), "gvisor")
		copy(b.ProtocolAddressSender(), []byte{10, 0, 2, 3})
		return b
	}
	for op, want := range map[header.ARPOp]string{header.ARPReply: "52550a000203", header.ARPRequest: hex.EncodeToString([]byte("gvisor"))} {
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: header.ARPSize})
		pkt.NetworkProtocolNumber = header.ARPProtocolNumber
		copy(pkt.NetworkHeader().Push(header.ARPSize), arp(op))
		claim(pkt)
		if got := hex.EncodeToString(header.ARP(pkt.NetworkHeader().Slice()).HardwareAddressSender()); got != want {
			t.Errorf("ARP operation %d: sender %s, want %s", op, got, want)
		}
		pkt.DecRef()
	}

	src, dst := tcpip.AddrFrom16(netip.MustParseAddr("fd00::3").As16()), tcpip.AddrFrom16(netip.MustParseAddr("fd00::64").As16())
	for _, typ := range []header.ICMPv6Type{header.ICMPv6NeighborAdvert, header.ICMPv6NeighborSolicit} {
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: header.IPv6MinimumSize + optionsOff + targetOption})
		pkt.NetworkProtocolNumber, pkt.TransportProtocolNumber = header.IPv6ProtocolNumber, header.ICMPv6ProtocolNumber
		msg := header.ICMPv6(pkt.TransportHeader().Push(optionsOff + targetOption))
		msg.SetType(typ)
		na := header.NDPNeighborAdvert(msg.MessageBody())
		na.SetTargetAddress(src)
		copy(msg[optionsOff:], "\x02\x01gvisor")
		sum := header.ICMPv6ChecksumParams{Header: msg, Src: src, Dst: dst}
		msg.SetChecksum(header.ICMPv6Checksum(sum))
		header.IPv6(pkt.NetworkHeader().Push(header.IPv6MinimumSize)).Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(msg)), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 255, SrcAddr: src, DstAddr: dst,
		})
		claim(pkt)
		got := string(msg[optionsOff:])
		if claimed := strings.HasSuffix(got, "\x52\x56\x00\x00\x00\x03"); claimed != (typ == header.ICMPv6NeighborAdvert) {
			t.Errorf("ICMPv6 type %d: option %x", typ, got)
		}
		have := msg.Checksum()
		msg.SetChecksum(0)
		if want := header.ICMPv6Checksum(sum); have != want {
			t.Errorf("ICMPv6 type %d: checksum %#x, want %#x", typ, have, want)
		}
		pkt.DecRef()
	}
}
