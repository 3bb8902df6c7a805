package netstack

import (
	"bytes"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"slipway/netstack/internal/wire"
)

const (
	// maxHeldSYNs at a time; one more is dropped, and the guest's kernel sends it
	// again.
	maxHeldSYNs = 256
	// maxSYN is the longest frame looked at: headers with all options, no payload.
	maxSYN = wire.EthernetLen + wire.IPv6Len + header.TCPHeaderMaximumSize
	// heldFor ends the wait for an endpoint that does not go. gVisor then challenges
	// the guest (RFC 5961 section 4), whose reset ends the endpoint before its kernel
	// sends the SYN again, a second after the first (RFC 6298 section 2).
	heldFor   = 500 * time.Millisecond
	firstLook = 20 * time.Microsecond
	lastLook  = 5 * time.Millisecond
)

// reusedPorts holds a SYN back while gVisor still has an endpoint of the same
// addresses and ports. The guest's kernel has forgotten that connection, or it would
// not open another; gVisor has the segments that ended it in a queue, and would put
// the SYN behind them, where only a listening endpoint is looked for and a reset is
// the answer when there is none.
type reusedPorts struct {
	s *Stack

	mu   sync.Mutex
	held map[stack.TransportEndpointID]struct{} // at most maxHeldSYNs
}

// input reports whether it took the frame.
func (r *reusedPorts) input(frame []byte) bool {
	if len(frame) > maxSYN {
		return false
	}
	p, verdict := wire.Parse(frame)
	if verdict != wire.OK || p.Proto != uint8(tcp.ProtocolNumber) || len(p.Payload) < header.TCPMinimumSize {
		return false
	}
	seg := header.TCP(p.Payload)
	if seg.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false
	}
	id := stack.TransportEndpointID{
		LocalAddress: tcpip.AddrFromSlice(p.Dst.AsSlice()), LocalPort: seg.DestinationPort(),
		RemoteAddress: tcpip.AddrFromSlice(p.Src.AsSlice()), RemotePort: seg.SourcePort(),
	}
	if !r.inUse(id) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, again := r.held[id]; again {
		return true
	}
	if len(r.held) >= maxHeldSYNs || !r.s.begin() {
		r.s.stats.dialsRefused.Add(1)
		return true
	}
	r.held[id] = struct{}{}
	go r.release(id, bytes.Clone(frame))
	return true
}

// inUse reports whether gVisor has an endpoint of id that is past its handshake: a
// SYN that the guest sent twice is for gVisor.
func (r *reusedPorts) inUse(id stack.TransportEndpointID) bool {
	proto := protocol(addrPort(id.LocalAddress, 0).Addr())
	ep, ok := r.s.stack.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, nicID).(*tcp.Endpoint)
	return ok && ep.EndpointState() != tcp.StateSynRecv
}

// release passes the frame on when the endpoint of id has gone.
func (r *reusedPorts) release(id stack.TransportEndpointID, frame []byte) {
	defer r.s.end()
	deadline := time.Now().Add(heldFor)
	look := time.NewTimer(firstLook)
	defer look.Stop()
	for wait := firstLook; r.inUse(id) && time.Now().Before(deadline); wait = min(2*wait, lastLook) {
		look.Reset(wait)
		select {
		case <-look.C:
		case <-r.s.ctx.Done():
			return
		}
	}
	r.mu.Lock()
	delete(r.held, id)
	r.mu.Unlock()
	r.s.link.Deliver(frame)
}
