package dhcp

import (
	"net/netip"
	"time"
)

// Leases is how many addresses there are to lease.
const Leases = 16

const (
	// leaseTime is what users of slirp4netns get.
	leaseTime = 86400 * time.Second
	// offerTime is how long an offer waits to be taken up: a client sends its request four
	// times within a minute (RFC 2131 section 4.1).
	offerTime = time.Minute
	// declinedTime keeps an address that a client found in use from the others.
	declinedTime = 10 * time.Minute
)

type state int

const (
	unused   state = iota
	released       // by its client, who gets it again if it can be had
	offered
	bound
	declined // somebody else has it
)

type mac [6]byte

type lease struct {
	state state
	mac   mac       // of the client; zero when unused or declined
	until time.Time // when the state ends, or for released when it began
}

// pool is the addresses from first on. It is not safe for concurrent use.
type pool struct {
	first  netip.Addr
	leases [Leases]lease
}

// address is that of lease i.
func (p *pool) address(i int) netip.Addr {
	a := p.first
	for range i {
		a = a.Next()
	}
	return a
}

// index is the lease of an address; -1 when it is not in the pool.
func (p *pool) index(a netip.Addr) int {
	at := p.first
	for i := range p.leases {
		if at == a {
			return i
		}
		at = at.Next()
	}
	return -1
}

// of is the lease of a client, also one that has ended; -1 when there is none.
func (p *pool) of(client mac) int {
	for i, l := range p.leases {
		if l.mac == client && l.state != unused && l.state != declined {
			return i
		}
	}
	return -1
}

// holds reports whether the lease is somebody's now.
func (l *lease) holds(now time.Time) bool {
	return l.state > released && now.Before(l.until)
}

// offer finds an address for a client: the one it has or had, or the one it wishes for, or
// the one that has been free for longest, in order where they have never been used
// (RFC 2131 section 4.3.1). It returns -1 when none is free.
func (p *pool) offer(client mac, wish netip.Addr, now time.Time) int {
	i := p.of(client)
	if w := p.index(wish); i < 0 && w >= 0 && !p.leases[w].holds(now) {
		i = w
	}
	if i < 0 {
		for k := range p.leases {
			if !p.leases[k].holds(now) && (i < 0 || p.leases[k].until.Before(p.leases[i].until)) {
				i = k
			}
		}
	}
	if i >= 0 && (p.leases[i].state != bound || !p.leases[i].holds(now)) {
		p.leases[i] = lease{state: offered, mac: client, until: now.Add(offerTime)}
	}
	return i
}

// bind leases a to a client, and reports whether it may have it: when it is the client's,
// or when it is free and the client has no other.
func (p *pool) bind(client mac, a netip.Addr, now time.Time) bool {
	i, had := p.index(a), p.of(client)
	if i < 0 {
		return false
	}
	if i != had {
		if p.leases[i].holds(now) || had >= 0 && p.leases[had].holds(now) {
			return false
		}
		if had >= 0 {
			p.leases[had].state, p.leases[had].mac = unused, mac{}
		}
	}
	p.leases[i] = lease{state: bound, mac: client, until: now.Add(leaseTime)}
	return true
}

// withdraw ends an offer that the client has not taken up.
func (p *pool) withdraw(client mac, now time.Time) {
	if i := p.of(client); i >= 0 && p.leases[i].state == offered {
		p.leases[i].state, p.leases[i].until = released, now
	}
}

// release ends the client's lease of a.
func (p *pool) release(client mac, a netip.Addr, now time.Time) bool {
	i := p.of(client)
	if i < 0 || i != p.index(a) || !p.leases[i].holds(now) {
		return false
	}
	p.leases[i].state, p.leases[i].until = released, now
	return true
}

// decline keeps a, which the client was given and found to be in use, from everybody.
func (p *pool) decline(client mac, a netip.Addr, now time.Time) bool {
	i := p.of(client)
	if i < 0 || i != p.index(a) {
		return false
	}
	p.leases[i] = lease{state: declined, until: now.Add(declinedTime)}
	return true
}

// bound counts the leases.
func (p *pool) bound(now time.Time) (n int) {
	for i := range p.leases {
		if p.leases[i].state == bound && p.leases[i].holds(now) {
			n++
		}
	}
	return n
}
