package netstack

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"slipway/netstack/internal/pace"
	"slipway/netstack/relay"
)

const (
	// dialTimeout ends a dial that nobody answers. The guest's kernel sends its SYN
	// again after that, which dials again.
	dialTimeout = 30 * time.Second
)

const (
	// dialsPerCPU is how many connections that come to nothing the guest may begin a
	// second, see package pace. The SYNs of others wait, see heldSYNs.
	dialsPerCPU = 1000
	// dialGrace is how old a pending dial is before it makes room for a new one: most of
	// the world has answered by then.
	dialGrace = 250 * time.Millisecond
	// maxGivenUp bounds the dials that have made room but have not ended yet.
	maxGivenUp = 256
	// maxOverdue handshakes do not have to make room for others, handshakeTime is how long
	// one may take. The guest's kernel answers at once, but where the device was full the
	// answer comes again only with the SYN-ACK, after ever longer times.
	maxOverdue    = 256
	handshakeTime = 30 * time.Second
	// overdueCost is for how many more connections one counts whose handshake the guest
	// does not finish: the host had it already.
	overdueCost = 5
)

// errUnfinished ends a handshake that takes too long.
var errUnfinished = errors.New("handshake not finished in time")

// errGivenUp ends a dial that made room for another. The guest hears nothing, and its
// kernel sends the SYN again.
var errGivenUp = errors.New("given up for another dial")

// Keepalive of both legs of a flow: NATs on the path stay open, dead peers are
// noticed.
const (
	keepaliveIdle     = 60 * time.Second
	keepaliveInterval = 30 * time.Second
	keepaliveCount    = 4
)

var keepalive = net.KeepAliveConfig{Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount}

// guestTCP accepts the guest's connections: the host is dialled first, and the
// guest's handshake is finished only when that succeeded, so that connect(2) in
// the guest tells the truth.
type guestTCP struct {
	s             *Stack
	forward       *tcp.Forwarder
	pace          *pace.Limiter
	handshakes    *handshakes
	handshakeTime time.Duration

	mu sync.Mutex
	// requests are those in flight, at most Limits.PendingDials and maxGivenUp more.
	requests map[stack.TransportEndpointID]*request
	pending  int       // requests that were not given up
	dialing  list.List // of *request, oldest first: those of pending that the host has not answered
}

// request is a connection of the guest that is being made.
type request struct {
	id      stack.TransportEndpointID
	syn     *stack.PacketBuffer // for the ICMP error that may be the answer
	since   time.Time
	ctx     context.Context
	cancel  context.CancelCauseFunc
	taken   bool          // by the goroutine that serves it
	givenUp bool          // it is not one of guestTCP.pending
	dialing *list.Element // nil where it is not in that list
}

// admission is whether a SYN may become a request.
type admission int

const (
	admitted admission = iota
	// noPlace: Limits.PendingDials are being made, and none of them makes room.
	noPlace
	// tooFast: too many that come to nothing were begun a moment ago, or may yet come to
	// nothing.
	tooFast
)

func newGuestTCP(s *Stack) *guestTCP {
	t := &guestTCP{
		s: s, pace: pace.New(dialsPerCPU), handshakes: newHandshakes(s), handshakeTime: cmp.Or(s.cfg.handshakeTime, handshakeTime),
		requests: make(map[stack.TransportEndpointID]*request),
	}
	// The limit is enforced in admit, where it is counted; the forwarder's own
	// is only the backstop.
	t.forward = tcp.NewForwarder(s.stack, relay.StartWindow, 2*(s.cfg.Limits.PendingDials+maxGivenUp), t.accept)
	return t
}

// handle is gVisor's handler for segments that belong to no endpoint. It runs in
// the receive loop, and where a SYN that waited for its port is delivered late.
func (t *guestTCP) handle(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if flags := header.TCP(pkt.TransportHeader().Slice()).Flags(); !flags.Contains(header.TCPFlagSyn) || flags.Contains(header.TCPFlagAck) {
		return false // gVisor answers with RST
	}
	if why := t.admit(id, pkt); why != admitted {
		t.s.held.hold(id, pkt, why)
		return true
	}
	t.s.held.forget(id)
	return t.start(id, pkt)
}

// start begins what was admitted. It returns false where the SYN is malformed.
func (t *guestTCP) start(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if t.forward.HandlePacket(id, pkt) {
		return true
	}
	if r := t.take(id); r != nil {
		t.end(r)
	}
	return false
}

// admit notes a SYN as a request, unless it is one already or a limit is reached. Where too
// many are being made, one that has waited for long makes room, so that destinations that
// are dead and handshakes that nobody finishes hold nobody up.
func (t *guestTCP) admit(id stack.TransportEndpointID, pkt *stack.PacketBuffer) admission {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.requests[id] != nil {
		return admitted
	}
	if n := t.handshakes.sweep(); n > 0 {
		t.pace.Charge(float64(n * overdueCost))
		if t.handshakes.overdueNow() > maxOverdue {
			t.giveUpHandshake()
		}
	}
	if !t.pace.Take() {
		return tooFast
	}
	now := time.Now()
	if t.pending >= t.s.cfg.Limits.PendingDials && !t.makeRoom(now) {
		t.pace.Give()
		return noPlace
	}
	r := &request{id: id, syn: pkt.Clone(), since: now}
	r.ctx, r.cancel = context.WithCancelCause(t.s.ctx)
	t.requests[id] = r
	t.pending++
	r.dialing = t.dialing.PushBack(r)
	return admitted
}

