package portfwd

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

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
	listeners []*net.TCPListener // TCP
	limit     int64              // TCP: of open
	udp       io.Closer          // UDP

	open  atomic.Int64
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
	for _, l := range p.listeners {
		errs = append(errs, l.Close())
	}
	if p.udp != nil {
		errs = append(errs, p.udp.Close())
	}
	return errors.Join(errs...)
}

// accept serves l until it is closed. A failed accept (EMFILE, ENFILE, ENOBUFS,
// ENOMEM in accept(2)) leaves the client in the backlog, and accept waits for
// others to give back what is short.
func (p *port) accept(l *net.TCPListener) {
	var pause time.Duration
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			pause = 0
		case p.m.ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return
		default:
			if p.acceptErrors.Add(1); pause == 0 {
				p.m.cfg.Log.Warn("accept", "port", p.spec.String(), "err", err)
			}
			pause = min(max(2*pause, minPause), maxPause)
			if !sleep(p.m.ctx, pause) {
				return
			}
			continue
		}
		if p.open.Add(1) > p.limit {
			p.open.Add(-1)
			p.limited.Add(1)
			relay.Reset(c)
			continue
		}
		p.m.tasks.Go(func() {
			defer p.open.Add(-1)
			p.serve(c)
		})
	}
}

// serve relays one client, and closes it.
func (p *port) serve(c *net.TCPConn) {
	client := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	ways := p.m.cfg.routes(client, p.spec)
	// Whatever serve waits for, the end of the Manager ends it.
	defer context.AfterFunc(p.m.ctx, func() { relay.Reset(c) })()
	if p.path == PathTAP {
		p.forward(c, ways)
		return
	}
	guest, err := p.dial(ways)
	if err != nil {
		p.count(err)
		relay.Reset(c)
		return
	}
	defer context.AfterFunc(p.m.ctx, func() { relay.Reset(guest) })()
	p.flows.Add(1)
	_, _ = relay.Splice(c, guest, &p.bytes) // how a connection ends is its peers' business
}

// forward takes the TAP path.
func (p *port) forward(c *net.TCPConn, ways []route) {
	p.flows.Add(1)
	var err error
	for _, w := range ways {
		if err = p.m.cfg.Stack.ForwardTCP(p.m.ctx, c, w.from, w.to, &p.bytes); !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	if err != nil {
		p.count(err)
		relay.Reset(c) // does nothing when the stack has closed it
	}
}

// dial takes the kernel path: the first way on which the container answers.
func (p *port) dial(ways []route) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(p.m.ctx, p.m.cfg.Limits.Connect)
	defer cancel()
	var err error
	for _, w := range ways {
		var guest *net.TCPConn
		if guest, err = p.m.connect(ctx, w); err == nil {
			return guest, nil
		}
		if !absent(err) {
			break
		}
	}
	return nil, err
}

// absent tells that nobody serves the address: no listener, or no such address.
func absent(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EADDRNOTAVAIL) ||
		errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH)
}

// connect connects from the client's address and port, or from its address and
// another port where that one cannot be had: a connection of the same addresses
// exists or lies in TIME_WAIT, or the port is privileged (EACCES in bind(2)).
func (m *Manager) connect(ctx context.Context, w route) (*net.TCPConn, error) {
	c, err := m.connectOnce(ctx, w)
	if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EACCES) {
		w.from = netip.AddrPortFrom(w.from.Addr(), 0)
		return m.connectOnce(ctx, w)
	}
	return c, err
}

func (m *Manager) connectOnce(ctx context.Context, w route) (*net.TCPConn, error) {
	family := syscall.AF_INET
	if w.to.Addr().Is6() {
		family = syscall.AF_INET6
	}
	sock, err := m.pools[family].take(ctx)
	if err != nil {
		return nil, err
	}
	return relay.Connect(ctx, sock, w.from, w.to)
}

// count enters why a client was reset.
func (p *port) count(err error) {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		p.refused.Add(1)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		p.timedOut.Add(1)
	case errors.Is(err, context.Canceled): // the Manager ends
	default:
		p.failed.Add(1)
	}
}
