package relay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
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

// Guest is what all flows of a guest share. Its Rush and Budget are set before the first.
type Guest struct {
	// Turn is that of the goroutine that hands gVisor the guest's segments.
	Turn Turn
	// Budget bounds what the flows have queued.
	Budget *Budget
}

// flow is one TCP connection of the guest joined to one of the host.
//
// The direction host → guest is the goroutine of Run, the other one is in outbound.go. The
// endpoint's receive queue is lent to the kernel while that writes it out, so nobody may
// close or abort the endpoint before both have ended: whoever wants the flow to end calls
// stop, which wakes both.
type flow struct {
	ep    tcpip.Endpoint
	queue *waiter.Queue
	host  Socket
	raw   syscall.RawConn
	bytes []*Bytes
	guest *Guest

	gone func() // see Run

	// For the budget.
	fromHost, toHost    atomic.Uint64 // bytes that were read from the host, and written to it
	segment             atomic.Int64  // mean size of those that gVisor got to send, in bytes
	toGuestBy, toHostBy progress      // the Budget's
	lingers             atomic.Bool   // both directions have ended, and gVisor may close the endpoint

	finSent   atomic.Bool // the host's FIN went to the guest
	finPassed atomic.Bool // the guest's FIN goes to the host
	stopped   chan struct{}
	cause     atomic.Pointer[error]
}

// Run joins ep, an established connection of the guest, and host until both
// directions have ended, one side is reset, or ctx is done. A FIN is passed on
// as a FIN, a reset as a reset. Run owns both ends and closes them.
//
// It returns nil when both sides closed in order, ErrReset (wrapped) after a
// reset, ctx's error when ctx ended it. The flow is counted in each of bytes while
// it runs. guest is what all flows of the guest share.
//
// gone is called once, when ep holds nothing any more. That may be after Run has returned:
// the guest takes the last bytes when it likes, but not for longer than lingerTime.
func Run(ctx context.Context, ep tcpip.Endpoint, queue *waiter.Queue, host Socket, guest *Guest, gone func(), bytes ...*Bytes) error {
	f := &flow{guest: guest, ep: ep, queue: queue, host: host, bytes: bytes, stopped: make(chan struct{})}
	f.gone = func() {
		guest.Budget.leave(f)
		gone()
	}
	guest.Budget.join(f)
	raw, err := host.SyscallConn()
	if err != nil {
		ep.Abort()
		f.gone()
		return fmt.Errorf("relay: %w", err)
	}
	f.raw = raw
	// Both fail on a closed socket only.
	_ = raw.Control(func(fd uintptr) {
		// An urgent byte is one of the stream, tcp(7).
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
	})
	defer context.AfterFunc(ctx, func() { f.stop(context.Cause(ctx)) })()

	// From here on the relay alone sets the size of the send buffer, see sendWindow.
	ep.SocketOptions().SetSendBufferSize(StartWindow, true)
	o := newOutbound(f)
	var entry waiter.Entry
	entry.Init(o, waiter.ReadableEvents|waiter.EventErr|waiter.EventHUp)
	f.queue.EventRegister(&entry)
	o.pump() // what came before
	f.toGuest()
	select {
	case <-o.fin:
	case <-f.stopped:
	}
	f.queue.EventUnregister(&entry)
	o.end()
	return f.finish()
}

// stop ends both directions with the first cause given.
func (f *flow) stop(cause error) {
	if !f.cause.CompareAndSwap(nil, &cause) {
		return
	}
	close(f.stopped)
	// A deadline in the past wakes who is parked on the host's socket.
	_ = f.host.SetDeadline(longAgo)
}

// giveUp ends a flow, also when only gVisor still has bytes of it for the guest.
func (f *flow) giveUp(cause error) {
	f.stop(cause)
	if f.lingers.Load() {
		f.ep.Abort()
	}
}

func (f *flow) isStopped() bool {
	select {
	case <-f.stopped:
		return true
	default:
		return false
	}
}

// finish closes both ends: in order, or with a reset after a failure.
func (f *flow) finish() error {
	cause := f.cause.Load()
	if cause == nil {
		f.lingers.Store(true)
		linger(f.ep, f.queue, f.gone)
		if err := f.host.Close(); err != nil {
			return fmt.Errorf("relay: close: %w", err)
		}
		return nil
	}
	f.ep.Abort()
	f.gone()
	Reset(f.host)
	return *cause
}

// closeWrite sends FIN to the host.
func (f *flow) closeWrite() error {
	var result error
	if err := f.raw.Control(func(fd uintptr) { result = unix.Shutdown(int(fd), unix.SHUT_WR) }); err != nil {
		return err
	}
	return os.NewSyscallError("shutdown", result)
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
