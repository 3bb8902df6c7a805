package relay

import (
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

const (
	// StartWindow is how many bytes of payload a flow may have queued in each direction
	// before it has shown that they are taken.
	StartWindow = 16 << 10
	// MaxWindow is the most that it may. 1 MiB costs a fifth of the throughput.
	MaxWindow = 4 << 20
	// bufferOfWindow is how much larger gVisor's receive buffer is than the window that it
	// advertises for it (rcvAdvWndScale in transport/tcp/endpoint.go).
	bufferOfWindow = 2
	// StartBuffer is the receive buffer in bytes that goes with StartWindow.
	StartBuffer = bufferOfWindow * StartWindow
	// MaxBuffer is the largest receive buffer in bytes.
	MaxBuffer = MaxWindow
	// unreadBytes are what a guest's kernel takes for a program that never reads. A window is as
	// large as all that was taken beyond them.
	unreadBytes = 128 << 10
	// earnedPart of what was taken by the host is its window: a kernel takes more there, for its
	// send buffer comes on top.
	earnedPart = 4
	// prompt is how long whoever takes the bytes may pause while memory is tight: the window is
	// then what is taken in twice that time.
	prompt = 10 * time.Millisecond
)

// sendWindow is how much of the host's bytes may wait in gVisor for the guest. It is
// enforced by reading no more from the host, so it may shrink at any time.
type sendWindow struct {
	flow  *flow
	size  int  // in bytes, StartWindow to MaxWindow
	small bool // the host sends small messages, see smallBuffer
	set   int  // what gVisor was told

	// When the present interval began, what was taken before it, and what was in the last one.
	since          time.Time
	before, recent uint64
}

func newSendWindow(f *flow) sendWindow {
	return sendWindow{flow: f, size: StartWindow, set: StartWindow}
}

// open tells gVisor how much may be queued now.
func (w *sendWindow) open() {
	size := w.size
	if w.small {
		size = min(size, smallBuffer)
	}
	b := w.flow.guest.Budget
	left := b.left()
	if size > StartWindow || left != enough {
		w.note(time.Now())
	}
	switch left {
	case little:
		// What the guest takes in twice the time that it may pause.
		size = min(size, max(b.floor, int(min(2*w.recent, MaxWindow))))
	case none:
		size = min(size, b.floor)
	}
	if size != w.set {
		w.set = size
		w.flow.ep.SocketOptions().SetSendBufferSize(int64(size), false)
	}
}

// note measures what the guest takes, in intervals.
func (w *sendWindow) note(now time.Time) {
	passed := now.Sub(w.since)
	if passed < prompt {
		return
	}
	taken := w.taken()
	w.recent = taken - w.before
	if passed >= 2*prompt {
		w.recent = 0 // of some time or other
	}
	w.since, w.before = now, taken
}

// taken is how many bytes the guest has acknowledged.
func (w *sendWindow) taken() uint64 {
	return w.flow.fromHost.Load() - uint64(queuedToSend(w.flow.ep))
}

// wrote notes that a segment of n bytes was queued.
func (w *sendWindow) wrote(n int) {
	f := w.flow
	f.fromHost.Add(uint64(n))
	f.segment.Store((7*f.segment.Load() + int64(n)) / 8)
	f.guest.Budget.Take(n)
}

// earn is called when gVisor takes more again after it was full.
func (w *sendWindow) earn() {
	if taken := w.taken(); taken > unreadBytes {
		w.size = int(min(max(taken-unreadBytes, uint64(w.size)), MaxWindow))
	}
}

// receiveWindow is how much of the guest's bytes may wait in gVisor for the host. The guest
// is told of it, so it never shrinks, unless memory is tight (see Budget).
type receiveWindow struct {
	flow *flow
	run  int64 // bytes that the host has taken since it last had no room
}

// full is called when the host takes no more.
func (w *receiveWindow) full() { w.run = 0 }

// earn is called when the host has taken n bytes.
func (w *receiveWindow) earn(n int) {
	w.run += int64(n)
	o := w.flow.ep.SocketOptions()
	size := o.GetReceiveBufferSize()
	if size >= MaxBuffer || w.run*bufferOfWindow < size {
		return // it takes less than a window at a time
	}
	// A bit at a time would not be worth a lock.
	if earned := int64(w.flow.toHost.Load() / earnedPart * bufferOfWindow); earned >= size+size/2 {
		o.SetReceiveBufferSize(min(earned, MaxBuffer), true)
	}
}

// queuedBytes is how much memory gVisor has for what the guest has to take, and for what the
// host has to.
func (f *flow) queuedBytes() (toGuest, toHost int) {
	ep := endpointOf(f.ep)
	if ep == nil {
		return 0, 0
	}
	toGuest = sendBufferUsed(ep)
	segments := toGuest / max(int(f.segment.Load()), 1)
	return toGuest + segments*segmentOverhead, receiveMemUsed(ep)
}

// shutBuffer makes the receive buffer no larger than size: gVisor drops what the guest sends
// beyond that, though it may have been told of a larger window.
func (f *flow) shutBuffer(size int) {
	if o := f.ep.SocketOptions(); o.GetReceiveBufferSize() > int64(size) {
		o.SetReceiveBufferSize(int64(size), false)
	}
}

// queuedToSend is what the guest has not acknowledged.
func queuedToSend(ep tcpip.Endpoint) int {
	if t := endpointOf(ep); t != nil {
		return sendBufferUsed(t)
	}
	return 0
}
