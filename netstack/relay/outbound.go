package relay

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxPieces and maxBatch bound one writev: the segments of a batch stay in the
	// guest's receive queue until the host has taken them.
	maxPieces = 64
	maxBatch  = 512 << 10
)

// again is after how long a write that found no room is tried once more, whatever the
// poller says. The kernel tells of room only when a third of the socket's send buffer is
// free (sk_stream_is_writeable() in include/net/sock.h). On a long path, where
// acknowledgements come in bursts, less than that would lie unused until the next one.
const again = 10 * time.Millisecond

// worthIt is how many bytes have to be written then for the next such write to be tried
// again too: a host that takes little is left to the kernel.
const worthIt = 64 << 10

// batch collects what lies in the receive queue of an endpoint without taking it
// out: the memory is still the queue's.
type batch struct {
	iov   [maxPieces]unix.Iovec
	n     int
	bytes int
}

// Write implements io.Writer for a peeking [tcpip.Endpoint.Read].
func (b *batch) Write(p []byte) (int, error) {
	if b.n == len(b.iov) || b.bytes >= maxBatch {
		return 0, io.ErrShortWrite
	}
	if len(p) == 0 {
		return 0, nil
	}
	b.iov[b.n].Base = unsafe.SliceData(p)
	b.iov[b.n].SetLen(len(p))
	b.n++
	b.bytes += len(p)
	return len(p), nil
}

// discard takes n bytes out of a receive queue.
type discard struct{ left int }

// Write implements io.Writer for [tcpip.Endpoint.Read].
func (d *discard) Write(p []byte) (int, error) {
	if len(p) > d.left {
		n := d.left
		d.left = 0
		return n, io.ErrShortWrite
	}
	d.left -= len(p)
	return len(p), nil
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// outbound writes the guest's bytes to the host's socket: look at all queued
// segments, one writev, then take out what the host took. There is no copy in
// between. The endpoint purges its receive queue only when it is closed or
// aborted, which happens after this direction has ended.
//
// A small request is written by whom gVisor runs in (see [Turn]). All else is for a
// goroutine of this direction, which begins when there is something for it: a flow that
// waits, or has only ever asked for something, has none.
type outbound struct {
	flow    *flow
	ready   chan struct{} // wakes the goroutine
	started atomic.Bool   // it was begun, or shall not be any more
	parked  atomic.Bool   // it waits until the host takes more
	quit    chan struct{} // tells it to end
	gone    chan struct{} // closed when it has ended
	fin     chan struct{} // closed when the guest's FIN went to the host

	mu     sync.Mutex // who holds it may look at the queue, and guards the following fields
	closed bool       // the guest's FIN went to the host
	over   bool       // nobody may look at the queue any more
	batch  *batch     // nil while nobody looks
	taken  discard
	wrote  int
	errno  unix.Errno
	slow   bool // the host took less than worthIt when a write was tried again
	window receiveWindow
	try    func(fd uintptr) bool // what write and writeOnce make, once for all
	once   func(fd uintptr)
}

func newOutbound(f *flow) *outbound {
	o := &outbound{
		flow: f, ready: make(chan struct{}, 1),
		quit: make(chan struct{}), gone: make(chan struct{}), fin: make(chan struct{}),
		window: receiveWindow{flow: f},
	}
	o.try = func(fd uintptr) bool {
		o.writev(fd)
		return o.errno != unix.EAGAIN
	}
	o.once = o.writev
	return o
}

// NotifyEvent implements waiter.EventListener. gVisor may hold the endpoint's lock.
func (o *outbound) NotifyEvent(mask waiter.EventMask) {
	if mask&(waiter.EventErr|waiter.EventHUp) != 0 && o.parked.Load() {
		o.hurry()
	}
	if !o.flow.guest.Turn.notes(o) {
		o.wake()
	}
}

func (o *outbound) wake() {
	select {
	case o.ready <- struct{}{}:
	default:
	}
	if o.started.CompareAndSwap(false, true) {
		go o.serve()
	}
}

// end ends the goroutine of this direction once it waits no more for the host: the flow
// was stopped, or the guest's FIN has been passed on. Nobody looks at the queue after it.
func (o *outbound) end() {
	close(o.quit)
	if !o.started.CompareAndSwap(false, true) {
		<-o.gone
	}
	o.mu.Lock()
	o.over = true
	o.mu.Unlock()
}

// serve is the life of that goroutine.
func (o *outbound) serve() {
	defer close(o.gone)
	for {
		select {
		case <-o.ready:
		case <-o.quit:
			return
		}
		if !o.next() {
			return
		}
	}
}

// pump writes what the host takes at once, in the goroutine that calls it. What is more
// is for the goroutine of this direction.
func (o *outbound) pump() {
	if !o.mu.TryLock() {
		o.wake()
		return
	}
	defer o.mu.Unlock()
	if !o.over {
		o.nextLocked(o.writeOnce)
	}
}

func (o *outbound) next() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.nextLocked(o.write)
}

