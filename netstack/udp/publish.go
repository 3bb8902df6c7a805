package udp

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// published are the NAT's published ports.
type published struct {
	// targets are the guest's ends by address, replaced as a whole: Input asks it for every datagram.
	targets atomic.Pointer[map[netip.AddrPort]*target]

	mu     sync.Mutex // guards the following fields, and writers of targets
	ports  map[*Publication]struct{}
	closed bool
}

func (p *published) init() {
	p.ports = make(map[*Publication]struct{})
	p.targets.Store(&map[netip.AddrPort]*target{})
}

// target is an address and port of the guest that is published, once or more often.
type target struct {
	addr netip.AddrPort
	uses int // guarded by published.mu

	mu    sync.Mutex // guards the following field
	shown map[netip.AddrPort]*client
}

// Publication is a published port. Close ends it.
type Publication struct {
	nat       *NAT
	targets   [2]*target // IPv4, IPv6; nil: none
	listeners []*listener
	count     traffic

	mu      sync.Mutex // guards the following fields
	clients map[clientKey]*client
	recent  client // head of the list: next is the most recently used one
	closed  bool
}

var _ io.Closer = (*Publication)(nil)

// listener is one socket of a published port.
type listener struct {
	pub    *Publication
	socket *socket
}

// clientKey tells clients apart. The address of ours that a client uses belongs to
// it, so that each of its flows is answered from where it went.
type clientKey struct {
	listener *listener
	addr     netip.AddrPort
	scope    uint32 // of a link-local address, to which another interface is another host
	local    netip.Addr
}

// client is a flow from outside to a published port.
type client struct {
	pub        *Publication
	key        clientKey
	target     *target
	shown      netip.AddrPort // as the guest sees the client
	prev, next *client        // guarded by Publication.mu

	seen    atomic.Int64 // in either direction
	replied atomic.Bool
	out     outbound
	hop     hop
}

// Publish carries the datagrams of bound UDP sockets to the guest: those of IPv4
// clients to to4, of IPv6 clients to to6, or to the other one where the client's own
// family has no target. The guest sees the client's address and port; clients with
// a loopback, link-local or unspecified address, one of the guest's networks or the other family
// are shown as the gateway, with their port or, when that is taken, another. What the guest
// replies leaves from the address that the client sent to.
//
// The sockets are duplicated: the caller keeps its own and may close them. The result is a
// *Publication.
func (n *NAT) Publish(sockets []*os.File, to4, to6 netip.AddrPort) (io.Closer, error) {
	p := &Publication{nat: n, clients: make(map[clientKey]*client)}
	p.count.sum = &n.count.pub
	p.recent.next, p.recent.prev = &p.recent, &p.recent
	if len(sockets) == 0 {
		return nil, errors.New("publish UDP port: no socket")
	}
	for i, to := range []netip.AddrPort{to4, to6} {
		switch {
		case !to.IsValid():
		case to.Port() == 0 || to.Addr().Is4() != (i == 0) || to.Addr().Is4In6():
			return nil, fmt.Errorf("publish UDP port to %v and %v: want an IPv4 and an IPv6 address with a port", to4, to6)
		case !n.gateway[i].IsValid():
			return nil, fmt.Errorf("publish UDP port to %v: no gateway address of that family", to)
		}
	}
	if !to4.IsValid() && !to6.IsValid() {
		return nil, errors.New("publish UDP port: no target")
	}
	if err := n.published.add(p, to4, to6); err != nil {
		return nil, err
	}
	for _, f := range sockets {
		if err := p.listen(f); err != nil {
			p.Close()
			return nil, fmt.Errorf("publish UDP port on %s: %w", f.Name(), err)
		}
	}
	return p, nil
}

func (p *published) add(pub *Publication, to ...netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("publish UDP port: %w", errClosed)
	}
	all := maps.Clone(*p.targets.Load())
	for i, a := range to {
		if !a.IsValid() {
			continue
		}
		t := all[a]
		if t == nil {
			t = &target{addr: a, shown: make(map[netip.AddrPort]*client)}
			all[a] = t
		}
		t.uses++
		pub.targets[i] = t
	}
	p.targets.Store(&all)
	p.ports[pub] = struct{}{}
	return nil
}

func (p *published) remove(pub *Publication) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ports, pub)
	all := maps.Clone(*p.targets.Load())
	for _, t := range pub.targets {
		if t == nil {
			continue
		}
		if t.uses--; t.uses == 0 {
			delete(all, t.addr)
		}
	}
	p.targets.Store(&all)
}

func (p *published) list() []*Publication {
	p.mu.Lock()
	defer p.mu.Unlock()
	pubs := make([]*Publication, 0, len(p.ports))
	for pub := range p.ports {
		pubs = append(pubs, pub)
	}
	return pubs
}

func (p *published) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	for _, pub := range p.list() {
		pub.Close()
	}
}

// listen takes a duplicate of a bound socket into the poller.
func (p *Publication) listen(f *os.File) error {
	fd := -1
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(orig uintptr) { fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("duplicate descriptor: %w", err)
	}
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err == nil {
		kind, kerr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if kerr == nil && kind != unix.SOCK_DGRAM {
			kerr = unix.ESOCKTNOSUPPORT
		}
		err = errors.Join(kerr, unix.SetNonblock(fd, true))
	}
	if err == nil {
		switch family {
		case unix.AF_INET:
			err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_PKTINFO, 1)
		case unix.AF_INET6:
			err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		default:
			err = unix.EAFNOSUPPORT
		}
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("set up UDP socket: %w", err)
	}
	tune(fd)
	l := &listener{pub: p}
	p.mu.Lock() // the poller waits in accept until l is complete
	defer p.mu.Unlock()
	if p.closed {
		unix.Close(fd)
		return errClosed
	}
	if l.socket, err = p.nat.poller.add(fd, l); err != nil {
		return err
	}
	p.listeners = append(p.listeners, l)
	return nil
}

