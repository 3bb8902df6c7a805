package udp

import (
	"errors"
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

// emit writes a datagram to the guest, or a run of datagrams of segment bytes, size in all. Every
// piece but the last is a multiple of segment.
func (n *NAT) emit(s *wire.Scratch, t *traffic, from, to netip.AddrPort, pieces [][]byte, size, segment int) {
	// Datagrams above the MTU, too: where the guest forwards them, its kernel cuts the run and makes
	// fragments of each (ip_finish_output_gso in net/ipv4/ip_output.c). Those of IPv6 it would refuse.
	if segment > 0 && size > segment && n.merges(from) && (to.Addr().Is4() || wire.HeaderLen(to.Addr())+wire.UDPLen+segment <= n.link.MTU) {
		n.written(t, n.partial(s, from, to, tap.GSOUDPL4, segment, size, pieces...), size, segment)
		return
	}
	for _, payload := range pieces {
		step := segment
		if step == 0 {
			step = max(len(payload), 1)
		}
		for {
			b := payload[:min(step, len(payload))]
			n.written(t, n.emitOne(s, from, to, b), len(b), step)
			payload = payload[len(b):]
			if len(payload) == 0 {
				break
			}
		}
	}
}

func (n *NAT) written(t *traffic, err error, size, segment int) {
	count := max((size+segment-1)/segment, 1)
	if err != nil {
		n.count.write.Add(uint64(count))
		return
	}
	t.delivered(count, size)
}

func (n *NAT) emitOne(s *wire.Scratch, from, to netip.AddrPort, payload []byte) error {
	length := wire.UDPLen + len(payload)
	if n.offload&unix.TUN_F_CSUM != 0 {
		if wire.HeaderLen(to.Addr())+length <= n.link.MTU {
			return n.partial(s, from, to, tap.GSONone, 0, len(payload), payload)
		}
		if !n.cutsOwn.Load() {
			err := n.partial(s, from, to, tap.GSOUDP, n.fragmentSize(to.Addr()), len(payload), payload)
			if !errors.Is(err, unix.EINVAL) {
				return err
			}
			n.cutsOwn.Store(true)
		}
	}
	// A fragment cannot leave its checksum to the kernel: it spans all of them.
	u := s.Transport()
	wire.PutUDP(u, from.Port(), to.Port(), length, 0)
	head := wire.Sum(u, wire.PseudoSum(from.Addr(), to.Addr(), wire.ProtoUDP, length))
	wire.PutUDP(u, from.Port(), to.Port(), length, wire.UDPChecksum(head, payload))
	return n.link.Packet(s, from.Addr(), to.Addr(), wire.ProtoUDP, ttlToGuest, u, payload)
}

// fragmentSize is what fits a fragment to a, IP's headers not counted: the segment size of a
// datagram above the MTU. The guest's kernel takes such a frame whole. Only where it forwards the
// datagram over another link does it make fragments, as if they had come like that
// (inet_gso_segment in net/ipv4/af_inet.c, udp6_ufo_fragment in net/ipv6/udp_offload.c); an IPv6
// packet above the MTU that is no such segment it would refuse to forward.
func (n *NAT) fragmentSize(a netip.Addr) int {
	header := wire.IPv4Len
	if !a.Is4() {
		header = wire.IPv6Len + wire.FragmentLen
	}
	return (n.link.MTU - header) &^ 7
}

// partial writes one frame whose checksum the kernel completes, and which it cuts, where it has
// to, in the way of kind, one of tap.GSO*, into segments. The payload is size bytes in pieces.
func (n *NAT) partial(s *wire.Scratch, from, to netip.AddrPort, kind uint8, segment, size int, pieces ...[]byte) error {
	length := wire.UDPLen + size
	start := wire.EthernetLen + wire.HeaderLen(to.Addr())
	h := tap.Header{
		Flags:      tap.FlagNeedsCsum,
		GSOType:    kind,
		HdrLen:     uint16(start + wire.UDPLen),
		GSOSize:    uint16(segment),
		CsumStart:  uint16(start),
		CsumOffset: 6,
	}
	u := s.Transport()
	wire.PutUDP(u, from.Port(), to.Port(), length, wire.PseudoSum(from.Addr(), to.Addr(), wire.ProtoUDP, length))
	return n.link.Frame(s, h, from.Addr(), to.Addr(), wire.ProtoUDP, ttlToGuest, u, pieces...)
}
