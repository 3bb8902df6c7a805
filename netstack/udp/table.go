package udp

import (
	"net/netip"
	"sync"
	"time"
)

// shards splits the table, so that RX loops do not wait for each other.
const shards = 16

// shard is a part of the table: sessions by the guest's address, and in the order
// of their last use.
type shard struct {
	mu       sync.Mutex // guards the following fields
	sessions map[netip.AddrPort]*session
	recent   session // the list's head: next is the most recently used one
}

func (h *shard) init() {
	h.sessions = make(map[netip.AddrPort]*session)
	h.recent.next, h.recent.prev = &h.recent, &h.recent
}

func (h *shard) unlink(s *session) {
	s.prev.next, s.next.prev = s.next, s.prev
	s.prev, s.next = nil, nil
}

func (h *shard) pushFront(s *session) {
	s.prev, s.next = &h.recent, h.recent.next
	s.prev.next, s.next.prev = s, s
}

// shard is where a guest address belongs. A guest counts its ports upwards, which
// spreads them well.
func (n *NAT) shard(guest netip.AddrPort) *shard {
	return &n.table[guest.Port()%shards]
}

// session looks a session up and makes it the most recently used; nil when there is
// none.
func (n *NAT) session(guest netip.AddrPort) *session {
	h := n.shard(guest)
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[guest]
	if s != nil && h.recent.next != s {
		h.unlink(s)
		h.pushFront(s)
	}
	return s
}

// newSession makes a session, or returns the one that another RX loop made. The
// least recently used one makes room when there are too many.
func (n *NAT) newSession(guest netip.AddrPort) (*session, error) {
	n.now.Store(int64(n.clock())) // the poller's may stand still while there are no sessions
	h := n.shard(guest)
	h.mu.Lock()
	if n.closed.Load() {
		h.mu.Unlock()
		return nil, errClosed
	}
	s := h.sessions[guest]
	if s != nil {
		h.mu.Unlock()
		return s, nil
	}
	s = &session{nat: n, guest: guest, onlyDNS: true}
	s.out = newOutbound(n, guest, &n.count.nat)
	s.seen.Store(n.now.Load())
	h.sessions[guest] = s
	h.pushFront(s)
	n.count.nat.opened()
	open := n.count.nat.open.Load()
	h.mu.Unlock()
	switch {
	case open > uint64(n.limits.Sessions):
		n.evict(s)
	case open == 1:
		n.poller.signal() // sweeps are due from now on
	}
	return s, nil
}

// evict ends the least recently used session of the shard of the session that was
// just made, or of the next shard that has another.
func (n *NAT) evict(fresh *session) {
	first := int(fresh.guest.Port() % shards)
	for i := range shards {
		h := &n.table[(first+i)%shards]
		h.mu.Lock()
		oldest := h.recent.prev
		if oldest == &h.recent || oldest == fresh {
			h.mu.Unlock()
			continue
		}
		h.unlink(oldest)
		delete(h.sessions, oldest.guest)
		h.mu.Unlock()
		oldest.close(evicted)
		return
	}
}

// drop takes a session out of the table and ends it.
func (n *NAT) drop(s *session, why reason) {
	h := n.shard(s.guest)
	h.mu.Lock()
	if h.sessions[s.guest] == s {
		h.unlink(s)
		delete(h.sessions, s.guest)
	}
	h.mu.Unlock()
	s.close(why)
}

// sweep ends the sessions and clients that have been idle for too long at now, and gives up what is
// still in pieces.
func (n *NAT) sweep(now time.Duration) {
	var idle []*session
	for i := range n.table {
		h := &n.table[i]
		h.mu.Lock()
		for s := h.recent.next; s != &h.recent; {
			next := s.next
			if now-time.Duration(s.seen.Load()) >= s.idle() {
				h.unlink(s)
				delete(h.sessions, s.guest)
				idle = append(idle, s)
			}
			s = next
		}
		h.mu.Unlock()
	}
	for _, s := range idle {
		s.close(expired)
	}
	n.sweepClients(now)
	n.reassembler.expire(now, func(quote []byte) { n.complain(incomplete, quote) })
}