// Close ends the port and its clients' flows.
func (p *Publication) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	for _, c := range p.clients {
		p.removeLocked(c, closing)
	}
	listeners := p.listeners
	p.mu.Unlock()
	p.nat.published.remove(p)
	for _, l := range listeners {
		p.nat.poller.remove(l.socket)
	}
	return nil
}

// Stats are the port's own numbers, as in [Stats.Published].
func (p *Publication) Stats() Published { return p.count.published() }

// accept implements owner.
func (l *listener) accept(m *message) (from, to netip.AddrPort, ok bool) {
	p := l.pub
	now := p.nat.now.Load()
	key := clientKey{listener: l, addr: m.src, local: m.local}
	if m.src.Addr().IsLinkLocalUnicast() {
		key.scope = m.ifindex
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.clients[key]
	if c == nil {
		if c = p.newClient(key, m); c == nil {
			p.nat.count.clients.Add(uint64(m.datagrams()))
			return from, to, false
		}
	} else if p.recent.next != c {
		c.unlink()
		p.pushFront(c)
	}
	c.seen.Store(now)
	return c.shown, c.target.addr, true
}

// failed implements owner. It is never called: the sockets do not have IP_RECVERR set, because
// a client that is gone is no business of the guest's.
func (l *listener) failed(*sendError) {}

func (p *Publication) newClient(key clientKey, m *message) *client {
	if p.closed || key.addr.Port() == 0 {
		return nil
	}
	family := 1
	if key.addr.Addr().Is4() {
		family = 0
	}
	t := p.targets[family]
	own := t != nil
	if !own {
		family = 1 - family
		t = p.targets[family]
	}
	c := &client{pub: p, key: key, target: t}
	c.out = newOutbound(p.nat, t.addr, &p.count)
	c.hop = hop{socket: key.listener.socket, name: m.name, control: source(m.local, m.ifindex)}
	c.shown = key.addr
	if !own || !p.nat.foreign(key.addr.Addr()) {
		c.shown = netip.AddrPortFrom(p.nat.gateway[family], key.addr.Port())
	}
	if len(p.clients) >= p.nat.limits.Clients {
		p.removeLocked(p.recent.prev, evicted)
	}
	if !t.show(c) {
		return nil
	}
	p.clients[key] = c
	p.pushFront(c)
	p.count.opened()
	return c
}

// tries is how many ports are tried for a client whose own is taken.
const tries = 64

// show enters c under its address, with another port where somebody else has it
// already: clients that are all shown as the gateway can have the same.
func (t *target) show(c *client) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shown[c.shown] == nil {
		t.shown[c.shown] = c
		return true
	}
	for range tries {
		a := netip.AddrPortFrom(c.shown.Addr(), uint16(1024+rand.IntN(65536-1024)))
		if t.shown[a] == nil {
			c.shown = a
			t.shown[a] = c
			return true
		}
	}
	return false
}

func (c *client) unlink() {
	c.prev.next, c.next.prev = c.next, c.prev
	c.prev, c.next = nil, nil
}

func (p *Publication) pushFront(c *client) {
	c.prev, c.next = &p.recent, p.recent.next
	c.prev.next, c.next.prev = c, c
}

func (p *Publication) removeLocked(c *client, why reason) {
	c.unlink()
	delete(p.clients, c.key)
	c.target.mu.Lock()
	delete(c.target.shown, c.shown)
	c.target.mu.Unlock()
	p.count.closed(why)
}

// reply sends a datagram that the guest sends to a client of a published port;
// false when it is none.
func (n *NAT) reply(d *datagram) bool {
	t := (*n.published.targets.Load())[d.src]
	if t == nil {
		return false
	}
	t.mu.Lock()
	c := t.shown[d.dst]
	t.mu.Unlock()
	if c == nil {
		return false
	}
	c.seen.Store(n.now.Load())
	c.replied.Store(true)
	c.out.send(&c.hop, d)
	return true
}

// sweepClients ends the flows of clients that have been idle for too long at now.
func (n *NAT) sweepClients(now time.Duration) {
	for _, p := range n.published.list() {
		p.mu.Lock()
		for c := p.recent.next; c != &p.recent; {
			next := c.next
			idle := n.limits.IdleUnreplied
			if c.replied.Load() {
				idle = n.limits.Idle
			}
			if now-time.Duration(c.seen.Load()) >= idle {
				p.removeLocked(c, expired)
			}
			c = next
		}
		p.mu.Unlock()
	}
}

// foreign reports whether the guest may see a as somebody's address: that of a host
// elsewhere, neither one of its own networks nor one that is only valid on the host.
func (n *NAT) foreign(a netip.Addr) bool {
	if !a.IsValid() || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == broadcast {
		return false
	}
	for _, p := range n.prefixes {
		if p.Contains(a) {
			return false
		}
	}
	return a != n.gateway[0] && a != n.gateway[1]
}
