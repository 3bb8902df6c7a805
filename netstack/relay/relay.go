package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Bytes counts one flow, or many flows that share it, while they run.
type Bytes struct {
	FromGuest atomic.Uint64
	ToGuest   atomic.Uint64
}

// ErrReset is the cause of a flow that one side reset.
var ErrReset = errors.New("connection reset")

// flow is one TCP connection of the guest joined to one of the host.
//
// Each direction is a goroutine. The endpoint's receive queue is lent to the
// kernel while one direction writes it out (outbound.go), so nobody may close or
// abort the endpoint before both have ended: whoever wants the flow to end calls
// stop, which wakes both.
type flow struct {
	ep    tcpip.Endpoint
	queue *waiter.Queue
	host  *net.TCPConn
	raw   syscall.RawConn
	bytes []*Bytes

	finSent   atomic.Bool   // the host's FIN went to the guest
	finPassed atomic.Bool   // the guest's FIN goes to the host
	inbound   chan struct{} // closed when the direction host → guest has ended
	stopped   chan struct{}
	cause     atomic.Pointer[error]
}

// Run joins ep, an established connection of the guest, and host until both
// directions have ended, one side is reset, or ctx is done. A FIN is passed on
// as a FIN, a reset as a reset. Run owns both ends and closes them.
//
// It returns nil when both sides closed in order, ErrReset (wrapped) after a
// reset, ctx's error when ctx ended it. The flow is counted in each of bytes while
// it runs.
func Run(ctx context.Context, ep tcpip.Endpoint, queue *waiter.Queue, host *net.TCPConn, bytes ...*Bytes) error {
	f := &flow{ep: ep, queue: queue, host: host, bytes: bytes, inbound: make(chan struct{}), stopped: make(chan struct{})}
	raw, err := host.SyscallConn()
	if err != nil {
		ep.Abort()
		return fmt.Errorf("relay: %w", err)
	}
	f.raw = raw
	defer context.AfterFunc(ctx, func() { f.stop(context.Cause(ctx)) })()

	go func() {
		defer close(f.inbound)
		f.toGuest()
	}()
	f.fromGuest()
	<-f.inbound
	return f.finish()
}

// stop ends both directions with the first cause given.
func (f *flow) stop(cause error) {
	if !f.cause.CompareAndSwap(nil, &cause) {
		return
	}
	close(f.stopped)
	// A deadline in the past wakes who is parked on the host's socket.
	_ = f.host.SetDeadline(time.Unix(1, 0))
}

// finish closes both ends: in order, or with a reset after a failure.
func (f *flow) finish() error {
	cause := f.cause.Load()
	if cause == nil {
		f.ep.Close()
		if err := f.host.Close(); err != nil {
			return fmt.Errorf("relay: close: %w", err)
		}
		return nil
	}
	f.ep.Abort()
	_ = f.host.SetLinger(0) // RST instead of FIN
	_ = f.host.Close()
	return *cause
}

// wait blocks until the endpoint notifies ready; it reports false when the flow
// has been stopped.
func (f *flow) wait(ready <-chan struct{}) bool {
	select {
	case <-ready:
		return true
	case <-f.stopped:
		return false
	}
}

// guestError turns an error of the endpoint into the flow's end.
func (f *flow) guestError(op string, err tcpip.Error) {
	reset := false
	switch err.(type) {
	case *tcpip.ErrConnectionReset, *tcpip.ErrAborted, *tcpip.ErrConnectionAborted:
		reset = true
	case *tcpip.ErrClosedForSend:
		reset = endpointReset(f.ep) // of which the other direction was told
	}
	if reset {
		f.stop(fmt.Errorf("relay: %s: guest: %w", op, ErrReset))
		return
	}
	f.stop(fmt.Errorf("relay: %s: guest: %s", op, err))
}

// hostError turns an error of the host's socket into the flow's end.
func (f *flow) hostError(op string, err error) {
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		err = ErrReset
	}
	f.stop(fmt.Errorf("relay: %s: host: %w", op, err))
}
