package icmp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"slipway/netstack/internal/wire"
)

// key is what an echo request is answered by.
type key struct {
	guest, dst netip.Addr
	id         uint16
}

// session is the requests of one id to one destination.
type session struct {
	relay  *Relay
	key    key
	to     netip.Addr // what Config.Route made of the destination
	pinger *pinger
	used   atomic.Int64 // Unix nanoseconds of the last request
}

// session looks a session up or makes one, in the place of the least recently used
// one when there are too many.
func (r *Relay) session(k key, to netip.Addr) (*session, error) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[k]
	if s != nil && s.to == to {
		s.used.Store(now.UnixNano())
		return s, nil
	}
	if r.closed {
		return nil, os.ErrClosed
	}
	if s != nil { // policy leads elsewhere now
		r.endLocked(s)
	}
	if len(r.sessions) >= r.limits.Sessions {
		var oldest *session
		for _, s := range r.sessions {
			if oldest == nil || s.used.Load() < oldest.used.Load() {
				oldest = s
			}
		}
		r.endLocked(oldest)
		r.count.evicted.Add(1)
	}
	p, err := r.open(to)
	if err != nil {
		return nil, err
	}
	s = &session{relay: r, key: k, to: to, pinger: p}
	s.used.Store(now.UnixNano())
	r.sessions[k] = s
	r.count.total.Add(1)
	r.tasks.Go(s.receive)
	return s, nil
}

func (r *Relay) endLocked(s *session) {
	if r.sessions[s.key] == s {
		delete(r.sessions, s.key)
	}
	s.pinger.close()
}

// send passes a request on. The kernel puts id and checksum right.
func (s *session) send(q *request) error {
	return s.pinger.send(q.echo, s.to, int(q.ttl)-1)
}

// receive gives the guest what comes back, until the session is idle or ended.
func (s *session) receive() {
	r := s.relay
	defer func() {
		r.mu.Lock()
		r.endLocked(s)
		r.mu.Unlock()
	}()
	for {
		last := time.Unix(0, s.used.Load())
		s.pinger.wakeAt(last.Add(r.limits.Idle))
		err := s.pinger.receive(&r.buffers, s.reply, s.failed)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if time.Since(time.Unix(0, s.used.Load())) >= r.limits.Idle {
			return
		}
	}
}

// reply gives an echo reply to the guest.
func (s *session) reply(m *buffer) {
	r := s.relay
	kind, proto := uint8(echoReply4), uint8(wire.ProtoICMP)
	if s.to.Is6() {
		kind = echoReply6
	}
	if m.from != s.to || len(m.data) < wire.ICMPLen || m.data[0] != kind {
		r.count.stray.Add(1)
		return
	}
	start := uint16(0)
	if kind = echoReply4; s.key.guest.Is6() {
		kind, proto = echoReply6, wire.ProtoICMPv6
		start = wire.PseudoSum(s.key.dst, s.key.guest, proto, len(m.data))
	}
	head, rest := m.data[:wire.ICMPLen], m.data[wire.ICMPLen:]
	head[0], head[1], head[2], head[3] = kind, 0, 0, 0
	binary.BigEndian.PutUint16(head[4:], s.key.id)
	binary.BigEndian.PutUint16(head[2:], ^wire.Sum(rest, wire.Sum(head, start)))
	if err := r.link.Packet(&m.scratch, s.key.dst, s.key.guest, proto, m.ttl, head, rest); err != nil {
		r.count.write.Add(1)
		return
	}
	r.count.replies.Add(1)
}

// failed gives the guest an ICMP error about one of its requests, whose ICMP
// message m has.
func (s *session) failed(m *buffer, e wire.ExtendedError) {
	r := s.relay
	if len(m.data) < wire.ICMPLen || !r.limiter.Allow() {
		r.count.stray.Add(1)
		return
	}
	var b [wire.IPv6Len + wire.ICMPLen]byte
	n := wire.HeaderLen(s.key.guest)
	kind := uint8(echoRequest6)
	if s.key.guest.Is4() {
		kind = echoRequest4
		wire.PutIPv4(b[:], s.key.guest, s.key.dst, wire.ProtoICMP, 1, min(n+len(m.data), 65535), 0, 0)
	} else {
		wire.PutIPv6(b[:], s.key.guest, s.key.dst, wire.ProtoICMPv6, 1, min(len(m.data), 65535))
	}
	copy(b[n:], m.data[:wire.ICMPLen])
	b[n] = kind
	binary.BigEndian.PutUint16(b[n+4:], s.key.id)
	quote := b[:n+wire.ICMPLen]
	gateway := r.gateway(s.key.guest)
	from := e.Offender
	switch {
	case from == s.to:
		from = s.key.dst
	case from.Is4() != s.key.guest.Is4(), !from.IsGlobalUnicast():
		from = gateway // an address that only means something on the host
	}
	if !from.IsValid() {
		return
	}
	if e.V6 != s.key.guest.Is6() {
		r.sendError(wire.HostUnreachable(from, quote))
		return
	}
	r.sendError(wire.Error{From: from, Type: e.Type, Code: e.Code, Info: e.Info, Quote: quote})
}
