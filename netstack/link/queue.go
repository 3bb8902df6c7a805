package link

import (
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/qdisc/fifo"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// sendQueue is how many packets of up to 64 KiB may wait for the TAP. The
	// windows of the flows keep it short; what exceeds it is dropped and counted.
	sendQueue = 4096
	// directBelow is how much data in bytes a packet has at the most that is written by
	// whom gVisor runs in. Those without, which begin and end a connection, are queued: the
	// guest answers them at once, while the writer still had the connection's lock.
	directBelow = 8 << 10
	// maxHeld acknowledgements wait for the end of a turn.
	maxHeld = 16
)

// Queue is the queueing discipline between gVisor and the endpoint. Writing to the TAP
// runs the guest's receive path in the writer. A goroutine of its own for that lets
// gVisor go on meanwhile, which a stream needs, in both directions. But an answer of a
// few bytes would wait for that goroutine to wake: where nothing is queued before it, it
// is written at once. The order within a flow stays, for gVisor sends with the flow's
// lock held.
type Queue struct {
	link    *Endpoint
	fifo    stack.QueueingDiscipline
	waiting atomic.Int64 // packets that are in fifo, or on their way from it to the TAP

	mu      sync.Mutex // guards the following fields
	holding bool
	held    [maxHeld]*stack.PacketBuffer
	n       int // of held
}

var _ stack.QueueingDiscipline = (*Queue)(nil)

func newQueue(e *Endpoint) *Queue {
	q := &Queue{link: e}
	q.fifo = fifo.New(queued{q}, 1, sendQueue)
	return q
}

// WritePacket implements stack.QueueingDiscipline.
func (q *Queue) WritePacket(pkt *stack.PacketBuffer) tcpip.Error {
	if acknowledgement(pkt) {
		if q.hold(pkt) {
			return nil
		}
	} else if n := pkt.Data().Size(); n > 0 && n <= directBelow {
		return q.send(pkt)
	}
	return q.enqueue(pkt)
}

// send writes pkt at once, where nothing is queued before it.
func (q *Queue) send(pkt *stack.PacketBuffer) tcpip.Error {
	if q.waiting.Load() == 0 {
		return q.link.writeOne(pkt)
	}
	return q.enqueue(pkt)
}

func (q *Queue) enqueue(pkt *stack.PacketBuffer) tcpip.Error {
	q.waiting.Add(1)
	err := q.fifo.WritePacket(pkt)
	if err != nil {
		q.waiting.Add(-1)
	}
	return err
}

// acknowledgement reports whether pkt is a TCP segment that says nothing else.
func acknowledgement(pkt *stack.PacketBuffer) bool {
	return pkt.TransportProtocolNumber == header.TCPProtocolNumber && pkt.Data().Size() == 0 &&
		header.TCP(pkt.TransportHeader().Slice()).Flags() == header.TCPFlagAck
}

// begin makes acknowledgements wait for release.
func (q *Queue) begin() {
	q.mu.Lock()
	q.holding = true
	q.mu.Unlock()
}

func (q *Queue) hold(pkt *stack.PacketBuffer) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.holding || q.n == maxHeld {
		return false
	}
	q.held[q.n] = pkt.IncRef()
	q.n++
	return true
}

// release writes what waits since begin.
func (q *Queue) release() {
	q.mu.Lock()
	q.holding = false
	held, n := q.held, q.n
	clear(q.held[:n])
	q.n = 0
	q.mu.Unlock()
	for _, pkt := range held[:n] {
		_ = q.send(pkt)
		pkt.DecRef()
	}
}

// Close implements stack.QueueingDiscipline.
func (q *Queue) Close() {
	q.release()
	q.fifo.Close()
}

// queued writes what comes out of the queue.
type queued struct{ q *Queue }

// WritePackets implements stack.LinkWriter.
func (w queued) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	defer w.q.waiting.Add(-int64(pkts.Len()))
	return w.q.link.WritePackets(pkts)
}
