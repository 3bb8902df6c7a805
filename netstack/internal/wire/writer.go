package wire

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"

	"slipway/netstack/tap"
)

// MinMTU is the smallest MTU a Link takes: what every IPv4 module must be able to
// forward without fragmentation (RFC 791 section 3.2). IPv6 wants MinMTU6.
const (
	MinMTU  = 68
	MinMTU6 = 1280 // RFC 8200 section 5
)

// Link is where frames for the guest go.
type Link struct {
	Write           func(h tap.Header, frame [][]byte) error // takes one frame, keeps nothing of it
	Gateway         [6]byte                                  // our address
	At              func(netip.Addr) [6]byte                 // where an address of the guest is
	MTU             int                                      // bytes of an IP packet
	identifications atomic.Uint32
}

// NewLink checks its arguments. Every address is at guest until At is replaced. An MTU
// below MinMTU is an error.
func NewLink(write func(tap.Header, [][]byte) error, gateway, guest net.HardwareAddr, mtu int) (*Link, error) {
	if write == nil {
		return nil, fmt.Errorf("no function to write frames")
	}
	if len(gateway) != 6 || len(guest) != 6 {
		return nil, fmt.Errorf("link addresses %q and %q: want 6 bytes each", gateway, guest)
	}
	if mtu < MinMTU || mtu > 65535 {
		return nil, fmt.Errorf("mtu %d: want %d to 65535", mtu, MinMTU)
	}
	l := &Link{Write: write, Gateway: [6]byte(gateway), MTU: mtu}
	at := [6]byte(guest)
	l.At = func(netip.Addr) [6]byte { return at }
	l.identifications.Store(rand.Uint32())
	return l, nil
}

// Scratch is memory for the headers of one frame at a time. Each goroutine that
// writes has its own, so that none is allocated for a packet.
type Scratch struct {
	head      [EthernetLen + IPv6Len + FragmentLen]byte // with room for a fragment header
	transport [8]byte
	vec       [2 + MaxPieces][]byte
}

// MaxPieces is in how many pieces a payload may be.
const MaxPieces = 60

// Transport is where a transport header may be built that is then given to
// [Link.Packet] with the same Scratch.
func (s *Scratch) Transport() []byte { return s.transport[:] }

// Frame writes one frame: Ethernet and IP headers for transport and payload, which is in at most
// MaxPieces pieces, and the virtio-net header as given. Whether it fits the MTU is the caller's
// business.
func (l *Link) Frame(s *Scratch, h tap.Header, src, dst netip.Addr, proto, ttl uint8, transport []byte, payload ...[]byte) error {
	n := len(transport)
	for _, b := range payload {
		n += len(b)
	}
	var head []byte
	if src.Is4() {
		head = s.head[:EthernetLen+IPv4Len]
		PutEthernet(head, l.At(dst), l.Gateway, EtherIPv4)
		// Without DontFragment: behind the guest there may be a link of a smaller MTU, a
		// container's bridge for one.
		PutIPv4(head[EthernetLen:], src, dst, proto, ttl, IPv4Len+n, uint16(l.identifications.Add(1)), 0)
	} else {
		head = s.head[:EthernetLen+IPv6Len]
		PutEthernet(head, l.At(dst), l.Gateway, EtherIPv6)
		PutIPv6(head[EthernetLen:], src, dst, proto, ttl, n)
	}
	vec := append(append(s.vec[:0], head, transport), payload...)
	return l.Write(h, vec)
}

// Packet writes one IP packet of transport and payload, whose checksum must be
// complete; as fragments when it exceeds the MTU. transport is at most 8 bytes. It
// reports the first error and gives the rest of the fragments up.
func (l *Link) Packet(s *Scratch, src, dst netip.Addr, proto, ttl uint8, transport, payload []byte) error {
	n := len(transport) + len(payload)
	if src.Is4() != dst.Is4() {
		return fmt.Errorf("write packet from %v to %v: families differ", src, dst)
	}
	if n+HeaderLen(src) > l.MTU {
		return l.fragments(s, src, dst, proto, ttl, transport, payload)
	}
	return l.Frame(s, tap.Header{}, src, dst, proto, ttl, transport, payload)
}

// HeaderLen is the size of the IP header in front of a packet of a's family.
func HeaderLen(a netip.Addr) int {
	if a.Is4() {
		return IPv4Len
	}
	return IPv6Len
}

// fragments writes a packet in pieces: RFC 791 section 3.2, RFC 8200 section 4.5.
func (l *Link) fragments(s *Scratch, src, dst netip.Addr, proto, ttl uint8, transport, payload []byte) error {
	id := l.identifications.Add(1)
	header := IPv4Len
	if !src.Is4() {
		header = IPv6Len + FragmentLen
	}
	room := (l.MTU - header) &^ 7 // offsets are in units of 8 bytes
	end := len(transport) + len(payload)
	for off := 0; off < end; off += room {
		n := min(room, end-off)
		more := off+n < end
		head := s.head[:EthernetLen+header]
		if src.Is4() {
			frag := uint16(off / 8)
			if more {
				frag |= MoreFragments
			}
			PutEthernet(head, l.At(dst), l.Gateway, EtherIPv4)
			PutIPv4(head[EthernetLen:], src, dst, proto, ttl, header+n, uint16(id), frag)
		} else {
			frag := uint16(off)
			if more {
				frag |= 1
			}
			PutEthernet(head, l.At(dst), l.Gateway, EtherIPv6)
			PutIPv6(head[EthernetLen:], src, dst, ProtoFragment, ttl, FragmentLen+n)
			ext := head[EthernetLen+IPv6Len:]
			ext[0], ext[1] = proto, 0
			binary.BigEndian.PutUint16(ext[2:], frag)
			binary.BigEndian.PutUint32(ext[4:], id)
		}
		vec := append(s.vec[:0], head)
		if off == 0 {
			vec = append(vec, transport, payload[:n-len(transport)])
		} else {
			at := off - len(transport)
			vec = append(vec, payload[at:at+n])
		}
		if err := l.Write(tap.Header{}, vec); err != nil {
			return err
		}
	}
	return nil
}
