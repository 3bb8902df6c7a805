// Package neighbour remembers at which Ethernet address each of the guest's IP addresses
// is. A guest may change its own, and there may be a bridge with several machines behind
// the TAP.
//
// Nothing is asked for: every frame of the guest says where its source is, and the guest
// is expected at one address until one says otherwise.
package neighbour

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"
)

// The table holds at most sets × ways addresses. Which set an address is in is not for
// the guest to foresee.
const (
	sets = 16
	ways = 16
)

// Table maps IP addresses to Ethernet addresses. Learn is for one goroutine at a time; the
// rest is safe for concurrent use, and nothing here takes a lock.
type Table struct {
	expected uint64
	key      [2]uint64
	used     atomic.Bool // there is an address that is elsewhere than expected
	sets     [sets]set

	known, forgotten, doubted atomic.Uint64

	// home are the last addresses seen where they were expected, IPv4 and IPv6. For the
	// goroutine that calls Learn.
	home [2]home
}

// home is an address that is where it is expected.
type home struct {
	addr netip.Addr
	settlement
}

// heard notes that a is there. Most frames are of one address: they write nothing.
func (h *home) heard(a netip.Addr) {
	if !h.confirmed || h.addr != a {
		h.addr, h.confirmed = a, true
	}
}

// set is filled from the front; once full, the next entry takes the place of the oldest.
type set struct {
	entries [ways]atomic.Pointer[entry]
	next    int
}

type entry struct {
	addr netip.Addr
	mac  atomic.Uint64
	settlement
}

// New returns a table in which every address is at expected.
func New(expected [6]byte) *Table {
	return &Table{expected: pack(expected), key: [2]uint64{rand.Uint64(), rand.Uint64()}}
}

func pack(m [6]byte) uint64 {
	return uint64(m[0])<<40 | uint64(m[1])<<32 | uint64(m[2])<<24 | uint64(m[3])<<16 | uint64(m[4])<<8 | uint64(m[5])
}

func unpack(m uint64) [6]byte {
	return [6]byte{byte(m >> 40), byte(m >> 32), byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}
}

func (t *Table) set(a netip.Addr) *set {
	b := a.As16()
	high, low := bits.Mul64(binary.NativeEndian.Uint64(b[:])^t.key[0], binary.NativeEndian.Uint64(b[8:])^t.key[1])
	return &t.sets[(high^low)%sets]
}

// find returns the entry of a, or nil.
func (s *set) find(a netip.Addr) *entry {
	for i := range s.entries {
		e := s.entries[i].Load()
		if e == nil || e.addr == a {
			return e
		}
	}
	return nil
}

// At returns where a is.
func (t *Table) At(a netip.Addr) [6]byte {
	if t.used.Load() {
		if e := t.set(a).find(a); e != nil {
			return unpack(e.mac.Load())
		}
	}
	return unpack(t.expected)
}

// locked is for how long an address that is still heard of stays where it is, as
// locktime in arp(7): a frame that somebody made up must not lead others astray.
const locked = 100 * time.Millisecond

// settlement is what tells a move from a single frame with another sender. For the one
// goroutine that calls Learn.
type settlement struct {
	confirmed bool      // heard of since the doubt
	doubted   time.Time // when it was last seen elsewhere
}

// mayMove is asked when an address is seen elsewhere.
func (s *settlement) mayMove() bool {
	now := time.Now()
	if s.confirmed {
		s.confirmed, s.doubted = false, now
		return false
	}
	return now.Sub(s.doubted) >= locked
}

// Learn remembers that a is at mac, unless it was heard of elsewhere a moment ago.
func (t *Table) Learn(a netip.Addr, mac [6]byte) {
	m := pack(mac)
	home := &t.home[0]
	if a.Is6() {
		home = &t.home[1]
	}
	if m == t.expected && !t.used.Load() {
		home.heard(a)
		return
	}
	s := t.set(a)
	if e := s.find(a); e != nil {
		switch {
		case e.mac.Load() == m:
			e.confirmed = true
		case e.mayMove():
			e.mac.Store(m)
		default:
			t.doubted.Add(1)
		}
		return
	}
	if m == t.expected {
		home.heard(a)
		return
	}
	if a == home.addr && !home.mayMove() {
		t.doubted.Add(1)
		return
	}
	e := &entry{addr: a}
	e.mac.Store(m)
	if s.entries[s.next].Swap(e) != nil {
		t.forgotten.Add(1)
	} else {
		t.known.Add(1)
	}
	s.next = (s.next + 1) % ways
	t.used.Store(true)
}

// Doubted is how many frames said that an address was elsewhere, and were not believed.
func (t *Table) Doubted() uint64 { return t.doubted.Load() }

// Known is how many addresses are remembered.
func (t *Table) Known() uint64 { return t.known.Load() }

// Forgotten is how many addresses have made room for others.
func (t *Table) Forgotten() uint64 { return t.forgotten.Load() }
