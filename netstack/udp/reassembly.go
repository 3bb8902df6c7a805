package udp

import (
	"bytes"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"slipway/netstack/internal/wire"
)

const (
	// maxPartial bounds the datagrams that fragments are missing of, each with a buffer of 64 KiB once
	// there have been as many. The oldest makes room: a kernel sends all fragments of a datagram
	// together, so what is still missing then has been lost.
	maxPartial = 32
	// What is not complete after this long is given up: RFC 8200 section 4.5, and for IPv4, where RFC 791
	// leaves it open, Linux' own (net.ipv4.ipfrag_time). One identification must not come twice within it.
	reassemblyTime4 = 30 * time.Second
	reassemblyTime6 = 60 * time.Second
	// partialHead is the room for headers in front of what IP carries.
	partialHead = wire.EthernetLen + wire.IPv6Len
)

// reassembler puts fragments together.
type reassembler struct {
	count   *counters
	waiting atomic.Int32 // len(partial), for the poller

	mu      sync.Mutex // guards the following fields
	partial []*partial // the oldest first
	free    []*partial // the last one used is the next: its memory is in the cache
}

// partial is a datagram of which fragments are missing.
type partial struct {
	of    datagramID
	since time.Duration
	ttl   uint8 // of the first fragment
	total int   // bytes that IP carries, 0 until the last fragment has come
	have  int
	end   int // of what has come that lies farthest behind
	// spoilt says that fragments contradicted each other. All of the datagram is dropped, also what is
	// still to come: RFC 5722 section 4, which Linux does for IPv4, too.
	spoilt bool
	// came has a bit for each 8 bytes.
	came [65536 / 8 / 64]uint64
	buf  [partialHead + 65536]byte
}

// add takes a fragment. It returns the frame of the datagram that it completes, to be given back by
// done, or nil. header is the Ethernet header that it gets.
func (r *reassembler) add(f *fragment, header []byte, now time.Duration) *partial {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.find(f.of)
	if i >= 0 && now-r.partial[i].since >= reassemblyTime(f.of.src) {
		r.count.incomplete.Add(1)
		r.removeLocked(i)
		i = -1
	}
	if i < 0 {
		i = r.begin(f.of, now)
	}
	p := r.partial[i]
	if !p.put(f) {
		r.count.fragmentsRefused.Add(1)
	}
	if p.spoilt || p.total == 0 || p.have < p.total {
		return nil
	}
	copy(p.frame(), header[:wire.EthernetLen])
	p.packet()
	r.takeLocked(i)
	return p
}

// find looks from the newest on, which nearly always is the one.
func (r *reassembler) find(of datagramID) int {
	for i := len(r.partial) - 1; i >= 0; i-- {
		if r.partial[i].of == of {
			return i
		}
	}
	return -1
}

// begin makes room for one more datagram and returns its index.
func (r *reassembler) begin(of datagramID, now time.Duration) int {
	if len(r.partial) == maxPartial {
		r.count.incomplete.Add(1)
		r.removeLocked(0)
	}
	var p *partial
	if k := len(r.free); k > 0 {
		p, r.free = r.free[k-1], r.free[:k-1]
	} else {
		p = new(partial)
	}
	p.of, p.since = of, now
	r.partial = append(r.partial, p)
	r.waiting.Store(int32(len(r.partial)))
	return len(r.partial) - 1
}

func (r *reassembler) takeLocked(i int) {
	r.partial = append(r.partial[:i], r.partial[i+1:]...)
	r.waiting.Store(int32(len(r.partial)))
}

func (r *reassembler) removeLocked(i int) {
	p := r.partial[i]
	r.takeLocked(i)
	p.reset()
	r.free = append(r.free, p)
}

// done gives back what add returned.
func (r *reassembler) done(p *partial) {
	p.reset()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free = append(r.free, p)
}

// expire gives up what has been incomplete for too long at now. It calls late with the beginning of
// the packet where its first fragment has come.
func (r *reassembler) expire(now time.Duration, late func(quote []byte)) {
	for {
		p := r.overdue(now)
		if p == nil {
			return
		}
		r.count.incomplete.Add(1)
		if p.came[0]&1 != 0 {
			late(p.packet())
		}
		r.done(p)
	}
}

func (r *reassembler) overdue(now time.Duration) *partial {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, p := range r.partial {
		if now-p.since >= reassemblyTime(p.of.src) {
			r.takeLocked(i)
			return p
		}
	}
	return nil
}

func reassemblyTime(a netip.Addr) time.Duration {
	if a.Is4() {
		return reassemblyTime4
	}
	return reassemblyTime6
}

// put takes in what a fragment carries; false when it does not: all of it was there already, or it
// contradicts what was.
func (p *partial) put(f *fragment) bool {
	end := f.offset + len(f.data)
	at := p.buf[partialHead+f.offset : partialHead+end]
	switch {
	case p.spoilt:
		return false
	case p.total > 0 && (end > p.total || f.more == (end == p.total)), p.total == 0 && !f.more && end < p.end:
		p.spoilt = true
		return false
	}
	if some, all := p.marked(f.offset, end); some {
		p.spoilt = !all || !bytes.Equal(at, f.data)
		return false
	}
	p.mark(f.offset, end)
	copy(at, f.data)
	p.have += len(f.data)
	p.end = max(p.end, end)
	if !f.more {
		p.total = end
	}
	if f.offset == 0 {
		p.ttl = f.ttl
	}
	return true
}

// words calls do with each word of came that has bits of the bytes from offset up to end, and with these bits.
func words(offset, end int, do func(word int, mask uint64)) {
	for unit, last := offset/8, (end+7)/8; unit < last; {
		n := min(64-unit%64, last-unit)
		do(unit/64, (1<<n-1)<<(unit%64))
		unit += n
	}
}

func (p *partial) marked(offset, end int) (some, all bool) {
	all = true
	words(offset, end, func(word int, mask uint64) {
		got := p.came[word] & mask
		some = some || got != 0
		all = all && got == mask
	})
	return some, all
}

func (p *partial) mark(offset, end int) {
	words(offset, end, func(word int, mask uint64) { p.came[word] |= mask })
}

// frame is the datagram as if it had come in one piece, with room for an Ethernet header.
func (p *partial) frame() []byte {
	return p.buf[partialHead-wire.HeaderLen(p.of.src)-wire.EthernetLen : partialHead+p.end]
}

// packet writes the IP header of what has come, and returns it with that.
func (p *partial) packet() []byte {
	b := p.frame()[wire.EthernetLen:]
	if p.of.src.Is4() {
		wire.PutIPv4(b, p.of.src, p.of.dst, wire.ProtoUDP, p.ttl, len(b), uint16(p.of.id), 0)
	} else {
		wire.PutIPv6(b, p.of.src, p.of.dst, wire.ProtoUDP, p.ttl, p.end)
	}
	return b
}

func (p *partial) reset() {
	clear(p.came[:(p.end+511)/512])
	p.of = datagramID{}
	p.ttl, p.total, p.have, p.end, p.spoilt = 0, 0, 0, 0, false
}
