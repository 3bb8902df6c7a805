package relay

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"slipway/netstack/internal/epoll"
)

// wakeSlot is the event descriptor's among the numbers of slots.
const wakeSlot = -1

// listenerSlot and the numbers below are the listening sockets'.
const listenerSlot = -2

// loop is one goroutine that waits with epoll(7) and does all work of its pairs: no
// other goroutine touches them or their descriptors. What others want of it, they post.
//
// It waits by itself and not by the runtime's poller: a message that comes there is
// handed on to a goroutine, and the runtime wakes a second thread to look for more work,
// which takes the CPU for which client and server wait.
type loop struct {
	s   *Splicer
	set epoll.Set

	idle atomic.Bool // it waits, and nothing is ready

	mu     sync.Mutex // guards the following fields
	posted []func()
	ended  bool

	// The following fields are the goroutine's own.
	slots   []slot
	free    []int32
	busy    []*pair // have more to do
	dialing pairList
	paused  []pause
	pipes   []*splicePipe         // empty ones
	refused time.Time             // when the kernel last had no pipe of a useful size
	address unix.RawSockaddrInet6 // of the last client
	stopped bool
	events  [128]unix.EpollEvent
}

// slot is what an event's number leads to. The generation tells events of a slot's
// former owner, which may lie in the same batch.
type slot struct {
	generation int32
	pair       *pair
}

func newLoop(s *Splicer) (*loop, error) {
	set, err := epoll.New(wakeSlot)
	if err != nil {
		return nil, err
	}
	return &loop{s: s, set: set}, nil
}

// post has the loop's goroutine call f. It reports false when the loop has ended.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.posted = append(l.posted, f)
	l.set.Wake()
	return true
}

// run serves until stop is posted.
func (l *loop) run() {
	for !l.stopped {
		n := l.wait()
		for i := range n {
			e := &l.events[i]
			switch {
			case e.Fd == wakeSlot:
				l.takePosted()
			case e.Fd <= listenerSlot:
				if v := l.s.serving(listenerSlot - e.Fd); v != nil {
					l.accept(v)
				}
			default:
				if s := &l.slots[e.Fd]; s.pair != nil && s.generation == e.Pad>>1 {
					s.pair.event(int(e.Pad&1), e.Events)
				}
			}
		}
		l.turn()
		if l.dialing.first != nil || len(l.paused) > 0 {
			l.expire(time.Now())
		}
	}
	l.end()
}

// wait returns how many events there are.
func (l *loop) wait() int {
	if len(l.busy) > 0 {
		// It does not block, so the runtime need not know.
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.set.FD), uintptr(unsafe.Pointer(&l.events)), uintptr(len(l.events)), 0, 0, 0)
		if errno != 0 {
			return 0
		}
		return int(n)
	}
	l.idle.Store(true)
	n, err := unix.EpollWait(l.set.FD, l.events[:], l.timeout())
	l.idle.Store(false)
	if err != nil && !errors.Is(err, unix.EINTR) {
		// Only a bad descriptor or a bad argument can be the cause, neither of which goes away.
		panic(fmt.Sprintf("epoll_wait: %v", err))
	}
	return max(n, 0)
}

// timeout is how many milliseconds until the first deadline, -1 without any.
func (l *loop) timeout() int {
	var first time.Time
	if p := l.dialing.first; p != nil {
		first = p.deadline
	}
	for _, p := range l.paused {
		if first.IsZero() || p.end.Before(first) {
			first = p.end
		}
	}
	if first.IsZero() {
		return -1
	}
	// Rounded up, so that it has passed when the loop wakes.
	return int((max(time.Until(first), 0) + time.Millisecond) / time.Millisecond)
}

func (l *loop) takePosted() {
	l.set.Woken()
	l.mu.Lock()
	posted := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range posted {
		f()
	}
}

// turn lets those go on that had used up their turn.
func (l *loop) turn() {
	n := len(l.busy)
	for _, p := range l.busy[:n] {
		p.queued = false
		if !p.closed && (n == 1 || !p.moveOn()) {
			p.pumpBoth()
		}
	}
	more := copy(l.busy, l.busy[n:])
	clear(l.busy[more:])
	l.busy = l.busy[:more]
}

// expire ends what has waited for too long, and pauses.
func (l *loop) expire(now time.Time) {
	for p := l.dialing.first; p != nil && now.After(p.deadline); p = l.dialing.first {
		p.dialFailed(os.ErrDeadlineExceeded)
	}
	kept := l.paused[:0]
	for _, p := range l.paused {
		switch {
		case now.Before(p.end):
			kept = append(kept, p)
		case l.listen(p.v) != nil:
			kept = append(kept, pause{p.v, now.Add(acceptPause)})
		}
	}
	l.paused = kept
}

// end closes everything of the loop.
func (l *loop) end() {
	l.mu.Lock()
	l.ended = true
	posted := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range posted {
		f()
	}
	for l.dialing.first != nil {
		l.dialing.first.dialFailed(ErrStopped)
	}
	for i := range l.slots {
		if p := l.slots[i].pair; p != nil {
			p.abort(ErrStopped)
		}
	}
	for _, p := range l.pipes {
		p.close()
	}
	l.set.Close()
}

// take returns a free slot.
func (l *loop) take() int32 {
	if n := len(l.free); n > 0 {
		i := l.free[n-1]
		l.free = l.free[:n-1]
		return i
	}
	l.slots = append(l.slots, slot{})
	return int32(len(l.slots) - 1)
}

// give gives a slot back: events that still lie in the batch lead nowhere.
func (l *loop) give(i int32) {
	s := &l.slots[i]
	*s = slot{generation: (s.generation + 1) & (1<<30 - 1)}
	l.free = append(l.free, i)
}

// control calls epoll_ctl(2) for fd, whose events are those of a slot and a side of it.
func (l *loop) control(op, fd int, events uint32, i int32, side int) unix.Errno {
	e := unix.EpollEvent{Events: events, Fd: i, Pad: l.slots[i].generation<<1 | int32(side)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.set.FD), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	return errno
}

// pairList is a list of pairs in the order of their deadlines.
type pairList struct{ first, last *pair }

func (q *pairList) push(p *pair) {
	p.prev, p.next = q.last, nil
	if q.last != nil {
		q.last.next = p
	} else {
		q.first = p
	}
	q.last = p
}

func (q *pairList) remove(p *pair) {
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		q.first = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		q.last = p.prev
	}
	p.prev, p.next = nil, nil
}
