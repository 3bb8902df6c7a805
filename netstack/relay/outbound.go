package relay

import (
	"fmt"
	"io"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxPieces and maxBatch bound one writev: the segments of a batch stay in the
	// guest's receive queue until the host has taken them.
	maxPieces = 64
	maxBatch  = 512 << 10
)

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

// outbound writes the guest's bytes to the host's socket: look at all queued
// segments, one writev, then take out what the host took. There is no copy in
// between. The endpoint purges its receive queue only when it is closed or
// aborted, which happens after this direction has ended.
type outbound struct {
	flow  *flow
	batch batch
	taken discard
	wrote int
	errno unix.Errno
	try   func(fd uintptr) bool
}

// fromGuest runs the direction guest → host until FIN, failure or stop.
func (f *flow) fromGuest() {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	f.queue.EventRegister(&entry)
	defer f.queue.EventUnregister(&entry)
	o := &outbound{flow: f}
	o.try = func(fd uintptr) bool {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&o.batch.iov[0])), uintptr(o.batch.n))
		if errno == unix.EAGAIN || errno == unix.EINTR {
			return errno == unix.EINTR
		}
		o.wrote, o.errno = int(n), errno
		return true
	}
	for {
		o.batch.n, o.batch.bytes = 0, 0
		_, err := f.ep.Read(&o.batch, tcpip.ReadOptions{Peek: true})
		if o.batch.bytes == 0 {
			switch err.(type) {
			case *tcpip.ErrWouldBlock, nil:
				if !f.wait(ready) {
					return
				}
				continue
			case *tcpip.ErrClosedForReceive:
				if endpointReset(f.ep) {
					f.guestError("read", &tcpip.ErrConnectionReset{})
					return
				}
				f.finPassed.Store(true)
				if err := f.host.CloseWrite(); err != nil {
					f.hostError("shut down", err)
					return
				}
				f.watch(ready)
				return
			}
			f.guestError("read", err)
			return
		}
		if !o.write() {
			return
		}
	}
}

// watch waits for the other direction after the guest's FIN. A reset that comes
// then would go unseen: nobody reads any more.
func (f *flow) watch(ready <-chan struct{}) {
	for {
		// A reset in CLOSE_WAIT leaves the endpoint closed and not in error.
		state := tcp.EndpointState(f.ep.State())
		if (state == tcp.StateError || state == tcp.StateClose) && !f.finSent.Load() {
			f.stop(fmt.Errorf("relay: after FIN: guest: %w", ErrReset))
			return
		}
		select {
		case <-ready:
		case <-f.inbound:
			return
		case <-f.stopped:
			return
		}
	}
}

// write hands one batch to the host and takes what went out of the queue.
func (o *outbound) write() bool {
	f := o.flow
	o.wrote, o.errno = 0, 0
	if err := f.raw.Write(o.try); err != nil {
		f.hostError("write", err)
		return false
	}
	if o.errno != 0 {
		f.hostError("write", o.errno)
		return false
	}
	if o.wrote == 0 {
		return true
	}
	o.taken.left = o.wrote
	if _, err := f.ep.Read(&o.taken, tcpip.ReadOptions{}); err != nil {
		f.guestError("read", err)
		return false
	}
	for _, b := range f.bytes {
		b.FromGuest.Add(uint64(o.wrote))
	}
	f.ep.ModerateRecvBuf(min(o.wrote, math.MaxInt32))
	return true
}
