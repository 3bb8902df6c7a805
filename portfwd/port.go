package portfwd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/relay"
	"slipway/netstack/udp"
)

// port is one published port that runs.
type port struct {
	m         *Manager
	id        int
	spec      Spec
	path      string
	bound     []netip.AddrPort
	listeners []io.Closer     // TCP
	ctx       context.Context // TCP: ends with the listeners
	cancel    context.CancelFunc
	udp       io.Closer // UDP

	open  atomic.Int64 // TCP: changed by places
	bytes relay.Bytes
	flows, refused, timedOut, failed,
	limited, acceptErrors atomic.Uint64
}

func (p *port) stats() Stats {
	if pub, ok := p.udp.(interface{ Stats() udp.Published }); ok {
		n := pub.Stats()
		return Stats{Flows: n.SessionsTotal, Open: n.Sessions, ToGuest: n.TxBytes, FromGuest: n.RxBytes}
	}
	return Stats{
		Flows: p.flows.Load(), Open: uint64(p.open.Load()),
		ToGuest: p.bytes.ToGuest.Load(), FromGuest: p.bytes.FromGuest.Load(),
		Refused: p.refused.Load(), TimedOut: p.timedOut.Load(), Failed: p.failed.Load(),
		Limited: p.limited.Load(), AcceptErrors: p.acceptErrors.Load(),
	}
}

func (p *port) close() error {
	var errs []error
	if p.cancel != nil {
		p.cancel()
	}
	for _, l := range p.listeners {
		errs = append(errs, l.Close())
	}
	if p.udp != nil {
		errs = append(errs, p.udp.Close())
	}
	return errors.Join(errs...)
}

// serveTAP serves the clients of f, a listening socket, by the TAP path.
func (p *port) serveTAP(f *os.File) error {
	l, err := net.FileListener(f)
	if err != nil {
		return err
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return errors.Join(fmt.Errorf("%v is not a TCP socket", l.Addr()), l.Close())
	}
	p.listeners = append(p.listeners, tcp)
	bound, err := boundTo(f)
	if err != nil {
		return err
	}
	p.bound = append(p.bound, bound...)
	p.m.tasks.Go(func() { p.accept(tcp) })
	return nil
}

// boundTo is where f is bound.
func boundTo(f *os.File) (bound []netip.AddrPort, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := raw.Control(func(fd uintptr) { bound, err = relay.Addresses(int(fd)) }); cerr != nil {
		return nil, cerr
	}
	return bound, err
}

// serveKernel serves the clients of f by the kernel path.
func (p *port) serveKernel(f *os.File) error {
	fd, err := duplicate(f)
	if err != nil {
		return err
	}
	bound, err := relay.Addresses(fd)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	v, err := p.m.splicer.Serve(fd, p)
	if err != nil {
		return err
	}
	p.listeners = append(p.listeners, v)
	p.bound = append(p.bound, bound...)
	return nil
}

// Full implements relay.Port.
func (p *port) Full() bool { return p.m.full() != nil }

// Admit implements relay.Port.
func (p *port) Admit(client netip.AddrPort, w relay.Waiter) (relay.Ways, relay.Admission) {
	answer := p.m.places.take(p, client.Addr(), w)
	if answer == relay.Refused {
		p.limit()
		return relay.Ways{}, answer
	}
	return p.m.cfg.routes(client, p.spec), answer
}

// Leave implements relay.Port.
func (p *port) Leave(client netip.AddrPort, w relay.Waiter, err error) bool {
	if !p.m.places.leave(client.Addr(), w) {
		return false
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		p.limit()
	}
	return true
}

// limit counts a client that is reset for want of a place.
func (p *port) limit() {
	p.limited.Add(1)
	p.m.limited.Add(1)
}

// Connected implements relay.Port.
func (p *port) Connected() { p.flows.Add(1) }

// Ended implements relay.Port.
func (p *port) Ended(client netip.AddrPort, connected *relay.Counts, err error) {
	p.m.places.give(p, client.Addr())
	if connected == nil { // how a connection ends is its peers' business
		p.count(err)
	}
}

// AcceptFailed implements relay.Port.
func (p *port) AcceptFailed(err error) {
	p.m.acceptErrors.Add(1)
	if p.acceptErrors.Add(1) == 1 {
		p.m.cfg.Log.Warn("accept", "port", p.spec.String(), "err", err)
	}
}

// Moved implements relay.Port.
func (p *port) Moved() *relay.Bytes { return &p.bytes }

// accept serves l by the TAP path until it is closed. A failed accept (EMFILE, ENFILE,
// ENOBUFS, ENOMEM in accept(2)) leaves the client in the backlog, and accept waits for
// others to give back what is short.
func (p *port) accept(l *net.TCPListener) {
	var pause time.Duration
	for {
		for more := p.m.full(); more != nil; more = p.m.full() {
			select {
			case <-more:
			case <-p.ctx.Done():
				return
			}
		}
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			pause = 0
		case p.m.ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return
		default:
			p.m.acceptErrors.Add(1)
			if p.acceptErrors.Add(1); pause == 0 {
				p.m.cfg.Log.Warn("accept", "port", p.spec.String(), "err", err)
			}
			pause = min(max(2*pause, minPause), maxPause)
			if !sleep(p.m.ctx, pause) {
				return
			}
			continue
		}
		client, mine := c.RemoteAddr().(*net.TCPAddr).AddrPort(), make(turn)
		ways, answer := p.Admit(client, mine)
		if answer == relay.Refused {
			relay.Reset(c)
			continue
		}
		p.m.tasks.Go(func() {
			// Whatever forward waits for, the end of the Manager ends it.
			defer context.AfterFunc(p.m.ctx, func() { relay.Reset(c) })()
			if answer == relay.Waiting && !p.wait(client, mine) {
				relay.Reset(c)
				return
			}
			defer p.m.places.give(p, client.Addr())
			p.forward(c, ways)
		})
	}
}

// turn is a client of the TAP path that waits; it is closed when the client has a place.
type turn chan struct{}

// Admitted implements relay.Waiter.
func (t turn) Admitted() { close(t) }

// wait reports whether the client has a place after it has waited.
func (p *port) wait(client netip.AddrPort, mine turn) bool {
	patience := time.NewTimer(p.m.cfg.Limits.Connect)
	defer patience.Stop()
	var err error
	select {
	case <-mine:
		return true
	case <-patience.C:
		err = os.ErrDeadlineExceeded
	case <-p.m.ctx.Done():
		err = p.m.ctx.Err()
	}
	return !p.Leave(client, mine, err)
}

// forward relays one client by the TAP path, and closes it.
func (p *port) forward(c *net.TCPConn, ways relay.Ways) {
	p.flows.Add(1)
	var err error
	for _, w := range ways.Way[:ways.N] {
		if err = p.m.cfg.Stack.ForwardTCP(p.m.ctx, c, w.From, w.To, &p.bytes); !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	if err != nil {
		p.count(err)
		relay.Reset(c) // does nothing when the stack has closed it
	}
}

// count enters why a client was reset.
func (p *port) count(err error) {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		p.refused.Add(1)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		p.timedOut.Add(1)
	case errors.Is(err, context.Canceled), errors.Is(err, relay.ErrStopped): // the Manager ends
	default:
		p.failed.Add(1)
	}
}
