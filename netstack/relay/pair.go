package relay

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// moveBytes are how many bytes a pair moves in one loop at least.
	moveBytes = 16 << 20
	// copyBytes is the buffer of the copying path, which serves small messages, the
	// first bytes of every burst, and everything while no pipe is to be had.
	copyBytes = 64 << 10
	// unsentBytes bounds what waits unsent in a socket's send queue (TCP_NOTSENT_LOWAT in
	// tcp(7)). What was sent and not yet acknowledged is the congestion window's, and comes on top.
	unsentBytes = 128 << 10
	// bulkBytes moved at once make the next attempt a splice; less make it a copy.
	bulkBytes = 16 << 10
	// turnPieces is how many pieces one direction moves before others have their turn.
	turnPieces = 4
)

// Keepalive of both sides, in seconds: a NAT on the way keeps the flow, and a peer
// that is gone is noticed after 60 s + 4 × 30 s.
const (
	keepAliveIdle     = 60
	keepAliveInterval = 30
	keepAliveCount    = 4
)

// Counts is what one pair moved, in bytes.
type Counts struct {
	FromGuest, ToGuest uint64
	Spliced            uint64 // of both, what never was copied into this process
}

// readEvents are those of a side that is read: beside its bytes its end and urgent ones
// are told of, so that no read is needed to find neither.
const readEvents = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET

// The sides of a pair, and the directions, by the side that they come from.
const (
	client = 0
	guest  = 1
)

// pair is a client and the connection to the container that is its. All of it
// belongs to the loop's goroutine.
type pair struct {
	loop    *loop
	port    Port
	address netip.AddrPort // the client's
	fd      [2]int         // by side; -1: none
	slot    int32          // noSlot: none

	// While it is dialled.
	ways               Ways
	way                int
	anyPort            bool // the client's port cannot be had
	waiting            bool // to be admitted
	listed, socketless bool
	deadline           time.Time
	prev, next         *pair

	joined, queued, closed bool
	watched                [2]uint32 // events, by side
	alarm                  [2]bool   // epoll told of an error, by side
	special                [2]bool   // epoll told of more than bytes, by side: their number does not say all
	dir                    [2]direction
	settled                uint64 // bytes that were moved when the pair came to its loop
	err                    error  // why the pair has to be reset
}

const noSlot = -1

// direction is what one side sends to the other.
type direction struct {
	live  *atomic.Uint64
	moved uint64
	// spliced is the part that was.
	spliced uint64

	bulk bool // the last piece was large: splice the next
	over bool // the end was passed on, or dst is dead

	// What was read and is not yet written. Nothing is held without such bytes.
	pipe *splicePipe
	buf  *[copyBytes]byte
	off  int // into buf
	n    int // bytes left in pipe or buf
}

// join begins to relay.
func (p *pair) join() {
	p.delist()
	p.joined = true
	moved := p.port.Moved()
	p.dir[client].live, p.dir[guest].live = &moved.ToGuest, &moved.FromGuest
	p.port.Connected()
	for _, side := range [2]int{guest, client} {
		// Added with data waiting, a descriptor is reported at once.
		if errno := p.watch(side, readEvents); errno != 0 {
			p.abort(os.NewSyscallError("epoll_ctl", errno))
			return
		}
	}
}

// watch has the loop told of events, edge-triggered: what is ready is read until nothing
// is left, or written until EAGAIN.
func (p *pair) watch(side int, events uint32) unix.Errno {
	if p.slot == noSlot {
		p.slot = p.loop.take()
		p.loop.slots[p.slot].pair = p
	}
	op := unix.EPOLL_CTL_MOD
	if p.watched[side] == 0 {
		op = unix.EPOLL_CTL_ADD
	}
	p.watched[side] = events
	return p.loop.control(op, p.fd[side], events, p.slot, side)
}

