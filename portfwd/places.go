package portfwd

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"slipway/netstack/relay"
)

// DefaultConnections is what a zero Limits.Connections means. With two descriptors for each it
// fits a limit of 65,536 open files, beside all that the container itself may open.
const DefaultConnections = 8192

// leastRoom is how many clients may wait for a place at least.
const leastRoom = 64

// clientBits is how much of an IPv6 address names a client: a host chooses the rest of it
// by itself (RFC 4291 §2.5.4, RFC 8981).
const clientBits = 64

// places are what the connections of all published TCP ports share. A client that finds none
// waits: in the kernel's backlog while all places are taken, accepted while there are some that
// its address may not have.
//
// An address may take another place while it holds less than nine times as many as are free, and
// the last one of all only if it has none (the dynamic threshold of Choudhury and Hahne, Dynamic
// queue length thresholds for shared-memory packet switches, 1998). So one address alone gets nine
// tenths of the places and never more, ten addresses that take all that they get leave one in a
// hundred, and whoever has few connections finds a place.
type places struct {
	limit, room int
	full        func(client netip.Addr) // says that a client waits, or was refused; not valid: some client
	freed       func()                  // says that there are places again

	open atomic.Int64 // changed under mu only

	mu      sync.Mutex // guards the following fields
	waiting int
	waited  uint64
	shares  map[netip.Addr]*share // by client, of those that have a place or wait
	turns   []*share              // those with clients that wait, in the order of their turns
	more    chan struct{}         // not nil: somebody has stopped to accept until it is closed
}

// share is what one client address has.
type share struct {
	held  int // places
	queue []waiter
}

// waiter is a connection that waits for a place.
type waiter struct {
	port *port
	relay.Waiter
}

func newPlaces(limit int, full func(netip.Addr), freed func()) *places {
	return &places{limit: limit, room: room(limit), full: full, freed: freed, shares: map[netip.Addr]*share{}}
}

// room is how many clients may wait for one of limit places.
func room(limit int) int { return max(limit/10, leastRoom) }

// mayTake says whether an address that holds so many may take another one of limit.
func mayTake(held, taken, limit int) bool {
	free := limit - taken
	if held == 0 {
		return free > 0
	}
	return free > 1 && held < 9*free
}

// clientOf is what of a client's address is counted.
func clientOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		return netip.PrefixFrom(a, clientBits).Masked().Addr()
	}
	return a
}

// take asks for a place for a client of p. If the client is to wait, w hears when it has one.
func (s *places) take(p *port, client netip.Addr, w relay.Waiter) relay.Admission {
	client = clientOf(client)
	s.mu.Lock()
	mine := s.shares[client]
	if mine == nil {
		mine = &share{}
		s.shares[client] = mine
	}
	// Nobody overtakes those of the same address.
	if len(mine.queue) == 0 && mayTake(mine.held, s.taken(), s.limit) {
		s.seat(p, mine)
		s.mu.Unlock()
		return relay.Admitted
	}
	answer := relay.Refused
	if mayTake(len(mine.queue), s.waiting, s.room) {
		answer = relay.Waiting
		if len(mine.queue) == 0 {
			s.turns = append(s.turns, mine)
		}
		mine.queue = append(mine.queue, waiter{p, w})
		s.waiting++
		s.waited++
	}
	s.forget(client, mine)
	s.mu.Unlock()
	s.full(client)
	return answer
}

// seat gives a place to a client of p. s.mu is held.
func (s *places) seat(p *port, to *share) {
	to.held++
	s.open.Add(1)
	p.open.Add(1)
}

// taken is how many places are. s.mu is held.
func (s *places) taken() int { return int(s.open.Load()) }

// forget drops the share of a client that has nothing. s.mu is held.
func (s *places) forget(client netip.Addr, sh *share) {
	if sh.held == 0 && len(sh.queue) == 0 {
		delete(s.shares, client)
	}
}

// leave ends the waiting of w. It reports false if w has a place by now.
func (s *places) leave(client netip.Addr, w relay.Waiter) bool {
	client = clientOf(client)
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := s.shares[client]
	if mine == nil {
		return false
	}
	i := slices.IndexFunc(mine.queue, func(other waiter) bool { return other.Waiter == w })
	if i < 0 {
		return false
	}
	mine.queue = slices.Delete(mine.queue, i, i+1)
	s.waiting--
	if len(mine.queue) == 0 {
		i := slices.Index(s.turns, mine)
		s.turns = slices.Delete(s.turns, i, i+1)
	}
	s.forget(client, mine)
	return true
}

// give gives the place of a client of p back, and on to those who wait.
func (s *places) give(p *port, client netip.Addr) {
	client = clientOf(client)
	s.mu.Lock()
	mine := s.shares[client]
	mine.held--
	s.open.Add(-1)
	p.open.Add(-1)
	s.forget(client, mine)
	var admitted []relay.Waiter
	for w, ok := s.next(); ok; w, ok = s.next() {
		admitted = append(admitted, w)
	}
	more := s.more
	if more != nil && s.taken() < s.limit {
		s.more = nil
		close(more)
	} else {
		more = nil
	}
	s.mu.Unlock()
	for _, w := range admitted {
		w.Admitted()
	}
	if more != nil {
		s.freed()
	}
}

// next seats the next of those who wait and may have a place, of one address after the other.
// s.mu is held.
func (s *places) next() (w relay.Waiter, ok bool) {
	i := slices.IndexFunc(s.turns, func(sh *share) bool { return mayTake(sh.held, s.taken(), s.limit) })
	if i < 0 {
		return nil, false
	}
	sh := s.turns[i]
	first := sh.queue[0]
	sh.queue = slices.Delete(sh.queue, 0, 1)
	s.waiting--
	s.turns = slices.Delete(s.turns, i, i+1)
	if len(sh.queue) > 0 {
		s.turns = append(s.turns, sh)
	}
	s.seat(first.port, sh)
	return first.Waiter, true
}

// none returns nil while there is a place, otherwise a channel that is closed when there is one
// again; s.freed is called as well.
func (s *places) none() <-chan struct{} {
	if s.open.Load() < int64(s.limit) {
		return nil
	}
	s.mu.Lock()
	if s.taken() < s.limit {
		s.mu.Unlock()
		return nil
	}
	if s.more == nil {
		s.more = make(chan struct{})
	}
	more := s.more
	s.mu.Unlock()
	return more
}

// numbers are how many clients wait, and how many have.
func (s *places) numbers() (waiting int, waited uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting, s.waited
}
