package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"

	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

// carries reports whether an Ethernet frame has an IP header of the given EtherType and
// size, and behind it a UDP header with the destination port. It costs every frame of the
// guest, and looks at no more than it must.
func carries(frame []byte, etherType uint16, ipLen int, port uint16) bool {
	at := wire.EthernetLen + ipLen
	proto := wire.EthernetLen + 9
	if etherType == wire.EtherIPv6 {
		proto = wire.EthernetLen + 6
	}
	return len(frame) >= at+wire.UDPLen && frame[proto] == wire.ProtoUDP &&
		binary.BigEndian.Uint16(frame[at+2:]) == port && binary.BigEndian.Uint16(frame[12:]) == etherType
}

// payload is what the UDP datagram in p carries; false when its length or checksum is wrong.
func payload(h tap.Header, p wire.Packet) ([]byte, bool) {
	u := p.Payload
	if h.GSOType != tap.GSONone || len(u) < wire.UDPLen {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(u[4:]))
	if n < wire.UDPLen || n > len(u) {
		return nil, false
	}
	u = u[:n]
	// Only over IPv4 may there be none (RFC 768, RFC 8200 section 8.1).
	none := binary.BigEndian.Uint16(u[6:]) == 0
	if h.Trusted() || none && p.Src.Is4() {
		return u[wire.UDPLen:], true
	}
	return u[wire.UDPLen:], !none && wire.Sum(u, wire.PseudoSum(p.Src, p.Dst, wire.ProtoUDP, n)) == 0xffff
}

// sender writes datagrams to the guest.
type sender struct {
	write func(h tap.Header, frame [][]byte) error
	mac   [6]byte
}

const ttl = 64

func (s *sender) send(mac [6]byte, src, dst netip.AddrPort, body []byte) error {
	var head [wire.EthernetLen + wire.IPv6Len + wire.UDPLen]byte
	at := wire.EthernetLen + wire.HeaderLen(src.Addr())
	n := wire.UDPLen + len(body)
	if src.Addr().Is4() {
		wire.PutEthernet(head[:], mac, s.mac, wire.EtherIPv4)
		wire.PutIPv4(head[wire.EthernetLen:], src.Addr(), dst.Addr(), wire.ProtoUDP, ttl, wire.IPv4Len+n, 0, 0)
	} else {
		wire.PutEthernet(head[:], mac, s.mac, wire.EtherIPv6)
		wire.PutIPv6(head[wire.EthernetLen:], src.Addr(), dst.Addr(), wire.ProtoUDP, ttl, n)
	}
	u := head[at : at+wire.UDPLen]
	wire.PutUDP(u, src.Port(), dst.Port(), n, 0)
	sum := wire.Sum(u, wire.PseudoSum(src.Addr(), dst.Addr(), wire.ProtoUDP, n))
	wire.PutUDP(u, src.Port(), dst.Port(), n, wire.UDPChecksum(sum, body))
	return s.write(tap.Header{}, [][]byte{head[:at+wire.UDPLen], body})
}

// newSender checks its arguments.
func newSender(write func(tap.Header, [][]byte) error, mac net.HardwareAddr) (sender, error) {
	if write == nil || len(mac) != 6 {
		return sender{}, errIncomplete
	}
	return sender{write: write, mac: [6]byte(mac)}, nil
}