// event serves what epoll says of a side.
func (p *pair) event(side int, events uint32) {
	if !p.joined {
		p.dial()
		return
	}
	if events&unix.EPOLLERR != 0 {
		p.alarm[side] = true
	}
	if events&^(unix.EPOLLIN|unix.EPOLLOUT) != 0 {
		p.special[side] = true
	}
	if events&^unix.EPOLLOUT != 0 {
		p.pump(side)
	}
	if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0 && !p.closed && p.dir[1-side].n > 0 {
		p.pump(1 - side)
	}
}

// moveOn gives a pair that has much to move to a loop that has nothing to do: the
// kernel spreads clients by who waits when they come, not by what they will move. It
// reports false when there is no such loop.
func (p *pair) moveOn() bool {
	moved := p.dir[client].moved + p.dir[guest].moved
	if moved < p.settled+moveBytes {
		return false
	}
	l := p.loop
	i := slices.IndexFunc(l.s.loops, func(to *loop) bool { return to.idle.Load() })
	if i < 0 {
		return false
	}
	p.settled = moved
	for side, fd := range p.fd {
		_ = unix.EpollCtl(l.set.FD, unix.EPOLL_CTL_DEL, fd, nil)
		p.watched[side] = 0
	}
	l.give(p.slot)
	p.slot = noSlot
	to := l.s.loops[i]
	if !to.post(func() { p.settle(to) }) {
		p.abort(ErrStopped)
	}
	return true
}

// settle goes on in another loop, with what is ready.
func (p *pair) settle(l *loop) {
	p.loop = l
	for side := range p.fd {
		if errno := p.watch(side, readEvents|unix.EPOLLOUT); errno != 0 {
			p.abort(os.NewSyscallError("epoll_ctl", errno))
			return
		}
	}
}

func (p *pair) pumpBoth() {
	p.pump(client)
	if !p.closed {
		p.pump(guest)
	}
}

// pump moves what from has sent, until it has nothing more, the other side takes
// nothing more, or its turn is over.
func (p *pair) pump(from int) {
	d := &p.dir[from]
	if d.over {
		p.checkAlarm(from)
		return
	}
	for range turnPieces {
		last := false // nothing is left behind the piece
		if d.n == 0 {
			errno, end := p.fill(from)
			switch {
			case errno == unix.EAGAIN:
				p.exhausted(from)
				return
			case errno != 0:
				p.abort(fmt.Errorf("splice: read: %w", errno))
				return
			case end:
				p.ended(from)
				return
			}
			// A read that could have taken more has taken all, see epoll(7).
			last = d.pipe == nil && d.n < copyBytes && !p.special[from]
		}
		switch errno := p.drain(from); errno {
		case 0:
			if last {
				p.exhausted(from)
				return
			}
		case unix.EAGAIN:
			if p.watched[1-from]&unix.EPOLLOUT == 0 {
				// What has become ready meanwhile is reported.
				if errno := p.watch(1-from, p.watched[1-from]|unix.EPOLLOUT); errno != 0 {
					p.abort(os.NewSyscallError("epoll_ctl", errno))
					return
				}
			}
			p.checkAlarm(from)
			return
		default:
			p.writeFailed(from, fmt.Errorf("splice: write: %w", errno))
			return
		}
	}
	if !p.queued {
		p.queued = true
		p.loop.busy = append(p.loop.busy, p)
	}
}

// exhausted is called when all that a side has sent was read.
func (p *pair) exhausted(from int) {
	if p.dir[from].bulk {
		acknowledge(p.fd[from])
	}
}

// checkAlarm resets the pair when a side from which nobody reads was reset: it has sent
// its end before, or what it sent is not taken by the other side.
func (p *pair) checkAlarm(side int) {
	if !p.alarm[side] || p.err != nil {
		return
	}
	p.alarm[side] = false
	if err := socketError(p.fd[side]); err != nil {
		p.abort(fmt.Errorf("splice: read: %w", err))
	}
}

