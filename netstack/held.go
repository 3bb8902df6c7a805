package netstack

import (
	"bytes"
	"cmp"
	"container/list"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"slipway/netstack/internal/wire"
)

const (
	// maxHeldSYNs at a time, of about 1 KiB each.
	maxHeldSYNs = 8192
	// maxSYN is the longest frame looked at: headers with all options, no payload.
	maxSYN = wire.EthernetLen + wire.IPv6Len + header.TCPHeaderMaximumSize
	// heldForPort ends the wait for an endpoint that does not go. gVisor then challenges
	// the guest (RFC 5961 section 4), whose reset ends the endpoint before its kernel
	// sends the SYN again, a second after the first (RFC 6298 section 2).
	heldForPort = 500 * time.Millisecond
	// heldForPlace ends the wait for a place. The guest's kernel sends its SYN again after one,
	// three and seven seconds, and each time it waits anew: what were dropped in between
	// would be missed for ever longer.
	heldForPlace = 5 * time.Second
	firstLook    = 20 * time.Microsecond
	lastLook     = 5 * time.Millisecond
)

// heldSYNs are those that have to wait: to drop one would cost its connection a second. A
// SYN waits for one of two things.
//
// Its port: while gVisor still has an endpoint of the same addresses and ports. The guest's
// kernel has forgotten that connection, or it would not open another; gVisor has the
// segments that ended it in a queue, and would put the SYN behind them, where only a
// listening endpoint is looked for and a reset is the answer when there is none.
//
// Its place: while guestTCP.admit refuses it. Of those the youngest is next. Its guest waits
// for an answer; what is old is likely to be a flood's, whose guest does not. At the bound
// the oldest is dropped.
//
// One goroutine looks after all of them.
type heldSYNs struct {
	s     *Stack
	place time.Duration // that a SYN waits for one
	wake  chan struct{} // says that there is something to look at
	count atomic.Int64  // of byID

	mu   sync.Mutex // guards the following fields
	byID map[stack.TransportEndpointID]*heldSYN
	// ports and places are of *heldSYN, the oldest first.
	ports, places list.List
	released      bool // nothing is held any more: the stack closes
}

// heldSYN is one of them: a frame that waits for its port, or a packet that waits for its
// place.
type heldSYN struct {
	id    stack.TransportEndpointID
	since time.Time
	frame []byte
	syn   *stack.PacketBuffer
	why   admission
	in    *list.List
	at    *list.Element
}

func newHeldSYNs(s *Stack) *heldSYNs {
	return &heldSYNs{s: s, place: cmp.Or(s.cfg.heldForPlace, heldForPlace), wake: make(chan struct{}, 1), byID: make(map[stack.TransportEndpointID]*heldSYN)}
}

// input reports whether it took the frame: a SYN that waits for its port.
func (h *heldSYNs) input(frame []byte) bool {
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
	if !h.inUse(id) {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if one := h.byID[id]; one != nil && one.in == &h.ports {
		one.frame = append(one.frame[:0], frame...) // of the same connection, or of a younger one
		return true
	}
	h.add(&heldSYN{id: id, frame: bytes.Clone(frame)}, &h.ports)
	return true
}

// hold keeps a SYN that was refused a place. It may be one of those that wait already, which
// came once more.
func (h *heldSYNs) hold(id stack.TransportEndpointID, syn *stack.PacketBuffer, why admission) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.add(&heldSYN{id: id, syn: syn.Clone(), why: why}, &h.places)
}

// add lets a SYN wait, in place of an older one of its connection.
func (h *heldSYNs) add(one *heldSYN, in *list.List) {
	if h.released {
		one.drop()
		return
	}
	if older := h.byID[one.id]; older != nil {
		h.remove(older)
		older.drop()
	}
	if len(h.byID) >= maxHeldSYNs {
		h.s.stats.synsRefused.Add(1)
		if h.places.Len() == 0 {
			one.drop()
			return
		}
		oldest := heldAt(h.places.Front())
		h.remove(oldest)
		oldest.drop()
	}
	one.since, one.in, one.at = time.Now(), in, in.PushBack(one)
	h.byID[one.id] = one
	h.count.Store(int64(len(h.byID)))
	if in == &h.ports || len(h.byID) == 1 { // or else the next look is due, or waits for room
		h.look()
	}
}

