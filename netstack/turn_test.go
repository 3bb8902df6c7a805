package netstack

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	ft "slipway/netstack/internal/frametest"
	"slipway/netstack/tap"
)

// TestErrorThatLooksLikeASegment: an ICMP error whose first bytes, taken for the ports of
// a TCP segment, are those of the connection that it is about, stops nothing. gVisor locks
// the endpoint to tell it, and the receive loop locks those of segments.
func TestErrorThatLooksLikeASegment(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := newGuest(t, Policy{Local: everythingLocal{}, HostAccess: HostAccess{Loopback: Grant{Open: true}}})
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	const guestPort = uint16(header.ICMPv4DstUnreachable)<<8 | uint16(header.ICMPv4FragmentationNeeded)

	syn := make(header.TCP, header.TCPMinimumSize)
	syn.Encode(&header.TCPFields{
		SrcPort: guestPort, DstPort: port, SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 65535,
	})
	g.send(tap.Header{Flags: tap.FlagDataValid}, ft.Frame(header.TCPProtocolNumber, ft.Guest4, ft.Gate4, syn))
	g.until("SYN-ACK", func(f []byte) bool {
		ip := header.IPv4(f[header.EthernetMinimumSize:])
		return header.Ethernet(f).Type() == header.IPv4ProtocolNumber && ip.Protocol() == uint8(header.TCPProtocolNumber) &&
			header.TCP(ip.Payload()).Flags() == header.TCPFlagSyn|header.TCPFlagAck
	})

	segment := make(header.TCP, header.TCPMinimumSize)
	segment.Encode(&header.TCPFields{SrcPort: port, DstPort: guestPort, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck})
	quoted := header.IPv4(ft.IP(header.TCPProtocolNumber, ft.Gate4, ft.Guest4, segment))
	quoted.SetID(uint16(header.TCPFlagAck)) // its low byte is where a segment has its flags
	quoted.SetChecksum(0)
	quoted.SetChecksum(^quoted.CalculateChecksum())
	message := header.ICMPv4(append(make([]byte, header.ICMPv4MinimumSize), quoted...))
	message.SetType(header.ICMPv4DstUnreachable)
	message.SetCode(header.ICMPv4FragmentationNeeded)
	message.SetMTU(576)
	// The checksum is where a segment has its destination port; the urgent pointer makes it so.
	urgent := message[len(message)-2:]
	binary.BigEndian.PutUint16(urgent, checksum.Combine(^port, ^checksum.Checksum(message, 0)))
	message.SetChecksum(port)
	if checksum.Checksum(message, 0) != 0xffff {
		t.Fatal("the checksum is wrong")
	}
	g.send(tap.Header{}, ft.Frame(header.ICMPv4ProtocolNumber, ft.Guest4, ft.Gate4, message))
	g.settle()
}
