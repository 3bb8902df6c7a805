package netstack

import (
	"container/list"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"slipway/netstack/link"
)

// askedEnough is how many SYN-ACKs a guest has left unanswered before its handshake may be
// given up for another, of those whose answer the device cannot have dropped. One is not
// enough: while its connect(2) is still running, a guest's kernel answers a moment late.
const askedEnough = 2

// handshake is one that the guest has to finish.
type handshake struct {
	id stack.TransportEndpointID
	// What the SYN-ACK said.
	iss, next seqnum.Value
	window    seqnum.Size
	offered   bool   // gVisor has sent a SYN-ACK
	mark      uint64 // the receive loop's looks when the device had the last of them; 0: it has none
	again     bool   // that was not the first
	// unanswered are SYN-ACKs before the last whose answer the receive loop would have seen.
	unanswered int
	// finished: gVisor saw the right answer. closed: it sees none any more.
	finished, closed bool
	charged          bool          // for being overdue
	crossing         bool          // one towards the guest, which is never overdue
	in               *list.List    // fresh or overdue of handshakes, nil for neither
	place            *list.Element // there
}

// handshakes are those that the guest has to finish: of its own connections, whose number
// Limits.PendingDials bounds, and of those towards it, which become such when both ends
// send a SYN (RFC 9293 section 3.5). It is safe for concurrent use, and implements
// [link.Handshakes].
type handshakes struct {
	seenSince func(mark uint64) link.Seen // by the receive loop, see link.Endpoint
	looks     func() uint64
	state     func(id stack.TransportEndpointID) tcp.EndpointState

	unfinished atomic.Int64

	mu  sync.Mutex // guards the following fields, and those of every handshake
	all map[stack.TransportEndpointID]*handshake
	// fresh and overdue are of *handshake, in the order of their SYN-ACKs. Overdue are
	// those that the guest has not answered although the receive loop has seen everything
	// that the device held after the SYN-ACK: its kernel answers at once.
	fresh, overdue list.List
}

var _ link.Handshakes = (*handshakes)(nil)

// newHandshakes returns the handshakes of s, whose link is there when the first begins.
func newHandshakes(s *Stack) *handshakes {
	return &handshakes{
		seenSince: func(mark uint64) link.Seen { return s.link.SeenSince(mark) },
		looks:     func() uint64 { return s.link.Looks() },
		state: func(id stack.TransportEndpointID) tcp.EndpointState {
			if ep := s.endpoint(id); ep != nil {
				return ep.EndpointState()
			}
			return tcp.StateClose
		},
		all: make(map[stack.TransportEndpointID]*handshake),
	}
}

// endpoint is gVisor's of id, nil where there is none.
func (s *Stack) endpoint(id stack.TransportEndpointID) *tcp.Endpoint {
	proto := protocol(addrPort(id.LocalAddress, 0).Addr())
	ep, _ := s.stack.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, nicID).(*tcp.Endpoint)
	return ep
}

// begin comes before gVisor can send a SYN-ACK of id. The caller ends what it returns.
func (h *handshakes) begin(id stack.TransportEndpointID) *handshake {
	hs := &handshake{id: id}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all[id] = hs
	h.unfinished.Add(1)
	return hs
}

// cross is begin for a connection towards the guest. Where both ends send a SYN, they
// cross, and gVisor sends a SYN-ACK.
func (h *handshakes) cross(id stack.TransportEndpointID) *handshake {
	hs := h.begin(id)
	h.mu.Lock()
	hs.crossing = true
	h.mu.Unlock()
	return hs
}

// close hides answers to a handshake from gVisor.
func (h *handshakes) close(hs *handshake) {
	h.mu.Lock()
	hs.closed = true
	h.move(hs, nil)
	h.mu.Unlock()
}

// outcome is how a handshake has ended.
type outcome struct {
	finished bool // gVisor saw the right answer
	charged  bool // as one that is overdue
}

// end forgets a handshake.
func (h *handshakes) end(hs *handshake) outcome {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.move(hs, nil)
	if h.all[hs.id] == hs {
		delete(h.all, hs.id)
	}
	h.unfinished.Add(-1)
	return outcome{finished: hs.finished, charged: hs.charged}
}

