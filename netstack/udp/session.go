package udp

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// reroute is how long an answer of Config.Route is used before it is asked again,
// so that a policy that changes reaches flows that exist. To ask may cost system calls (which
// addresses are the host's?), so not for each datagram.
const reroute = 3 * time.Second

// session is one address and port of the guest.
type session struct {
	nat        *NAT
	guest      netip.AddrPort
	prev, next *session // shard's list, guarded by its mutex

	seen    atomic.Int64 // time of the last datagram in either direction, in the NAT's nanoseconds
	replied atomic.Bool
	out     outbound

	mu       sync.Mutex // guards the following fields
	closed   bool
	onlyDNS  bool       // sends to port 53 and nothing else
	sockets  [2]*socket // by the host's family: IPv4, IPv6
	peers    []peer
	lastSent int // indices in peers, where the next look-up starts
	lastGot  int
}

// peer is an address that the guest has sent to.
type peer struct {
	guest  netip.AddrPort // as the guest knows it
	host   netip.AddrPort // what Config.Route made of it
	hop    hop
	routed int64 // when Config.Route was asked
	used   int64
}

// known looks a destination up. It returns false when Config.Route must be asked
// (again), found tells whether it was before.
func (s *session) known(dst netip.AddrPort, now int64) (h hop, found, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.lastSent
	if i >= len(s.peers) || s.peers[i].guest != dst {
		i = s.find(dst)
		if i < 0 {
			return hop{}, false, false
		}
		s.lastSent = i
	}
	p := &s.peers[i]
	if now-p.routed >= int64(reroute) {
		return hop{}, true, false
	}
	p.used = now
	return p.hop, true, true
}

func (s *session) find(dst netip.AddrPort) int {
	for i := range s.peers {
		if s.peers[i].guest == dst {
			return i
		}
	}
	return -1
}

// forget removes a destination that policy no longer allows.
func (s *session) forget(dst netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.find(dst); i >= 0 {
		last := len(s.peers) - 1
		s.peers[i] = s.peers[last]
		s.peers = s.peers[:last]
	}
}

// learn notes where a destination leads to, in the place of the least recently used
// one when there are too many.
func (s *session) learn(dst, host netip.AddrPort, now int64) (hop, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return hop{}, errClosed
	}
	k := 1
	if host.Addr().Is4() {
		k = 0
	}
	if s.sockets[k] == nil {
		fd, err := open(host.Addr(), s.nat.outbound[k])
		if err != nil {
			return hop{}, err
		}
		if s.sockets[k], err = s.nat.poller.add(fd, s); err != nil {
			return hop{}, err
		}
	}
	if dst.Port() != dnsPort {
		s.onlyDNS = false
	}
	p := peer{guest: dst, host: host, routed: now, used: now}
	p.hop = hop{socket: s.sockets[k], name: sockaddrOf(host)}
	i := s.find(dst)
	switch {
	case i >= 0:
		s.peers[i] = p
	case len(s.peers) < s.nat.limits.Peers:
		i = len(s.peers)
		s.peers = append(s.peers, p)
	default:
		i = 0
		for j := range s.peers {
			if s.peers[j].used < s.peers[i].used {
				i = j
			}
		}
		s.peers[i] = p
	}
	s.lastSent = i
	return p.hop, nil
}

// accept implements owner.
func (s *session) accept(m *message) (from, to netip.AddrPort, ok bool) {
	from, ok = s.shown(m.src)
	if !ok {
		s.nat.count.filtered.Add(uint64(m.datagrams()))
		return from, to, false
	}
	s.seen.Store(s.nat.now.Load())
	if !s.replied.Load() && s.replied.CompareAndSwap(false, true) {
		s.nat.pace.Give()
	}
	return from, s.guest, true
}

// shown is the address under which the guest sees a host address, if it is let
// through: one that the guest has sent to, from any port (RFC 4787 section 5).
func (s *session) shown(src netip.AddrPort) (netip.AddrPort, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.lastGot; i < len(s.peers) && s.peers[i].host == src {
		return s.peers[i].guest, true
	}
	same := -1
	for i := range s.peers {
		p := &s.peers[i]
		if p.host == src {
			s.lastGot = i
			return p.guest, true
		}
		if p.host.Addr() == src.Addr() && (same < 0 || p.used > s.peers[same].used) {
			same = i
		}
	}
	if same >= 0 {
		return netip.AddrPortFrom(s.peers[same].guest.Addr(), src.Port()), true
	}
	return netip.AddrPort{}, false
}

// idle is after which silence the session ends.
func (s *session) idle() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.nat.limits
	switch {
	case s.onlyDNS:
		return l.IdleDNS
	case s.replied.Load():
		return l.Idle
	}
	return l.IdleUnreplied
}

// close ends the session, which is no longer in the table.
func (s *session) close(why reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	for i, k := range s.sockets {
		if k != nil {
			s.nat.poller.remove(k)
			s.sockets[i] = nil
		}
	}
	s.nat.count.nat.closed(why)
}
