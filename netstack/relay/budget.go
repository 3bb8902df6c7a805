package relay

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	// leastFloor is the least that each direction of a flow may always queue, in bytes.
	leastFloor = 512
	// floors is which part of the budget all floors together are. Memory is tight when no more
	// than that is left.
	floors = 8
	// segmentOverhead is what gVisor needs for a segment beside its payload, in bytes, rounded
	// up: a stack.PacketBuffer and a segment (transport/tcp/segment.go).
	segmentOverhead = 1 << 10
	// flowOverhead is what a flow takes that has nothing queued, in bytes.
	flowOverhead = 24 << 10
	// watchTick is how often the flows are looked at while there is much to see.
	watchTick = 100 * time.Millisecond
	// lookShare bounds the CPU time of looking at all flows: a look may follow another one
	// after so many times what that one took.
	lookShare = 10
	// returnAfter is how long much less memory has been needed than before when the engine
	// gives it back; returnWorth is what "much" is, in bytes. Fast streams come and go, and
	// want their memory warm: of what is queued only the keptPart counts.
	returnAfter = 3 * time.Second
	returnWorth = 16 << 20
	keptPart    = 8
	// fewFlows need no look by themselves.
	fewFlows = 64
)

// patienceWithStalled is how long memory may be tight before a flow that has moved nothing
// for as long is reset. A variable for the tests.
var patienceWithStalled = 5 * time.Second

// ErrMemory is how a flow ends that has been stalled for long when memory is wanted.
var ErrMemory = errors.New("stalled while the memory for queued bytes is used up")

// BudgetConfig describes a Budget.
type BudgetConfig struct {
	// Bytes is how much all flows together may have queued.
	Bytes int64
	// Flows is how many flows there may be.
	Flows int
	// Reset is called for every flow that is reset for want of memory, with how much it had
	// queued, in bytes; nil: nobody is told.
	Reset func(queued int)
	// Return is called when much less memory is needed than before; nil: nobody is told.
	Return func()
}

// Budget bounds the bytes that all flows together have queued in gVisor.
//
// What is queued was acknowledged, so it cannot be dropped. Hence each flow earns the window
// in which it may queue bytes by having them taken, see sendWindow and receiveWindow. When
// seven eighths of the budget are used, memory is tight: a flow then may queue what is
// taken from it in a few milliseconds, and a flow from which nothing is taken has a floor.
// When all is used each flow has its floor. All floors together are the last eighth.
// When memory stays tight, the flow that has been stalled for long with most is reset.
//
// The sum is exact whenever all flows are looked at, and an upper bound between two looks:
// whoever queues something adds it (Take). The next look comes before the bound reaches the
// budget.
type Budget struct {
	cfg   BudgetConfig
	floor int // of each direction of a flow, in bytes

	queued atomic.Int64 // at the most
	next   atomic.Int64 // value of queued at which the next look is due
	tight  atomic.Bool
	wake   chan struct{} // for Watch

	bound, resets atomic.Uint64

	mu        sync.Mutex // guards the following fields
	flows     map[*flow]struct{}
	notBefore time.Time // for the next look
	tightFrom time.Time
	most      int64     // memory that was needed since it was last given back
	calmSince time.Time // much less was needed; zero: it was not
}

// LeastBudget is how many bytes so many flows need at the least.
func LeastBudget(flows int) int64 { return 2 * leastFloor * floors * int64(flows) }

// NewBudget returns a budget of which nothing is used.
func NewBudget(cfg BudgetConfig) *Budget {
	floor := cfg.Bytes / floors / (2 * int64(max(cfg.Flows, 1)))
	b := &Budget{
		cfg: cfg, floor: int(min(max(floor, leastFloor), StartWindow)),
		wake: make(chan struct{}, 1), flows: make(map[*flow]struct{}),
	}
	b.next.Store(cfg.Bytes / 2)
	return b
}

// BudgetStats are what a Budget counts.
type BudgetStats struct {
	// Queued is how many bytes all flows have queued now, with what gVisor needs for each
	// segment.
	Queued int64
	// Bound is how often memory became tight, Resets how many flows were reset for it.
	Bound, Resets uint64
}

// Stats looks at all flows.
func (b *Budget) Stats() BudgetStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.look()
	return BudgetStats{Queued: b.queued.Load(), Bound: b.bound.Load(), Resets: b.resets.Load()}
}

// Take notes that bytes bytes of a segment are about to be queued. It reports false when
// there is no memory for it, which only a guest meets that does not keep to its windows.
func (b *Budget) Take(bytes int) bool {
	n := b.queued.Add(int64(bytes + segmentOverhead))
	if n < b.next.Load() {
		return true
	}
	b.glance()
	return b.queued.Load() <= b.cfg.Bytes+b.cfg.Bytes/8
}

// tightAt is at how many bytes memory is tight.
func (b *Budget) tightAt() int64 { return b.cfg.Bytes - b.cfg.Bytes/floors }

// left is how much of the budget is.
func (b *Budget) left() remainder {
	switch n := b.queued.Load(); {
	case n >= b.cfg.Bytes:
		return none
	case n >= b.tightAt() || b.tight.Load():
		return little
	}
	return enough
}

type remainder int