// move puts a handshake at the end of a list; nil: of none.
func (h *handshakes) move(hs *handshake, to *list.List) {
	if hs.in != nil {
		hs.in.Remove(hs.place)
	}
	hs.in, hs.place = to, nil
	if to != nil {
		hs.place = to.PushBack(hs)
	}
}

// first is the handshake at the front of a list, nil where there is none.
func first(l *list.List) *handshake {
	if l.Len() == 0 {
		return nil
	}
	return l.Front().Value.(*handshake) //nolint:forcetypeassert // nothing else is put there
}

// Unfinished implements link.Handshakes.
func (h *handshakes) Unfinished() int { return int(h.unfinished.Load()) }

// Offer implements link.Handshakes.
func (h *handshakes) Offer(id stack.TransportEndpointID, synAck header.TCP) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if hs := h.all[id]; hs != nil {
		hs.iss, hs.next = seqnum.Value(synAck.SequenceNumber()), seqnum.Value(synAck.AckNumber())
		// The window of a SYN-ACK is not scaled (RFC 7323 section 2.2).
		hs.window = seqnum.Size(synAck.WindowSize())
		hs.offered = true
	}
}

// Offered implements link.Handshakes.
func (h *handshakes) Offered(id stack.TransportEndpointID) {
	mark := h.looks()
	h.mu.Lock()
	defer h.mu.Unlock()
	hs := h.all[id]
	if hs == nil {
		return
	}
	hs.unanswered += h.last(hs)
	hs.again = hs.mark != 0
	hs.mark = mark
	if hs.in == nil && !hs.crossing && !hs.closed {
		h.move(hs, &h.fresh)
	}
}

// last is 1 where the receive loop would have seen an answer to the last SYN-ACK.
func (h *handshakes) last(hs *handshake) int {
	if hs.mark != 0 && h.seenSince(hs.mark) == link.All {
		return 1
	}
	return 0
}

// Finishes implements link.Handshakes by the letter of RFC 9293 section 3.10.7.4. What
// lies outside of the window is for gVisor, which answers with an ACK and goes no further.
func (h *handshakes) Finishes(id stack.TransportEndpointID, answer header.TCP) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	hs := h.all[id]
	switch {
	case hs == nil:
		// Its SYN-ACK is not sent yet, and nobody knows its number; or it has ended this
		// moment, and gVisor is about to close the endpoint.
		return false
	case !hs.offered || hs.closed:
		return false
	case !seqnum.Value(answer.SequenceNumber()).InWindow(hs.next, hs.window):
		return true
	case seqnum.Value(answer.AckNumber()) != hs.iss+1:
		return false
	}
	hs.finished = true
	return true
}

// sweep looks for handshakes that are overdue since the last call, and returns how many.
func (h *handshakes) sweep() (found int) {
	if h.unfinished.Load() == 0 {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for hs := first(&h.fresh); hs != nil; hs = first(&h.fresh) {
		seen := h.seenSince(hs.mark)
		switch {
		case seen == link.NotYet:
			return found
		case h.state(hs.id) != tcp.StateSynRecv: // finished, and about to be ended
			h.move(hs, nil)
		case seen == link.Held && !hs.again: // the answer may be lost, the next SYN-ACK will tell
			h.move(hs, nil)
		default:
			hs.charged = true
			h.move(hs, &h.overdue)
			found++
		}
	}
	return found
}

// overdueNow is how many are overdue.
func (h *handshakes) overdueNow() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.overdue.Len()
}

// yields returns the id of the handshake that is overdue for longest, and closes it, when
// it may be given up: gVisor sees no answer to it any more. Where its guest's connect(2)
// has returned, the receive loop would have seen the answer.
func (h *handshakes) yields() (id stack.TransportEndpointID, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for hs := first(&h.overdue); hs != nil; hs = first(&h.overdue) {
		if h.state(hs.id) != tcp.StateSynRecv {
			h.move(hs, nil)
			continue
		}
		if hs.unanswered+h.last(hs) < askedEnough {
			return id, false
		}
		hs.closed = true
		h.move(hs, nil)
		return hs.id, true
	}
	return id, false
}

// guestID is the endpoint of a connection from src, an address of ours, to dst, one of the
// guest's.
func guestID(src, dst tcpip.FullAddress) stack.TransportEndpointID {
	return stack.TransportEndpointID{LocalAddress: src.Addr, LocalPort: src.Port, RemoteAddress: dst.Addr, RemotePort: dst.Port}
}
