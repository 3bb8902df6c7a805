package icmp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

// Limits bound the Relay; zero fields get the default.
type Limits struct {
	Sessions int           // open at a time, default 256
	Idle     time.Duration // after the last request, default 30 s
	Rate     int           // requests a second, default 200; as many may come at once
}

// Config is what a Relay needs to know.
type Config struct {
	// Write sends one frame, Ethernet header first, to the guest. It is called from several goroutines, must
	// not block and keeps nothing.
	Write func(h tap.Header, frame [][]byte) error
	// Route is the policy: the host address to ping in the place of dst, or an error, of which
	// the guest hears as in package udp. Ports are 0 and left out of account. It must not block.
	Route func(dst netip.AddrPort) (netip.AddrPort, error)
	// Own are the stack's addresses: echo requests to them are the full stack's. The first of a family
	// is the source of the errors that are made here.
	Own                  []netip.Addr
	GatewayMAC, GuestMAC net.HardwareAddr
	// At tells where an address of the guest is; nil: all are at GuestMAC. It must not block.
	At     func(netip.Addr) [6]byte
	MTU    int // bytes of an IP packet, default 1500
	Limits Limits
	// Outbound4 and Outbound6 are the addresses that requests are sent from; invalid: the kernel's choice.
	Outbound4, Outbound6 netip.Addr
	// Refused is called, once, when the guest first pings in vain because no ping socket can be had; the error
	// says how that is changed. It must not block. nil: nobody wants to know.
	Refused func(error)
}

// Relay carries echo requests and what comes back. It is safe for concurrent use.
type Relay struct {
	link    *wire.Link
	route   func(dst netip.AddrPort) (netip.AddrPort, error)
	own     []netip.Addr
	from    [2]netip.Addr // IPv4, IPv6: Config.Outbound4 and Outbound6
	limits  Limits
	limiter *rate.Limiter
	refused func(error)
	told    sync.Once // of refused
	tasks   sync.WaitGroup
	buffers sync.Pool // of *buffer

	unavailable atomic.Pointer[error] // the last failure to make a socket; nil after a success

	mu       sync.Mutex // guards the following fields
	closed   bool
	sessions map[key]*session

	count counters
}

// Stats are plain numbers since the Relay was made; Sessions are those open now.
type Stats struct {
	Sessions        uint64
	SessionsTotal   uint64
	SessionsEvicted uint64
	Requests        uint64 // sent to the host's network
	Replies         uint64 // given to the guest
	Errors          uint64 // ICMP errors given to the guest
	Malformed       uint64 // wrong length or checksum
	Limited         uint64 // beyond the rate
	Denied          uint64 // by policy
	Unreachable     uint64 // no route
	Unavailable     uint64 // no ping socket to be had: see Relay.Unavailable
	Failed          uint64 // the host refused to send for another reason
	Stray           uint64 // messages from elsewhere than the destination, or that are no reply
	Write           uint64 // the device refused the frame
}

type counters struct {
	total, evicted, requests, replies, errors, malformed, limited, denied,
	unreachable, unavailable, failed, stray, write atomic.Uint64
}

// New makes a Relay; Close ends it. It succeeds also where ping sockets are refused, of which
// Unavailable tells.
func New(cfg Config) (*Relay, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	link, err := wire.NewLink(cfg.Write, cfg.GatewayMAC, cfg.GuestMAC, cfg.MTU)
	if err != nil {
		return nil, fmt.Errorf("new echo relay: %w", err)
	}
	if cfg.At != nil {
		link.At = cfg.At
	}
	if cfg.Route == nil {
		return nil, errors.New("new echo relay: no Route")
	}
	l := cfg.Limits
	if l.Sessions < 0 || l.Idle < 0 || l.Rate < 0 {
		return nil, fmt.Errorf("new echo relay: %d sessions, idle %v, rate %d: want none negative", l.Sessions, l.Idle, l.Rate)
	}
	if l.Sessions == 0 {
		l.Sessions = 256
	}
	if l.Idle == 0 {
		l.Idle = 30 * time.Second
	}
	if l.Rate == 0 {
		l.Rate = 200
	}
	r := &Relay{
		link:     link,
		route:    cfg.Route,
		own:      slices.Clone(cfg.Own),
		from:     [2]netip.Addr{cfg.Outbound4, cfg.Outbound6},
		limits:   l,
		refused:  cfg.Refused,
		limiter:  rate.NewLimiter(rate.Limit(l.Rate), l.Rate),
		sessions: make(map[key]*session),
	}
	r.buffers.New = func() any { return new(buffer) }
	// One attempt tells beforehand whether the guest will be able to ping.
	if p, err := r.open(netip.IPv4Unspecified()); err == nil {
		p.close()
	}
	return r, nil
}

// Unavailable says why echo requests go nowhere, and how that is changed; nil when they
// work. It tells of the last attempt to make a ping socket, so it changes when the
// host's setting does.
func (r *Relay) Unavailable() error {
	if err := r.unavailable.Load(); err != nil {
		return *err
	}
	return nil
}

// open makes a ping socket and remembers whether that is possible.
func (r *Relay) open(to netip.Addr) (*pinger, error) {
	from := r.from[0]
	if to.Is6() {
		from = r.from[1]
	}
	p, err := openPinger(to, from)
	switch {
	case err == nil:
		r.unavailable.Store(nil)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%w: this user's groups are outside of net.ipv4.ping_group_range; run: "+
			`sudo sysctl -w net.ipv4.ping_group_range="0 2147483647"`, err)
		r.unavailable.Store(&err)
	}
	return p, err
}

