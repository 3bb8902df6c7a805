package udp

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

// ttlToGuest is the TTL of datagrams to the guest. The link is the last hop, so the
// remote's own TTL would tell nothing that is of use.
const ttlToGuest = 64

// merges reports whether runs between addresses of a's family leave as one frame.
func (n *NAT) merges(a netip.AddrPort) bool {
	if a.Addr().Is4() {
		return n.offload&unix.TUN_F_USO4 != 0
	}
	return n.offload&unix.TUN_F_USO6 != 0
}

// emit writes a datagram to the guest, or a run of datagrams of segment bytes.
func (n *NAT) emit(s *wire.Scratch, t *traffic, from, to netip.AddrPort, payload []byte, segment int) {
	if segment == 0 {
		segment = max(len(payload), 1)
	}
	if len(payload) > segment && n.merges(from) && wire.HeaderLen(to.Addr())+wire.UDPLen+segment <= n.link.MTU {
		n.written(t, n.partial(s, from, to, payload, segment), payload, segment)
		return
	}
	for {
		b := payload[:min(segment, len(payload))]
		n.written(t, n.emitOne(s, from, to, b), b, segment)
		payload = payload[len(b):]
		if len(payload) == 0 {
			return
		}
	}
}

func (n *NAT) written(t *traffic, err error, payload []byte, segment int) {
	count := max((len(payload)+segment-1)/segment, 1)
	if err != nil {
		n.count.write.Add(uint64(count))
		return
	}
	t.delivered(count, len(payload))
}

func (n *NAT) emitOne(s *wire.Scratch, from, to netip.AddrPort, payload []byte) error {
	length := wire.UDPLen + len(payload)
	if n.offload&unix.TUN_F_CSUM != 0 && wire.HeaderLen(to.Addr())+length <= n.link.MTU {
		return n.partial(s, from, to, payload, 0)
	}
	// A fragment cannot leave its checksum to the kernel: it spans all of them.
	u := s.Transport()
	wire.PutUDP(u, from.Port(), to.Port(), length, 0)
	head := wire.Sum(u, wire.PseudoSum(from.Addr(), to.Addr(), wire.ProtoUDP, length))
	wire.PutUDP(u, from.Port(), to.Port(), length, wire.UDPChecksum(head, payload))
	return n.link.Packet(s, from.Addr(), to.Addr(), wire.ProtoUDP, ttlToGuest, u, payload)
}

// partial writes one frame whose checksum the kernel completes, and which it cuts
// into segments unless segment is 0.
func (n *NAT) partial(s *wire.Scratch, from, to netip.AddrPort, payload []byte, segment int) error {
	length := wire.UDPLen + len(payload)
	start := wire.EthernetLen + wire.HeaderLen(to.Addr())
	h := tap.Header{
		Flags:      tap.FlagNeedsCsum,
		HdrLen:     uint16(start + wire.UDPLen),
		CsumStart:  uint16(start),
		CsumOffset: 6,
	}
	if segment > 0 {
		h.GSOType, h.GSOSize = tap.GSOUDPL4, uint16(segment)
	}
	u := s.Transport()
	wire.PutUDP(u, from.Port(), to.Port(), length, wire.PseudoSum(from.Addr(), to.Addr(), wire.ProtoUDP, length))
	return n.link.Frame(s, h, from.Addr(), to.Addr(), wire.ProtoUDP, ttlToGuest, u, payload)
}