// ended passes the end of a direction on as a half close. After the other direction
// closing does the same, and a side that is dead was only read to its end.
func (p *pair) ended(from int) {
	if p.err == nil && !p.dir[1-from].over {
		if err := unix.Shutdown(p.fd[1-from], unix.SHUT_WR); err != nil {
			p.writeFailed(from, fmt.Errorf("splice: half close: %w", err))
			return
		}
	}
	p.directionOver(from)
}

// writeFailed ends the direction from a side whose bytes the other one takes no more.
// What that one said before (an early answer, then close) may still lie unread: it is
// delivered, and its own end ends the pair.
func (p *pair) writeFailed(from int, err error) {
	if p.err == nil {
		p.err = err
	}
	p.loop.drop(&p.dir[from])
	p.directionOver(from)
	if !p.closed {
		p.pump(1 - from)
	}
}

// directionOver marks a direction that is over; with the second one the pair ends.
func (p *pair) directionOver(from int) {
	p.dir[from].over = true
	if p.dir[1-from].over {
		p.finish()
	}
}

// abort resets both sides.
func (p *pair) abort(err error) {
	if p.err == nil {
		p.err = err
	}
	if !p.joined {
		p.dialFailed(err)
		return
	}
	p.finish()
}

func (p *pair) finish() {
	p.dispose()
	c, g := &p.dir[client], &p.dir[guest]
	p.port.Ended(p.address, &Counts{ToGuest: c.moved, FromGuest: g.moved, Spliced: c.spliced + g.spliced}, p.err)
}

// dispose closes what the pair holds.
func (p *pair) dispose() {
	p.closed = true
	for i := range p.dir {
		p.loop.drop(&p.dir[i])
	}
	for side, fd := range p.fd {
		switch {
		case fd < 0:
		case p.err != nil:
			reset(fd)
		default:
			unix.Close(fd)
		}
		p.fd[side] = -1
	}
	if p.slot != noSlot {
		p.loop.give(p.slot)
		p.slot = noSlot
	}
}

// fill takes one piece of what from has sent: n bytes, the end, or an errno, EAGAIN when
// there is nothing.
func (p *pair) fill(from int) (errno unix.Errno, end bool) {
	d, l := &p.dir[from], p.loop
	if d.bulk {
		if pipe := l.takePipe(); pipe != nil {
			n, errno := splice(p.fd[from], pipe.w, pipeBytes)
			if n > 0 {
				d.pipe, d.n, d.bulk = pipe, n, n >= bulkBytes
				return 0, false
			}
			l.givePipe(pipe)
			if errno != 0 && (errno != unix.EAGAIN || !p.special[from]) {
				return errno, false
			}
			// Not yet the end, nor "nothing there": a splice stops before an urgent byte
			// (tcp_read_sock in net/ipv4/tcp.c) and says EAGAIN for ever, a read goes on.
		}
	}
	buf := copyBuffers.Get().(*[copyBytes]byte)
	n, errno := receive(p.fd[from], buf[:])
	if n == 0 {
		copyBuffers.Put(buf)
		return errno, errno == 0
	}
	d.buf, d.off, d.n, d.bulk = buf, 0, n, n >= bulkBytes
	return 0, false
}

// drain gives the other side what it takes of the piece: 0 when all is gone.
func (p *pair) drain(from int) unix.Errno {
	d, to := &p.dir[from], p.fd[1-from]
	for d.n > 0 {
		var n int
		var errno unix.Errno
		if d.pipe != nil {
			n, errno = splice(d.pipe.r, to, d.n)
		} else {
			n, errno = send(to, d.buf[d.off:d.off+d.n])
		}
		switch {
		case errno != 0:
			return errno
		case n == 0:
			return unix.EPIPE // cannot be: there are bytes to take and no error
		}
		d.n -= n
		d.off += n
		d.moved += uint64(n)
		if d.pipe != nil {
			d.spliced += uint64(n)
		}
		d.live.Add(uint64(n))
	}
	p.loop.release(d)
	return 0
}

// socketError takes the asynchronous error of a socket, SO_ERROR in socket(7).
func socketError(fd int) error {
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}