const (
	enough remainder = iota
	little           // memory is tight
	none
)

// glance looks at all flows, unless somebody does so already or has just done it.
func (b *Budget) glance() {
	if b.mu.TryLock() {
		defer b.mu.Unlock()
		if !time.Now().Before(b.notBefore) {
			b.look()
		}
	}
	b.stir()
}

// stir has Watch go on.
func (b *Budget) stir() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// look counts what is queued. b.mu is locked.
func (b *Budget) look() {
	begin := time.Now()
	var sum int64
	for f := range b.flows {
		out, in := f.queuedBytes()
		sum += int64(out + in)
	}
	b.queued.Store(sum)
	b.next.Store(sum + max((b.cfg.Bytes-sum)/2, b.cfg.Bytes/32))
	switch tight := sum >= b.tightAt(); {
	case tight && !b.tight.Load():
		b.bound.Add(1)
		b.tightFrom = begin
		b.tight.Store(true)
	case sum < b.tightAt()-b.cfg.Bytes/floors:
		b.tight.Store(false)
	}
	b.most = max(b.most, b.need())
	end := time.Now()
	b.notBefore = end.Add(lookShare * end.Sub(begin))
}

// need is a measure of the memory that the flows take, see returnWorth. b.mu is locked.
func (b *Budget) need() int64 { return b.queued.Load()/keptPart + int64(len(b.flows))*flowOverhead }

// join adds a flow.
func (b *Budget) join(f *flow) {
	b.mu.Lock()
	b.flows[f] = struct{}{}
	many := len(b.flows) > fewFlows
	b.mu.Unlock()
	if many {
		b.stir()
	}
}

// leave ends join, when the flow's endpoint holds nothing any more.
func (b *Budget) leave(f *flow) {
	b.mu.Lock()
	delete(b.flows, f)
	b.mu.Unlock()
}

// Watch looks after the flows until ctx is done: it takes from those that are stalled what
// they may still queue, resets one when memory stays tight, and has memory given back.
func (b *Budget) Watch(ctx context.Context) {
	tick := time.NewTicker(watchTick)
	defer tick.Stop()
	for {
		tick.Stop() // nothing wakes an engine with few flows
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		}
		tick.Reset(watchTick)
		for busy := true; busy; {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				busy = b.tend(now)
			}
		}
	}
}

// tend is a tick of Watch. It reports whether the next one is needed.
func (b *Budget) tend(now time.Time) (busy bool) {
	b.mu.Lock()
	b.look()
	victim, with := b.stalled(now)
	need, give := b.need(), false
	switch calm := need < b.most/2 && b.most-need >= returnWorth; {
	case !calm:
		b.calmSince = time.Time{}
	case b.calmSince.IsZero():
		b.calmSince = now
	case now.Sub(b.calmSince) >= returnAfter:
		give = true
		b.most, b.calmSince = need, time.Time{}
	}
	busy = !b.calmSince.IsZero() || b.queued.Load() > b.cfg.Bytes/4 || len(b.flows) > fewFlows
	b.mu.Unlock()
	if victim != nil {
		b.resets.Add(1)
		if b.cfg.Reset != nil {
			b.cfg.Reset(with)
		}
		victim.giveUp(ErrMemory)
	}
	if give && b.cfg.Return != nil {
		b.cfg.Return()
	}
	return busy
}

// stalled notes what each direction of the flows has moved since the last tick. While memory
// is tight it closes the receive buffers from which nothing was taken, and returns the flow
// that is to be reset, nil for none, with what it has queued in bytes. b.mu is locked.
func (b *Budget) stalled(now time.Time) (victim *flow, with int) {
	tight := b.tight.Load()
	patient := !tight || now.Sub(b.tightFrom) < patienceWithStalled
	full := b.queued.Load() >= b.cfg.Bytes
	var worst time.Duration
	for f := range b.flows {
		toGuest, toHost := f.queuedBytes()
		sent := f.fromHost.Load() - uint64(queuedToSend(f.ep))
		for _, d := range [...]struct {
			*progress
			moved  uint64
			queued int
		}{{&f.toGuestBy, sent, toGuest}, {&f.toHostBy, f.toHost.Load(), toHost}} {
			if d.note(d.moved, d.queued, now) || !tight {
				continue
			}
			still := now.Sub(d.at)
			if patient || still < patienceWithStalled || d.queued <= StartBuffer && !full {
				continue
			}
			if weight := still / (1 << 10) * time.Duration(d.queued>>10); weight > worst {
				worst, victim, with = weight, f, toGuest+toHost
			}
		}
		if tight && f.toHostBy.at.Before(now) {
			f.shutBuffer(b.floor * bufferOfWindow)
		}
	}
	return victim, with
}

// progress is what a direction had moved when that last changed.
type progress struct {
	total uint64
	at    time.Time
}

// note reports whether the direction has moved anything, or has nothing to move.
func (p *progress) note(total uint64, queued int, now time.Time) bool {
	if total == p.total && queued > 0 {
		return false
	}
	p.total, p.at = total, now
	return true
}

// endpointOf is gVisor's endpoint; nil for that of a test.
func endpointOf(ep tcpip.Endpoint) *tcp.Endpoint {
	t, _ := ep.(*tcp.Endpoint)
	return t
}
