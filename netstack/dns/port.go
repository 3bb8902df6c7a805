package dns

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// Who wants to forge an answer has to guess the port that a query left from. One that has carried
	// portUses queries, or is older than portAge, is not used again: making it costs as much as the
	// rest of a query, so a share of it is left that no longer matters.
	portUses = 32
	portAge  = 3 * time.Second
	// maxIdle bounds the ports that wait for their next query.
	maxIdle = 64
)

// port is a socket that is connected to a resolver, for one query at a time.
type port struct {
	net.Conn
	to   netip.AddrPort
	uses int
	made time.Time
}

// ports are those that no query uses.
type ports struct {
	dial func(ctx context.Context, network string, resolver netip.AddrPort) (net.Conn, error)

	mu     sync.Mutex // guards the following fields
	idle   []*port
	sweep  *time.Timer // nil while there are none
	closed bool
}

// take returns a port to a resolver for one query: to be given back after an answer, and closed after
// anything else.
func (p *ports) take(ctx context.Context, resolver netip.AddrPort) (*port, error) {
	if k := p.find(resolver); k != nil {
		return k, nil
	}
	c, err := p.dial(ctx, "udp", resolver)
	if err != nil {
		return nil, err
	}
	return &port{Conn: c, to: resolver, made: time.Now()}, nil
}

func (p *ports) find(resolver netip.AddrPort) *port {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, k := range p.idle {
		if k.to == resolver && time.Since(k.made) < portAge {
			last := len(p.idle) - 1
			p.idle[i] = p.idle[last]
			p.idle = p.idle[:last]
			return k
		}
	}
	return nil
}

// give takes a port back.
func (p *ports) give(k *port) {
	k.uses++
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || k.uses >= portUses || len(p.idle) >= maxIdle || time.Since(k.made) >= portAge {
		_ = k.Close()
		return
	}
	p.idle = append(p.idle, k)
	if p.sweep == nil {
		p.sweep = time.AfterFunc(portAge, p.closeOld)
	}
}

// closeOld closes the ports that are too old.
func (p *ports) closeOld() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(func(k *port) bool { return time.Since(k.made) >= portAge })
	p.sweep = nil
	if len(p.idle) > 0 {
		p.sweep = time.AfterFunc(portAge, p.closeOld)
	}
}

// distrust closes the ports to a resolver that failed: the way to it may be another one by now.
func (p *ports) distrust(resolver netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(func(k *port) bool { return k.to == resolver })
}

// close closes all ports, and those that are given back from now on.
func (p *ports) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.drop(func(*port) bool { return true })
	if p.sweep != nil {
		p.sweep.Stop()
	}
}

// drop closes the ports for which which says so. p.mu is held.
func (p *ports) drop(which func(*port) bool) {
	kept := p.idle[:0]
	for _, k := range p.idle {
		if which(k) {
			_ = k.Close()
			continue
		}
		kept = append(kept, k)
	}
	clear(p.idle[len(kept):])
	p.idle = kept
}
