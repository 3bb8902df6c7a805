package link

import (
	"net/netip"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

// Handshakes knows the handshakes that the guest has to finish. gVisor looks at the
// acknowledgment number of a SYN-ACK's answer only where there is a listening endpoint
// (synRcvdState in transport/tcp/connect.go), and there is none here.
type Handshakes interface {
	// Unfinished is how many there are.
	Unfinished() int
	// Offer is called before gVisor's SYN-ACK is written, and Offered when the device
	// has it.
	Offer(id stack.TransportEndpointID, synAck header.TCP)
	Offered(id stack.TransportEndpointID)
	// Finishes reports whether gVisor may see a segment with ACK of an endpoint that waits
	// for the answer to its SYN-ACK. One that it may not see is answered with a reset.
	Finishes(id stack.TransportEndpointID, answer header.TCP) bool
}

const (
	// tapQueue is more frames than a TAP holds for us: its transmit queue length, which is
	// 8,192 at the most unless the guest's root has raised it, at the cost of its own
	// connections.
	tapQueue = 1 << 14
	// fullQueue is how many frames it holds at the least before it drops one: the kernel's
	// default (TUN_READQ_SIZE in drivers/net/tun.c).
	fullQueue = 500
)

// looks counts how often the receive loop has looked for a frame. The loop alone writes.
type looks struct {
	begun atomic.Uint64
	// nothing is the last look that found none, full the last of those that came after so
	// many frames that the device may have been full.
	nothing, full atomic.Uint64
}

func (l *looks) begin() { l.begun.Store(l.begun.Load() + 1) }

func (l *looks) empty() {
	now := l.begun.Load()
	if now-l.nothing.Load() > fullQueue {
		l.full.Store(now)
	}
	l.nothing.Store(now)
}

// Looks is how often the receive loop has looked for a frame, for [Endpoint.SeenSince].
func (e *Endpoint) Looks() uint64 { return e.looks.begun.Load() }

// Seen is what the receive loop has seen of the frames that the guest had sent when Looks
// returned some number.
type Seen int

// What can be said of those frames.
const (
	NotYet Seen = iota // some of them may be in the device
	Held               // all that the device had room for
	All                // all: the device cannot have been full since
)

// SeenSince is what the receive loop has seen of the frames that the guest had sent when
// Looks returned mark: a later look found the device empty, or found more frames than a
// device holds.
func (e *Endpoint) SeenSince(mark uint64) Seen {
	full, nothing := e.looks.full.Load(), e.looks.nothing.Load()
	switch {
	case nothing > mark && full <= mark:
		return All
	case nothing > mark || e.looks.begun.Load() > mark+tapQueue+1:
		return Held
	}
	return NotYet
}

func (e *Endpoint) handshaking() bool {
	return e.cfg.Handshakes != nil && e.cfg.Handshakes.Unfinished() > 0
}

// offers reports whether pkt is a SYN-ACK, and tells Handshakes that it is about to be
// written.
func (e *Endpoint) offers(pkt *stack.PacketBuffer) bool {
	if e.cfg.Handshakes == nil || pkt.TransportProtocolNumber != header.TCPProtocolNumber || pkt.Data().Size() != 0 {
		return false
	}
	seg := header.TCP(pkt.TransportHeader().Slice())
	if len(seg) < header.TCPMinimumSize || seg.Flags() != header.TCPFlagSyn|header.TCPFlagAck {
		return false
	}
	e.cfg.Handshakes.Offer(sentID(pkt), seg)
	return true
}

// sentID is whose endpoint has sent pkt, a TCP segment.
func sentID(pkt *stack.PacketBuffer) stack.TransportEndpointID {
	var id stack.TransportEndpointID
	if b := pkt.NetworkHeader().Slice(); pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		id.LocalAddress, id.RemoteAddress = header.IPv4(b).SourceAddress(), header.IPv4(b).DestinationAddress()
	} else {
		id.LocalAddress, id.RemoteAddress = header.IPv6(b).SourceAddress(), header.IPv6(b).DestinationAddress()
	}
	seg := header.TCP(pkt.TransportHeader().Slice())
	id.LocalPort, id.RemotePort = seg.SourcePort(), seg.DestinationPort()
	return id
}

// finishes asks Handshakes about the segment of a frame, whose TCP header begins at
// segment.
func (e *Endpoint) finishes(frame []byte, segment int) bool {
	if e.cfg.Handshakes == nil {
		return true
	}
	_, id := segmentID(frame, segment)
	return e.cfg.Handshakes.Finishes(id, header.TCP(frame[segment:]))
}

// reset answers a segment with ACK as RFC 9293 section 3.10.7.4 wants it:
// <SEQ=SEG.ACK><CTL=RST>. Whatever becomes of the frame, the guest can have it again.
func (e *Endpoint) reset(frame []byte, segment int) {
	proto, id := segmentID(frame, segment)
	tcp := make(header.TCP, header.TCPMinimumSize)
	tcp.Encode(&header.TCPFields{
		SrcPort: id.LocalPort, DstPort: id.RemotePort, SeqNum: header.TCP(frame[segment:]).AckNumber(),
		DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagRst,
	})
	pseudo := header.PseudoHeaderChecksum(header.TCPProtocolNumber, id.LocalAddress, id.RemoteAddress, uint16(len(tcp)))
	tcp.SetChecksum(^checksum.Checksum(tcp, pseudo))
	src, dst := address(id.LocalAddress), address(id.RemoteAddress)
	const hops = 64
	var head []byte
	if proto == header.IPv4ProtocolNumber {
		head = make([]byte, wire.EthernetLen+wire.IPv4Len)
		wire.PutIPv4(head[wire.EthernetLen:], src, dst, uint8(header.TCPProtocolNumber), hops, wire.IPv4Len+len(tcp), 0, 0)
	} else {
		head = make([]byte, wire.EthernetLen+wire.IPv6Len)
		wire.PutIPv6(head[wire.EthernetLen:], src, dst, uint8(header.TCPProtocolNumber), hops, len(tcp))
	}
	wire.PutEthernet(head, e.cfg.Neighbours.At(dst), e.mac, uint16(proto))
	_ = e.WriteFrame(tap.Header{}, [][]byte{head, tcp})
}

func address(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}