// Close ends all sessions and waits for their goroutines.
func (r *Relay) Close() error {
	r.mu.Lock()
	r.closed = true
	for k, s := range r.sessions {
		delete(r.sessions, k)
		s.pinger.close()
	}
	r.mu.Unlock()
	r.tasks.Wait()
	return nil
}

// Stats reads the counters.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	open := len(r.sessions)
	r.mu.Unlock()
	c := &r.count
	return Stats{
		Sessions:        uint64(open),
		SessionsTotal:   c.total.Load(),
		SessionsEvicted: c.evicted.Load(),
		Requests:        c.requests.Load(),
		Replies:         c.replies.Load(),
		Errors:          c.errors.Load(),
		Malformed:       c.malformed.Load(),
		Limited:         c.limited.Load(),
		Denied:          c.denied.Load(),
		Unreachable:     c.unreachable.Load(),
		Unavailable:     c.unavailable.Load(),
		Failed:          c.failed.Load(),
		Stray:           c.stray.Load(),
		Write:           c.write.Load(),
	}
}

// Types of echo messages: RFC 792, RFC 4443 section 4.
const (
	echoRequest4 = 8
	echoReply4   = 0
	echoRequest6 = 128
	echoReply6   = 129
)

// request is an echo request of the guest. Slices alias the frame.
type request struct {
	key  key
	ttl  uint8
	echo []byte // the ICMP message
	ip   []byte // the packet
}

// parse reads a frame. Taken is false for what is not ours, ok for what is broken.
func (r *Relay) parse(h tap.Header, frame []byte) (q request, taken, ok bool) {
	p, v := wire.Parse(frame)
	m := p.Payload
	is4 := p.Proto == wire.ProtoICMP && p.Src.Is4()
	is6 := p.Proto == wire.ProtoICMPv6 && p.Src.Is6()
	switch {
	case v != wire.OK, !is4 && !is6, len(m) < wire.ICMPLen,
		is4 && m[0] != echoRequest4, is6 && m[0] != echoRequest6,
		p.Dst.IsMulticast(), p.Dst == broadcast, slices.Contains(r.own, p.Dst):
		return q, false, false
	}
	if !h.Trusted() {
		start := uint16(0)
		if is6 {
			start = wire.PseudoSum(p.Src, p.Dst, p.Proto, len(m))
		}
		ok = wire.Sum(m, start) == 0xffff
	} else {
		ok = true
	}
	q = request{
		key:  key{guest: p.Src, dst: p.Dst, id: binary.BigEndian.Uint16(m[4:])},
		ttl:  p.TTL,
		echo: m,
		ip:   p.IP,
	}
	return q, true, ok && m[1] == 0
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Input takes a frame of the guest, Ethernet header first. True means that it was an
// echo request to somebody else, and is dealt with, also when it was dropped and counted.
func (r *Relay) Input(h tap.Header, frame []byte) bool {
	q, taken, ok := r.parse(h, frame)
	switch {
	case !taken:
		return false
	case !ok:
		r.count.malformed.Add(1)
		return true
	case !r.limiter.Allow():
		r.count.limited.Add(1)
		return true
	case q.ttl <= 1:
		// We are a router on the way, as traceroute finds it.
		r.complain(&q, timeExceeded)
		return true
	}
	to, err := r.route(netip.AddrPortFrom(q.key.dst, 0))
	if err != nil {
		if unroutable(err) {
			r.count.unreachable.Add(1)
			r.complain(&q, unreachable)
		} else {
			r.count.denied.Add(1)
			r.complain(&q, prohibited)
		}
		return true
	}
	s, err := r.session(q.key, to.Addr().Unmap())
	if err != nil {
		r.count.unavailable.Add(1)
		if r.refused != nil && r.Unavailable() != nil {
			r.told.Do(func() { r.refused(err) })
		}
		return true
	}
	switch err := s.send(&q); {
	case err == nil:
		r.count.requests.Add(1)
	case unroutable(err):
		r.count.unreachable.Add(1)
		r.complain(&q, unreachable)
	default:
		r.count.failed.Add(1)
	}
	return true
}

func unroutable(err error) bool {
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

// gateway is the stack's own address of a family.
func (r *Relay) gateway(like netip.Addr) netip.Addr {
	for _, a := range r.own {
		if a.Is4() == like.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// grievance is why a request goes no further.
type grievance int

const (
	prohibited grievance = iota
	unreachable
	timeExceeded
)

// complain sends the guest an ICMP error about its request.
func (r *Relay) complain(q *request, why grievance) {
	from := r.gateway(q.key.guest)
	if !from.IsValid() {
		return
	}
	switch why {
	case prohibited:
		r.sendError(wire.Prohibited(from, q.ip))
	case unreachable:
		r.sendError(wire.HostUnreachable(from, q.ip))
	case timeExceeded:
		r.sendError(wire.TimeExceeded(from, q.ip))
	}
}

func (r *Relay) sendError(e wire.Error) {
	var s wire.Scratch
	if err := r.link.Error(&s, e); err != nil {
		r.count.write.Add(1)
		return
	}
	r.count.errors.Add(1)
}