// makeRoom gives up a request for another, and reports whether there was one to give up.
func (t *guestTCP) makeRoom(now time.Time) bool {
	if t.giveUpHandshake() {
		return true
	}
	if t.dialing.Len() == 0 || len(t.requests)-t.pending >= maxGivenUp {
		return false
	}
	oldest := t.dialing.Front().Value.(*request) //nolint:forcetypeassert // nothing else is put there
	if now.Sub(oldest.since) < dialGrace {
		return false
	}
	t.giveUp(oldest)
	return true
}

// giveUpHandshake gives up the one that is overdue for longest, where it is for long enough.
func (t *guestTCP) giveUpHandshake() bool {
	if len(t.requests)-t.pending >= maxGivenUp {
		return false
	}
	id, ok := t.handshakes.yields()
	r := t.requests[id]
	if !ok || r == nil || r.givenUp {
		return false
	}
	t.giveUp(r)
	return true
}

// giveUp lets a request make room for another. The goroutine that serves it ends it.
func (t *guestTCP) giveUp(r *request) {
	t.s.stats.refused(noPlace)
	t.leave(r)
	r.cancel(errGivenUp)
	if !r.taken {
		delete(t.requests, r.id)
		r.syn.DecRef()
	}
}

// leave frees the place of a request.
func (t *guestTCP) leave(r *request) {
	t.answered(r)
	if !r.givenUp {
		r.givenUp = true
		t.pending--
	}
}

// answered takes a request out of those that the host has not answered.
func (t *guestTCP) answered(r *request) {
	if r.dialing != nil {
		t.dialing.Remove(r.dialing)
		r.dialing = nil
	}
}

// shake notes that it is for the guest now to finish its handshake.
func (t *guestTCP) shake(r *request) *handshake {
	t.mu.Lock()
	t.answered(r)
	t.mu.Unlock()
	return t.handshakes.begin(r.id)
}

// end forgets a request.
func (t *guestTCP) end(r *request) {
	t.mu.Lock()
	delete(t.requests, r.id)
	t.leave(r)
	t.mu.Unlock()
	r.cancel(nil)
	r.syn.DecRef()
	t.s.held.room()
}

// take returns the request of id to the goroutine that serves it. There is none where
// the SYN came once more while the request was ending.
func (t *guestTCP) take(id stack.TransportEndpointID) *request {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.requests[id]
	if r == nil || r.taken {
		return nil
	}
	r.taken = true
	return r
}

// accept is the life of one flow from its SYN on, in a goroutine of its own. While a flow
// waits, as little as can be lies on its stack: the garbage collector halves one of which
// less than a quarter is in use.
func (t *guestTCP) accept(r *tcp.ForwarderRequest) {
	growStack(r)
	if ep, queue, conn := t.open(r); ep != nil {
		t.s.relay(t.s.ctx, ep, queue, conn, &t.s.stats.tcp)
		t.s.end()
	}
}

// open establishes the flow that a SYN asks for. The caller ends it; nil: there is none.
func (t *guestTCP) open(r *tcp.ForwarderRequest) (tcpip.Endpoint, *waiter.Queue, relay.Socket) {
	req := t.take(r.ID())
	if req == nil {
		r.Complete(false) // the guest sends its SYN again
		return nil, nil, nil
	}
	defer t.end(req)
	if !t.s.begin() {
		r.Complete(false)
		return nil, nil, nil
	}
	queue := new(waiter.Queue)
	ep, conn := t.establish(r, req, queue)
	if ep == nil {
		t.s.end()
	}
	return ep, queue, conn
}

// growStack makes room at once for what a flow needs: to grow step by step, with ever more
// frames to move, is a twentieth of the time of a short flow.
//
//go:noinline
func growStack(r *tcp.ForwarderRequest) (used byte) {
	var frame [5 << 10]byte
	return frame[r.ID().RemotePort%uint16(len(frame))]
}

