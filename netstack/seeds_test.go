package netstack

import (
	"gvisor.dev/gvisor/pkg/tcpip/header"

	ft "slipway/netstack/internal/frametest"
)

// refusedFrames take the guard's ways out, one each: lengths that lie or do not
// suffice, foreign addresses, wrong checksums.
func refusedFrames() [][]byte {
	tcp4, tcp6 := ft.TCP(ft.Guest4, ft.World4, header.TCPFlagSyn, "x"), ft.TCP(ft.Guest6, ft.World6, header.TCPFlagSyn, "x")
	arp, solicit := ft.ARP(header.ARPRequest, ft.Gate4), ft.Solicit(ft.Guest6, ft.Gate6)
	with := func(frame []byte, at int, value byte) []byte {
		b := append([]byte(nil), frame...)
		b[at] ^= value
		return b
	}
	const ip = header.EthernetMinimumSize
	return [][]byte{
		tcp4[:ip-1],                // no Ethernet header
		with(tcp4, 6, 1),           // a group's address as source
		tcp4[:ip+10],               // half an IPv4 header
		with(tcp4, ip, 0x20),       // version 6 in an IPv4 frame
		with(tcp4, ip, 0x0f),       // a header beyond the packet
		with(tcp4, ip+2, 0x40),     // a total beyond the frame
		with(tcp4, ip+10, 1),       // the IPv4 header's checksum
		with(tcp4, len(tcp4)-1, 1), // the TCP checksum
		ft.Frame(header.TCPProtocolNumber, ft.Guest4, ft.World4, make([]byte, 4)), // no TCP header
		tcp6[:ip+20],               // half an IPv6 header
		with(tcp6, ip+4, 0x40),     // a payload beyond the frame
		with(tcp6, len(tcp6)-1, 1), // the TCP checksum
		ft.TCP(ft.World6, ft.Gate6, header.TCPFlagSyn, ""),
		ft.Echo(ft.World6, ft.Gate6),
		ft.Frame(header.ICMPv6ProtocolNumber, ft.Guest6, ft.Gate6, make([]byte, 3)),         // no ICMPv6 header
		ft.Frame(header.ICMPv6ProtocolNumber, ft.Guest6, ft.Gate6, solicit[ip+40:ip+40+12]), // no target
		ft.Solicit(ft.Guest6, ft.World6),                                                    // not ours to answer
		ft.ARP(header.ARPRequest, ft.World4),
		with(arp, ip, 1), // no Ethernet
		arp[:ip+10],
	}
}
