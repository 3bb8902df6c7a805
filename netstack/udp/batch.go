package udp

import (
	"errors"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// batches bounds the flows that can collect datagrams between two Flushes; the
	// datagrams of further ones are sent one by one.
	batches = 32
	// batchMax is the payload of one message, UDP_SEGMENT or not: what IPv4 can carry.
	batchMax = 65507
	// batchable is the largest datagram worth a copy: above it the system call that a batch saves
	// costs less than the copy.
	batchable = 8192
)

// hop is where a datagram goes on the host's side.
type hop struct {
	socket  *socket
	name    sockaddr
	control control
}

// limit hands the TTL of a datagram on.
func (h *hop) limit(ttl uint8) {
	if ttl != usualTTL {
		h.control = hopLimit(ttl, unix.SOL_IPV6, unix.IPV6_HOPLIMIT)
		if h.name.n == unix.SizeofSockaddrInet4 {
			h.control = hopLimit(ttl, unix.SOL_IP, unix.IP_TTL)
		}
	}
}

// batch is a run of datagrams that wait to be sent as one message.
type batch struct {
	buf     [batchMax]byte
	n       int
	count   int
	segment int
	hop     hop
	dst     netip.AddrPort // as the guest knows it
}

// outbound sends the datagrams of one flow of the guest, in order.
type outbound struct {
	nat     *NAT
	guest   netip.AddrPort
	traffic *traffic

	mu    sync.Mutex // guards the following fields
	batch *batch     // nil unless in pending.dirty
	// segmentMax is the largest segment that the kernel may still be asked to cut: it refuses those above
	// the path's MTU, and all of them on a device without checksum offload.
	segmentMax int
}

func newOutbound(n *NAT, guest netip.AddrPort, t *traffic) outbound {
	return outbound{nat: n, guest: guest, traffic: t, segmentMax: math.MaxInt}
}

// send takes d over h, at once or in a batch.
func (o *outbound) send(h *hop, d *datagram) {
	o.mu.Lock()
	defer o.mu.Unlock()
	size := len(d.payload)
	if d.segment > 0 || size == 0 || size > batchable {
		o.flush()
		o.transmit(h, d.dst, d.payload, d.segment)
		return
	}
	b := o.batch
	if b != nil && b.count > 0 && (size > b.segment || b.n+size > batchMax || d.dst != b.dst || *h != b.hop) {
		o.flush()
	}
	if b == nil {
		if b = o.nat.pending.take(o); b == nil {
			o.transmit(h, d.dst, d.payload, 0)
			return
		}
		o.batch = b
	}
	if b.count == 0 {
		b.hop, b.dst, b.segment = *h, d.dst, size
	}
	b.n += copy(b.buf[b.n:], d.payload)
	b.count++
	if size < b.segment || b.count == maxSegments {
		o.flush()
	}
}

// flush sends what is in the batch. The batch stays until the NAT's Flush.
func (o *outbound) flush() {
	b := o.batch
	if b == nil || b.count == 0 {
		return
	}
	segment := 0
	if b.count > 1 {
		segment = b.segment
	}
	o.transmit(&b.hop, b.dst, b.buf[:b.n], segment)
	b.n, b.count = 0, 0
}

// transmit sends a datagram, or a run of datagrams of segment bytes in as few
// messages as the kernel takes.
func (o *outbound) transmit(h *hop, dst netip.AddrPort, payload []byte, segment int) {
	for segment > 0 && segment <= o.segmentMax && len(payload) > segment {
		b := payload[:min(len(payload), segment*maxSegments)]
		err := attempt(h, b, segment)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.EIO) ||
			errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOPROTOOPT) {
			o.segmentMax = segment - 1
			break
		}
		o.account(err, dst, b, segment)
		payload = payload[len(b):]
		if len(payload) == 0 {
			return
		}
	}
	if segment == 0 {
		segment = max(len(payload), 1)
	}
	for {
		b := payload[:min(len(payload), segment)]
		o.account(attempt(h, b, 0), dst, b, segment)
		payload = payload[len(b):]
		if len(payload) == 0 {
			return
		}
	}
}

// attempt sends once more after an error that may be that of an earlier datagram:
// with IP_RECVERR a socket reports ICMP errors to whoever calls next (ip(7)).
func attempt(h *hop, payload []byte, segment int) error {
	err := h.socket.send(&h.name, &h.control, payload, segment)
	switch {
	case err == nil, errors.Is(err, unix.EAGAIN), errors.Is(err, errClosed), errors.Is(err, unix.EINVAL):
		return err
	}
	return h.socket.send(&h.name, &h.control, payload, segment)
}

func (o *outbound) account(err error, dst netip.AddrPort, payload []byte, segment int) {
	datagrams := max((len(payload)+segment-1)/segment, 1)
	c := &o.nat.count
	switch {
	case err == nil:
		o.traffic.sent(datagrams, len(payload))
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
		c.buffer.Add(uint64(datagrams))
	case errors.Is(err, errClosed):
		c.closed.Add(uint64(datagrams))
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		c.unreachable.Add(uint64(datagrams))
		o.nat.complainAbout(o.guest, dst, len(payload), unreachable)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		c.denied.Add(uint64(datagrams)) // by a route or a filter of the host's
		o.nat.complainAbout(o.guest, dst, len(payload), prohibited)
	default:
		c.send.Add(uint64(datagrams))
	}
}

// pending are the flows with a batch.
type pending struct {
	some atomic.Bool // whether Flush has anything to do

	mu    sync.Mutex // guards the following fields
	dirty [batches]*outbound
	n     int
	free  []*batch
	made  int
}

// take gives o a batch and notes it for Flush; nil when there is none left.
func (p *pending) take(o *outbound) *batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n == len(p.dirty) {
		return nil
	}
	var b *batch
	switch k := len(p.free); {
	case k > 0:
		b, p.free = p.free[k-1], p.free[:k-1]
	case p.made < batches:
		b = new(batch)
		p.made++
	default:
		return nil // in the hands of a Flush
	}
	p.dirty[p.n] = o
	p.n++
	p.some.Store(true)
	return b
}

// Flush sends the datagrams that wait for more of their run. The RX loop calls it
// when it is about to park, and at the latest after some dozens of frames of
// whatever kind, since nothing else bounds how long a datagram waits.
func (n *NAT) Flush() {
	p := &n.pending
	if !p.some.Load() {
		return
	}
	p.mu.Lock()
	dirty, count := p.dirty, p.n
	clear(p.dirty[:p.n])
	p.n = 0
	p.some.Store(false)
	p.mu.Unlock()
	for _, o := range dirty[:count] {
		o.mu.Lock()
		o.flush()
		b := o.batch
		o.batch = nil
		o.mu.Unlock()
		b.hop = hop{}
		p.mu.Lock()
		p.free = append(p.free, b)
		p.mu.Unlock()
	}
}