// establish dials the host's side and then finishes the guest's handshake. It returns nil
// where either fails, of which the guest has then heard.
func (t *guestTCP) establish(r *tcp.ForwarderRequest, req *request, queue *waiter.Queue) (tcpip.Endpoint, relay.Socket) {
	conn, err := t.dial(req, addrPort(req.id.LocalAddress, req.id.LocalPort))
	if err != nil {
		t.refuse(r, req, err)
		return nil, nil
	}
	t.s.stats.dialTime.Observe(time.Since(req.since))
	hs := t.shake(req)
	tooLong := time.AfterFunc(t.handshakeTime, func() { req.cancel(errUnfinished) })
	defer tooLong.Stop()
	handshake, aborted := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(req.ctx, func() {
		defer close(aborted)
		t.handshakes.close(hs)
		t.abort(req.id, handshake)
	})
	ep, terr := r.CreateEndpoint(queue)
	close(handshake)
	if !stop() {
		// One who aborts may have looked just before the handshake was finished. It must not
		// purge a receive queue that the relay has lent to the kernel.
		<-aborted
	}
	r.Complete(false)
	end := t.handshakes.end(hs)
	if terr == nil && !end.finished {
		// Its answer came in IP fragments or behind IPv6 extension headers, in which no
		// kernel sends it. The receive loop has not seen its acknowledgment number, and
		// gVisor has not looked at it.
		ep.Abort()
		terr = &tcpip.ErrConnectionAborted{}
	}
	if terr != nil {
		t.s.stats.handshakesFailed.Add(1)
		if !end.charged {
			t.pace.Charge(overdueCost)
		}
		relay.Reset(conn)
		return nil, nil
	}
	if end.charged {
		t.pace.Charge(-overdueCost)
	}
	t.pace.Give()
	return ep, conn
}

// abort ends a handshake that the guest does not finish, which gVisor would wait for
// two minutes for. It may not have begun yet.
func (t *guestTCP) abort(id stack.TransportEndpointID, handshake <-chan struct{}) {
	look := time.NewTicker(lastLook)
	defer look.Stop()
	for {
		if ep := t.s.endpoint(id); ep != nil && ep.EndpointState() == tcp.StateSynRecv {
			ep.Abort()
		}
		select {
		case <-handshake:
			return
		case <-look.C:
		}
	}
}

// dial opens the host's side of a flow to dst.
func (t *guestTCP) dial(req *request, dst netip.AddrPort) (relay.Socket, error) {
	s := t.s
	if s.flowsFull() {
		return nil, fmt.Errorf("%d flows: %w", s.cfg.Limits.Flows, ErrLimit)
	}
	s.stats.dialsPending.Add(1)
	defer s.stats.dialsPending.Add(-1)
	if s.dns != nil && s.cfg.Network.isDNS(dst.Addr()) && dst.Port() == dnsPort {
		conn, err := s.dns.DialTCP(req.ctx)
		if err != nil {
			return nil, err
		}
		if tc, ok := conn.(*net.TCPConn); ok {
			return tc, nil
		}
		return nil, errors.Join(fmt.Errorf("dial resolver: got a %T", conn), conn.Close())
	}
	to, err := s.route(dst)
	if err != nil {
		return nil, err
	}
	from := s.cfg.Outbound4
	if to.Addr().Is6() {
		from = s.cfg.Outbound6
	}
	return relay.Dial(req.ctx, from, to, dialTimeout, keepalive)
}

// refuse answers a SYN as the host's kernel answered the dial.
func (t *guestTCP) refuse(r *tcp.ForwarderRequest, req *request, err error) {
	if cause := context.Cause(req.ctx); cause != nil {
		err = cause
	}
	answer := t.s.stats.dialFailed(err)
	if answer == answerUnreachable {
		t.unreachable(req.syn)
	}
	r.Complete(answer == answerReset)
}

// unreachable sends the ICMP error that makes connect(2) in the guest fail at
// once (RFC 1122 section 4.2.3.9, RFC 4443 section 3.1).
func (t *guestTCP) unreachable(syn *stack.PacketBuffer) {
	switch p := t.s.stack.NetworkProtocolInstance(syn.NetworkProtocolNumber).(type) {
	case stack.RejectIPv4WithHandler:
		_ = p.SendRejectionError(syn, stack.RejectIPv4WithICMPNetUnreachable, true)
	case stack.RejectIPv6WithHandler:
		_ = p.SendRejectionError(syn, stack.RejectIPv6WithICMPNoRoute, true)
	}
}

// relay joins an accepted endpoint and its host socket until the flow ends.
func (s *Stack) relay(ctx context.Context, ep tcpip.Endpoint, queue *waiter.Queue, conn relay.Socket, bytes ...*relay.Bytes) {
	s.stats.flowsOpen.Add(1)
	s.stats.flowsTotal.Add(1)
	tuneEndpoint(ep)
	begin := time.Now()
	err := relay.Run(ctx, ep, queue, conn, &s.guest, func() { s.stats.flowsOpen.Add(-1) }, bytes...)
	s.stats.flowTime.Observe(time.Since(begin))
	switch {
	case err == nil:
	case errors.Is(err, relay.ErrReset):
		s.stats.flowsReset.Add(1)
	case errors.Is(err, relay.ErrMemory): // the budget counts it
	default:
		s.stats.flowsFailed.Add(1)
	}
}

func tuneEndpoint(ep tcpip.Endpoint) {
	ep.SocketOptions().SetDelayOption(false)
	ep.SocketOptions().SetKeepAlive(true)
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return netip.AddrPortFrom(addr, port)
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}