func (h *heldSYNs) remove(one *heldSYN) {
	one.in.Remove(one.at)
	delete(h.byID, one.id)
	h.count.Store(int64(len(h.byID)))
}

// heldAt is the SYN at a place of a list, nil where there is none.
func heldAt(e *list.Element) *heldSYN {
	if e == nil {
		return nil
	}
	return e.Value.(*heldSYN) //nolint:forcetypeassert // nothing else is put there
}

// drop ends what a SYN holds.
func (one *heldSYN) drop() {
	if one.syn != nil {
		one.syn.DecRef()
	}
}

// forget drops the SYN of a connection that another SYN has begun.
func (h *heldSYNs) forget(id stack.TransportEndpointID) {
	if h.count.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if one := h.byID[id]; one != nil {
		h.remove(one)
		one.drop()
	}
}

// room says that a place may have become free.
func (h *heldSYNs) room() {
	if h.count.Load() > 0 {
		h.look()
	}
}

func (h *heldSYNs) look() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// inUse reports whether gVisor has an endpoint of id that is past its handshake: a
// SYN that the guest sent twice is for gVisor.
func (h *heldSYNs) inUse(id stack.TransportEndpointID) bool {
	ep := h.s.endpoint(id)
	return ep != nil && ep.EndpointState() != tcp.StateSynRecv
}

// run looks after the SYNs until the stack closes.
func (h *heldSYNs) run() {
	defer h.s.end()
	defer h.release()
	timer := time.NewTimer(lastLook)
	defer timer.Stop()
	for wait := firstLook; ; {
		timer.Reset(wait)
		due := timer.C
		if h.count.Load() == 0 {
			due = nil
		}
		select {
		case <-h.s.ctx.Done():
			return
		case <-h.wake:
			wait = firstLook
		case <-due:
			wait = min(2*wait, lastLook)
		}
		h.toPorts()
		for h.s.ctx.Err() == nil && h.toPlace() {
		}
		h.expire()
	}
}

// release drops what is held when the stack closes.
func (h *heldSYNs) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.released = true
	for _, one := range h.byID {
		h.remove(one)
		one.drop()
	}
}

// toPorts passes on the SYNs whose port is free, and those that have waited for too long.
func (h *heldSYNs) toPorts() {
	for _, one := range h.withPorts() {
		h.s.link.Deliver(one.frame)
	}
}

func (h *heldSYNs) withPorts() (all []*heldSYN) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var next *list.Element
	for e := h.ports.Front(); e != nil; e = next {
		next = e.Next()
		if one := heldAt(e); time.Since(one.since) > heldForPort || !h.inUse(one.id) {
			h.remove(one)
			all = append(all, one)
		}
	}
	return all
}

// toPlace begins the connection of the youngest SYN that waits for its place, and reports
// whether there was one and it could.
func (h *heldSYNs) toPlace() bool {
	h.mu.Lock()
	one := heldAt(h.places.Back())
	if one == nil {
		h.mu.Unlock()
		return false
	}
	// While admit looks, nobody else may drop it.
	h.remove(one)
	h.mu.Unlock()
	if one.why = h.s.tcp.admit(one.id, one.syn); one.why == admitted {
		h.s.tcp.start(one.id, one.syn)
		one.drop()
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.released, h.byID[one.id] != nil: // it came once more meanwhile
		one.drop()
		return false
	case len(h.byID) >= maxHeldSYNs: // others came meanwhile
		h.s.stats.synsRefused.Add(1)
		one.drop()
		return false
	}
	one.at = one.in.PushBack(one)
	h.byID[one.id] = one
	h.count.Store(int64(len(h.byID)))
	return false
}

// expire drops the SYNs that have waited for their place for too long.
func (h *heldSYNs) expire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for one := heldAt(h.places.Front()); one != nil && time.Since(one.since) > h.place; one = heldAt(h.places.Front()) {
		h.remove(one)
		h.s.stats.refused(one.why)
		one.drop()
	}
}
