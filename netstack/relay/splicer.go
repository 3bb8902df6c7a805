package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrStopped is how pairs end that are open when their Splicer is closed.
var ErrStopped = errors.New("relay stopped")

// Port is what a Splicer asks about the clients of one listening socket, and tells.
// Its methods are called by several goroutines at once, and must not block.
type Port interface {
	// Full says that no client could be admitted. Nobody is accepted then until
	// Splicer.Freed is called, which the Port sees to: clients stay in the backlog.
	Full() bool
	// Admit says whether a client is served, and by which ways, best first. If it is
	// Waiting, w is told when it is admitted.
	Admit(client netip.AddrPort, w Waiter) (Ways, Admission)
	// Leave says that a client waits no longer, and why: os.ErrDeadlineExceeded or
	// ErrStopped. It reports false if w was told that the client is admitted.
	Leave(client netip.AddrPort, w Waiter, err error) bool
	// Connected says that one of the ways led to the container.
	Connected()
	// Ended comes once for each admitted client. connected is the relay's result, nil
	// when no way led to the container; err is then why, an errno, os.ErrDeadlineExceeded
	// or ErrStopped.
	Ended(client netip.AddrPort, connected *Counts, err error)
	// AcceptFailed says that accept(2) failed for want of descriptors or memory. Clients
	// stay in the backlog for a while.
	AcceptFailed(err error)
	// Moved is where bytes are counted as they are delivered.
	Moved() *Bytes
}

// Admission is what a Port does with a client.
type Admission int

// The answers of Port.Admit.
const (
	Refused  Admission = iota // it is reset
	Admitted                  // it is served
	Waiting                   // it is kept, for as long as the container has to answer
)

// Waiter is a client that waits.
type Waiter interface {
	// Admitted says that it is served from now on. It does not block.
	Admitted()
}

// Way is one way to try: who the container sees as its client, and where it goes.
type Way struct{ From, To netip.AddrPort }

// Ways are up to two of them.
type Ways struct {
	N   int
	Way [2]Way
}

// Sockets are fresh sockets of the container's namespace, as netns.Target.Sockets
// makes them. Take returns none when there is none at the moment; the source calls
// Splicer.Refilled when that changes. It may be called by several goroutines at once.
type Sockets interface {
	Take(family int) (fd int, ok bool)
}

// SplicerConfig is what a Splicer needs.
type SplicerConfig struct {
	// Loops is how many goroutines do the work; below 1 it is one. Each uses a thread of its
	// own while it has work.
	Loops int
	// Sockets gives what the container is connected to with.
	Sockets Sockets
	// Connect is how long the container has to answer, and how long a client waits before.
	Connect time.Duration
}

// Splicer serves published ports: it accepts clients, connects each to the container,
// and relays until both directions have ended. The end of one direction is passed on
// as a half close, and the other keeps running; a reset of one side resets the other.
//
// An idle connection holds neither pipe nor buffer, a small message is copied, and a
// burst is moved by splice(2). Urgent data is relayed inline, as ordinary bytes.
type Splicer struct {
	cfg     SplicerConfig
	loops   []*loop
	tasks   sync.WaitGroup
	waiting atomic.Int64 // pairs that no socket was left for
	once    sync.Once

	mu        sync.Mutex // guards the following fields
	listeners []*Serving // by index
	free      []int32    // indexes
}

// NewSplicer starts a Splicer. Close it.
func NewSplicer(cfg SplicerConfig) (*Splicer, error) {
	s := &Splicer{cfg: cfg}
	for range max(cfg.Loops, 1) {
		l, err := newLoop(s)
		if err != nil {
			for _, l := range s.loops {
				l.end()
			}
			return nil, fmt.Errorf("splicer: %w", err)
		}
		s.loops = append(s.loops, l)
	}
	for _, l := range s.loops {
		s.tasks.Go(l.run)
	}
	return s, nil
}

// Close resets all connections and returns when nothing of the Splicer runs any
// more. Its listening sockets are for their owners to close.
func (s *Splicer) Close() {
	s.once.Do(func() {
		for _, l := range s.loops {
			l.post(func() { l.stopped = true })
		}
	})
	s.tasks.Wait()
}

// Refilled tells the pairs that wait for a socket that there are new ones.
func (s *Splicer) Refilled() {
	if s.waiting.Load() == 0 {
		return
	}
	for _, l := range s.loops {
		l.post(l.redial)
	}
}

// Freed tells that Port.Full may say otherwise than before.
func (s *Splicer) Freed() {
	for _, l := range s.loops {
		l.post(l.resume)
	}
}

// Serving is one listening socket that is served.
type Serving struct {
	s     *Splicer
	port  Port
	fd    int
	index int32 // among the Splicer's listeners

	once sync.Once
	err  error
}

// Serve serves the clients of fd, a listening TCP socket, as p says. It takes fd
// over, also when it fails.
func (s *Splicer) Serve(fd int, p Port) (*Serving, error) {
	err := unix.SetNonblock(fd, true)
	if err == nil {
		err = prepare(fd) // accepted sockets inherit it (inet_csk_clone_lock in net/ipv4)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("serve: %w", err)
	}
	v := &Serving{s: s, port: p, fd: fd}
	s.number(v)
	for _, l := range s.loops {
		if err := l.listen(v); err != nil {
			return nil, errors.Join(fmt.Errorf("serve: %w", err), v.Close())
		}
	}
	return v, nil
}

// number gives v an index.
func (s *Splicer) number(v *Serving) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		v.index = s.free[n-1]
		s.free = s.free[:n-1]
		s.listeners[v.index] = v
		return
	}
	v.index = int32(len(s.listeners))
	s.listeners = append(s.listeners, v)
}

// serving returns the listener of an index, nil for one that is closed.
func (s *Splicer) serving(index int32) *Serving {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listeners[index]
}

// Close ends the listening, and returns when the address is free. Connections go on.
func (v *Serving) Close() error {
	v.once.Do(func() {
		// First, so that no loop meets it any more in a batch of events after forget.
		v.s.mu.Lock()
		v.s.listeners[v.index] = nil
		v.s.mu.Unlock()
		var left sync.WaitGroup
		for _, l := range v.s.loops {
			left.Add(1)
			if !l.post(func() { l.forget(v); left.Done() }) {
				left.Done()
			}
		}
		left.Wait()
		v.err = unix.Close(v.fd)
		v.s.mu.Lock()
		v.s.free = append(v.s.free, v.index)
		v.s.mu.Unlock()
	})
	return v.err
}
