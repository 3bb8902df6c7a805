package udp

import (
	"errors"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"slipway/netstack/internal/wire"
)

// limiter holds ICMP errors to the guest back.
type limiter struct{ *rate.Limiter }

func newLimiter(perSecond int) limiter {
	return limiter{rate.NewLimiter(rate.Limit(perSecond), max(perSecond/2, 1))}
}

// grievance is why a datagram of the guest goes no further.
type grievance int

const (
	prohibited grievance = iota
	unreachable
	timeExceeded
	incomplete // fragments of it are missing
)

// refuse counts a datagram that Config.Route refused and tells the guest.
func (n *NAT) refuse(d *datagram, err error) {
	why := prohibited
	if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) {
		why = unreachable
		n.count.unreachable.Add(uint64(d.count()))
	} else {
		n.count.denied.Add(uint64(d.count()))
	}
	n.complain(why, d.ip)
}

// complain sends an ICMP error about the packet that quote begins with.
func (n *NAT) complain(why grievance, quote []byte) {
	from := n.gateway[0]
	if quote[0]>>4 == 6 {
		from = n.gateway[1]
	}
	if !from.IsValid() {
		return
	}
	switch why {
	case prohibited:
		n.sendError(wire.Prohibited(from, quote))
	case unreachable:
		n.sendError(wire.HostUnreachable(from, quote))
	case timeExceeded:
		n.sendError(wire.TimeExceeded(from, quote))
	case incomplete:
		n.sendError(wire.ReassemblyTimeExceeded(from, quote))
	}
}

// complainAbout sends an ICMP error about a datagram that is gone.
func (n *NAT) complainAbout(guest, dst netip.AddrPort, length int, why grievance) {
	b := quotes.Get().(*quote)
	defer quotes.Put(b)
	n.complain(why, b.of(guest, dst, length))
}

func (n *NAT) sendError(e wire.Error) {
	if !n.errors.Allow() {
		n.count.icmpLimited.Add(1)
		return
	}
	s := n.scratch.Get().(*wire.Scratch)
	defer n.scratch.Put(s)
	if err := n.link.Error(s, e); err != nil {
		n.count.write.Add(1)
		return
	}
	n.count.icmp.Add(1)
}

// quote is the beginning of a datagram of the guest, made again for an error about
// it: the headers are what its kernel finds the socket by.
type quote [wire.IPv6Len + wire.UDPLen]byte

var quotes = sync.Pool{New: func() any { return new(quote) }}

func (q *quote) of(guest, dst netip.AddrPort, length int) []byte {
	n := wire.HeaderLen(guest.Addr())
	if guest.Addr().Is4() {
		wire.PutIPv4(q[:], guest.Addr(), dst.Addr(), wire.ProtoUDP, 1, min(n+wire.UDPLen+length, 65535), 0, 0)
	} else {
		wire.PutIPv6(q[:], guest.Addr(), dst.Addr(), wire.ProtoUDP, 1, min(wire.UDPLen+length, 65535))
	}
	wire.PutUDP(q[n:], guest.Port(), dst.Port(), wire.UDPLen+length, 0)
	return q[:n+wire.UDPLen]
}

// failed implements owner: the host's network sent an ICMP error about a datagram
// of the session, which the guest gets as if the host were a router on the way.
func (s *session) failed(e *sendError) {
	n := s.nat
	s.mu.Lock()
	var dst netip.AddrPort
	reporter := e.Offender
	for i := range s.peers {
		p := &s.peers[i]
		if p.host == e.to {
			dst = p.guest
		}
		if p.host.Addr() == e.Offender {
			reporter = p.guest.Addr()
		}
	}
	s.mu.Unlock()
	if !dst.IsValid() {
		return // long ago: there have been other peers since
	}
	family := 1
	if dst.Addr().Is4() {
		family = 0
	}
	b := quotes.Get().(*quote)
	defer quotes.Put(b)
	quote := b.of(s.guest, dst, e.length)
	if e.V6 != (family == 1) {
		// Route went to the other family, whose numbers mean other things.
		n.complain(unreachable, quote)
		return
	}
	if reporter.Is4() != (family == 0) || reporter == e.Offender && !n.foreign(reporter) {
		reporter = n.gateway[family]
	}
	if !reporter.IsValid() {
		return
	}
	n.sendError(wire.Error{From: reporter, Type: e.Type, Code: e.Code, Info: e.Info, Quote: quote})
}