// nextLocked writes all that there is, by write, until that returns false. It reports
// whether there may be more.
func (o *outbound) nextLocked(write func() bool) bool {
	f := o.flow
	if o.closed {
		return o.watch()
	}
	o.batch = batches.Get().(*batch) //nolint:forcetypeassert // nothing else is put there
	defer func() {
		clear(o.batch.iov[:o.batch.n]) // do not keep the segments alive
		batches.Put(o.batch)
		o.batch = nil
	}()
	for !f.isStopped() {
		clear(o.batch.iov[:o.batch.n])
		o.batch.n, o.batch.bytes = 0, 0
		_, err := f.ep.Read(o.batch, tcpip.ReadOptions{Peek: true})
		if o.batch.bytes == 0 {
			switch err.(type) {
			case *tcpip.ErrWouldBlock, nil:
				return true
			case *tcpip.ErrClosedForReceive:
				if endpointReset(f.ep) {
					f.guestError("read", &tcpip.ErrConnectionReset{})
					return false
				}
				f.finPassed.Store(true)
				// Where the host has closed too, its socket is closed next.
				if !f.finSent.Load() {
					if err := f.closeWrite(); err != nil {
						f.hostError("shut down", err)
						return false
					}
				}
				o.closed = true
				close(o.fin)
				return o.watch()
			}
			f.guestError("read", err)
			return false
		}
		if !write() || !o.take() {
			return false
		}
	}
	return false
}

// write waits until the host takes something of the batch.
func (o *outbound) write() bool {
	f := o.flow
	err := f.raw.Control(o.once)
	if err == nil && o.errno == unix.EAGAIN {
		o.window.full()
	}
	if err == nil && o.errno == unix.EAGAIN && !o.slow {
		if err = o.wait(time.Now().Add(again)); errors.Is(err, os.ErrDeadlineExceeded) {
			err = f.raw.Control(o.once)
			o.slow = o.wrote < worthIt
		}
	}
	if err == nil && o.errno == unix.EAGAIN {
		err = o.wait(time.Time{})
		o.slow = false
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // see hurry; or f was stopped before
		f.stop(fmt.Errorf("relay: write: guest: %w", ErrReset))
	case err != nil:
		f.hostError("write", err)
	}
	return err == nil
}

// wait is write until a deadline; zero: none.
func (o *outbound) wait(deadline time.Time) error {
	f := o.flow
	if err := f.host.SetWriteDeadline(deadline); err != nil {
		return err
	}
	o.parked.Store(true)
	defer o.parked.Store(false)
	o.hurry()          // it may have been notified before
	if f.isStopped() { // which has set a deadline too, perhaps before this one
		return os.ErrDeadlineExceeded
	}
	return f.raw.Write(o.try)
}

// hurry gives the host lingerTime to take what a guest has sent that has reset the
// connection since. It would be waited for for ever: a host that does not read sees no
// reset, and the guest knows of nothing any more.
func (o *outbound) hurry() {
	f := o.flow
	if !guestReset(f) {
		return
	}
	// An error of either is for whoever writes.
	_ = f.host.SetWriteDeadline(time.Now().Add(lingerTime))
	if f.isStopped() { // which has set a deadline too, perhaps before this one
		_ = f.host.SetDeadline(longAgo)
	}
}

// writeOnce leaves what the host does not take at once to the goroutine.
func (o *outbound) writeOnce() bool {
	if err := o.flow.raw.Control(o.once); err != nil || o.errno == unix.EAGAIN {
		o.wake()
		return false
	}
	return true
}

func (o *outbound) writev(fd uintptr) {
	o.wrote = 0
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&o.batch.iov[0])), uintptr(o.batch.n))
		if o.errno = errno; errno == 0 {
			o.wrote = int(n)
		}
		if errno != unix.EINTR {
			return
		}
	}
}

// take takes out of the queue what was written. It reports whether this direction goes
// on.
func (o *outbound) take() bool {
	f := o.flow
	if o.errno != 0 {
		f.hostError("write", o.errno)
		return false
	}
	o.taken.left = o.wrote
	if _, err := f.ep.Read(&o.taken, tcpip.ReadOptions{}); err != nil {
		f.guestError("read", err)
		return false
	}
	for _, b := range f.bytes {
		b.FromGuest.Add(uint64(o.wrote))
	}
	f.toHost.Add(uint64(o.wrote))
	o.window.earn(o.wrote)
	return true
}

// watch looks for a reset that comes after the guest's FIN, which would go unseen: nobody
// reads any more.
func (o *outbound) watch() bool {
	f := o.flow
	if guestReset(f) && !f.finSent.Load() {
		f.stop(fmt.Errorf("relay: after FIN: guest: %w", ErrReset))
		return false
	}
	return true
}
