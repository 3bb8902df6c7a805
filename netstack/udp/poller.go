package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/internal/epoll"
	"slipway/netstack/internal/wire"
)

const (
	// runMax bounds the payload of a run, so that it fits an IP packet of either family.
	runMax = 65535 - wire.IPv6Len - wire.UDPLen
	// budget is how many messages are read of one socket before the others have their turn.
	budget = 64
	// wakeID is the event descriptor's among the ids of sockets.
	wakeID = 0
)

// poller waits for all host sockets. Its goroutine is the only reader of them.
type poller struct {
	set epoll.Set

	mu      sync.Mutex // guards the following fields
	sockets map[int32]*socket
	last    int32
	dead    bool

	// The following fields are the goroutine's own.
	events  [128]unix.EpollEvent
	ready   [128]*socket
	inbox   *inbox
	run     pendingRun
	failure message
	problem sendError
	scratch wire.Scratch
}

func newPoller() (*poller, error) {
	set, err := epoll.New(wakeID)
	if err != nil {
		return nil, err
	}
	return &poller{set: set, sockets: make(map[int32]*socket), inbox: newInbox()}, nil
}

// add takes a descriptor over; it is closed on failure, too.
func (p *poller) add(fd int, o owner) (*socket, error) {
	s := &socket{fd: fd, owner: o}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		unix.Close(fd)
		return nil, errClosed
	}
	for {
		p.last = max(p.last+1, wakeID+1) // also when it wraps
		if p.sockets[p.last] == nil {
			break
		}
	}
	s.id = p.last
	if err := unix.EpollCtl(p.set.FD, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: s.id}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("epoll_ctl: %w", err)
	}
	p.sockets[s.id] = s
	return s, nil
}

// remove closes a socket. Nobody uses its descriptor once remove returns.
func (p *poller) remove(s *socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeLocked(s)
}

func (p *poller) removeLocked(s *socket) {
	delete(p.sockets, s.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return
	}
	if !p.dead {
		_ = unix.EpollCtl(p.set.FD, unix.EPOLL_CTL_DEL, s.fd, nil)
	}
	unix.Close(s.fd)
	s.fd = -1
}

// signal makes the goroutine look at the NAT's state again.
func (p *poller) signal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.dead {
		p.set.Wake()
	}
}

// close closes everything. The goroutine has ended.
func (p *poller) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return
	}
	for _, s := range p.sockets {
		p.removeLocked(s)
	}
	p.dead = true
	p.set.Close()
}

// run reads sockets and sweeps until the NAT is closed.
func (n *NAT) run() {
	p := n.poller
	defer close(n.done)
	swept := n.clock()
	for !n.closed.Load() {
		// Where nothing ages there is nothing to sweep and no reason to wake up.
		timeout := -1
		if n.ageing() > 0 {
			timeout = int(n.tick / time.Millisecond)
		}
		got, err := unix.EpollWait(p.set.FD, p.events[:], timeout)
		if err != nil && !errors.Is(err, unix.EINTR) {
			// Only a bad descriptor or a bad argument can be the cause, neither of which goes away.
			panic(fmt.Sprintf("epoll_wait: %v", err))
		}
		now := n.clock()
		n.now.Store(int64(now))
		p.mu.Lock()
		for i := range max(got, 0) {
			p.ready[i] = p.sockets[p.events[i].Fd]
		}
		p.mu.Unlock()
		for i := range max(got, 0) {
			switch s := p.ready[i]; {
			case p.events[i].Fd == wakeID:
				p.set.Woken()
			case s != nil:
				if p.events[i].Events&unix.EPOLLERR != 0 {
					p.drainErrors(s)
				}
				n.drain(s)
			}
			p.ready[i] = nil
		}
		if now-swept >= n.tick {
			swept = now
			n.sweep(now)
		}
	}
}

// drainErrors reads the error queue of a socket.
func (p *poller) drainErrors(s *socket) {
	m := &p.failure
	for range budget {
		if err := s.receiveError(m, p.inbox.buf[:messageMax]); err != nil {
			return
		}
		if m.readError(&p.problem) {
			s.owner.failed(&p.problem)
		}
	}
}

// pendingRun is what is collected to leave in one frame: datagrams of one size between the
// same two addresses, of which only the last may be shorter.
type pendingRun struct {
	from, to netip.AddrPort
	pieces   [wire.MaxPieces][]byte // messages, of one or more datagrams each
	n        int                    // of pieces
	size     int                    // bytes
	segment  int
	count    int  // datagrams
	short    bool // ends with a shorter datagram
}

// drain reads what a socket has and writes it to the guest, as few frames as it can be.
func (n *NAT) drain(s *socket) {
	in := n.poller.inbox
	for left := budget; left > 0; {
		want := min(in.want(), left)
		got, err := in.receive(s, want)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, errClosed):
			return
		case err != nil:
			left-- // an ICMP error that is pending: its turn comes by the error queue
			continue
		}
		for i := range got {
			n.collect(s, &in.messages[i], in.payload(i))
		}
		n.deliver(s) // what comes next takes its memory
		if left -= got; got < want {
			return
		}
	}
}

// collect adds a message to the run, or begins another.
func (n *NAT) collect(s *socket, m *message, payload []byte) {
	if m.overflowed > 0 {
		n.count.overflow.Add(uint64(m.overflowed - s.overflowed)) // which wraps
		s.overflowed = m.overflowed
	}
	from, to, ok := s.owner.accept(m)
	if !ok {
		return
	}
	r := &n.poller.run
	segment, count := m.n, 1
	if m.segment > 0 {
		segment, count = m.segment, (m.n+m.segment-1)/m.segment
	}
	joins := r.count > 0 && n.merges(from) && from == r.from && to == r.to && !r.short &&
		m.n > 0 && segment <= r.segment && (segment == r.segment || count == 1) &&
		r.n < len(r.pieces) && r.count+count <= maxSegments && r.size+m.n <= runMax
	if !joins {
		n.deliver(s)
		r.from, r.to, r.segment = from, to, segment
	}
	r.pieces[r.n] = payload
	r.n++
	r.size += m.n
	r.count += count
	r.short = m.n == 0 || segment < r.segment || m.n%segment != 0
}

// deliver writes the run and empties it.
func (n *NAT) deliver(s *socket) {
	r := &n.poller.run
	if r.count == 0 {
		return
	}
	segment := 0
	if r.count > 1 {
		segment = r.segment
	}
	t := &n.count.nat
	if l, ok := s.owner.(*listener); ok {
		t = &l.pub.count
	}
	n.emit(&n.poller.scratch, t, r.from, r.to, r.pieces[:r.n], r.size, segment)
	r.n, r.size, r.count = 0, 0, 0
}
