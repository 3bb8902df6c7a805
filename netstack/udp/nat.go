package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/internal/pace"
	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

// Route is the policy: the host address to send to in the place of dst, or an
// error. The guest gets an ICMP error, and the datagram is dropped: "host
// unreachable" when the error is (errors.Is) unix.EHOSTUNREACH or
// unix.ENETUNREACH, "administratively prohibited" for every other. It must not block; it is asked
// for the first datagram of a session to an address, and again every 3 s.
type Route func(dst netip.AddrPort) (netip.AddrPort, error)

// Limits bound the NAT; zero fields get the default.
type Limits struct {
	Sessions      int           // open at a time, default 4096
	Peers         int           // addresses remembered for each session, default 64
	Clients       int           // of each published port at a time, default 1024
	Idle          time.Duration // of sessions with traffic both ways, default 120 s
	IdleUnreplied time.Duration // of sessions without a reply yet, default 60 s
	IdleDNS       time.Duration // of sessions that only send to port 53, default 30 s
	ICMPErrors    int           // a second, to the guest, default 100
}

const dnsPort = 53

// sessionsPerCPU is how many sessions that nobody answers the guest may begin a second,
// see package pace. They are made by the one who reads its packets.
const sessionsPerCPU = 500

func (l *Limits) defaults() error {
	for _, f := range []struct {
		name  string
		value *int
		zero  int
	}{
		{"sessions", &l.Sessions, 4096},
		{"peers", &l.Peers, 64},
		{"clients", &l.Clients, 1024},
		{"ICMP errors", &l.ICMPErrors, 100},
	} {
		if *f.value < 0 {
			return fmt.Errorf("limit of %s: %d is negative", f.name, *f.value)
		}
		if *f.value == 0 {
			*f.value = f.zero
		}
	}
	for _, f := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"idle", &l.Idle, 120 * time.Second},
		{"unreplied", &l.IdleUnreplied, 60 * time.Second},
		{"DNS", &l.IdleDNS, 30 * time.Second},
	} {
		if *f.value < 0 {
			return fmt.Errorf("timeout of %s sessions: %v is negative", f.name, *f.value)
		}
		if *f.value == 0 {
			*f.value = f.zero
		}
	}
	return nil
}

// Config is what a NAT needs to know.
type Config struct {
	// Write sends one frame, Ethernet header first, to the guest. It is called from several goroutines, must
	// not block and keeps nothing. A device of plain frames ignores the header.
	Write func(h tap.Header, frame [][]byte) error
	Route Route
	// Local is a service of the stack itself, DNS for one; nil: there is none. True means that it took the datagram. It
	// is asked before Route about destinations that a session has not sent to yet. It must not
	// block and not keep payload; reply may be called at any time and from any goroutine.
	Local func(src, dst netip.AddrPort, payload []byte, reply func(payload []byte)) bool

	GatewayMAC, GuestMAC net.HardwareAddr
	// At tells where an address of the guest is; nil: all are at GuestMAC. It must not block.
	At func(netip.Addr) [6]byte
	// Gateway4 and Gateway6 are the stack's own addresses: the source of ICMP errors, and what clients of
	// published ports are shown as where their own address cannot be. A family without one gets neither.
	Gateway4, Gateway6 netip.Addr
	// Outbound4 and Outbound6 are the addresses that the guest's sessions are sent from; invalid: the
	// kernel's choice.
	Outbound4, Outbound6 netip.Addr
	// Prefixes are the guest's networks: nobody outside is shown with an address of theirs.
	Prefixes []netip.Prefix
	MTU      int         // bytes of an IP packet, 68 at least
	Offload  tap.Offload // TUN_F_* of the device; 0: plain frames
	Limits   Limits
}

// NAT carries the guest's UDP. It is safe for concurrent use.
type NAT struct {
	link     *wire.Link
	route    Route
	local    func(src, dst netip.AddrPort, payload []byte, reply func(payload []byte)) bool
	gateway  [2]netip.Addr
	outbound [2]netip.Addr
	prefixes []netip.Prefix
	offload  tap.Offload
	limits   Limits
	tick     time.Duration // between sweeps
	started  time.Time
	errors   limiter
	pace     *pace.Limiter // of sessions
	scratch  sync.Pool     // of *wire.Scratch, off the poller

	// cutsOwn is set once the kernel has refused a datagram above the MTU in one frame, as Linux
	// 4.14 does: it gets fragments from then on.
	cutsOwn atomic.Bool

	now    atomic.Int64 // nanoseconds since started, as of the poller's last wake-up
	closed atomic.Bool
	done   chan struct{}
	poller *poller

	table       [shards]shard
	pending     pending
	reassembler reassembler
	count       counters

	published published
}

// New starts a NAT; Close ends it.
func New(cfg Config) (*NAT, error) {
	link, err := wire.NewLink(cfg.Write, cfg.GatewayMAC, cfg.GuestMAC, cfg.MTU)
	if err != nil {
		return nil, fmt.Errorf("new UDP NAT: %w", err)
	}
	if cfg.At != nil {
		link.At = cfg.At
	}
	if cfg.Route == nil {
		return nil, errors.New("new UDP NAT: no Route")
	}
	if cfg.Gateway4.IsValid() && !cfg.Gateway4.Is4() || cfg.Gateway6.IsValid() && !cfg.Gateway6.Is6() {
		return nil, fmt.Errorf("new UDP NAT: gateways %v and %v: want an IPv4 and an IPv6 address", cfg.Gateway4, cfg.Gateway6)
	}
	if err := cfg.Limits.defaults(); err != nil {
		return nil, fmt.Errorf("new UDP NAT: %w", err)
	}
	p, err := newPoller()
	if err != nil {
		return nil, fmt.Errorf("new UDP NAT: %w", err)
	}
	n := &NAT{
		link:     link,
		route:    cfg.Route,
		local:    cfg.Local,
		gateway:  [2]netip.Addr{cfg.Gateway4, cfg.Gateway6},
		outbound: [2]netip.Addr{cfg.Outbound4, cfg.Outbound6},
		prefixes: cfg.Prefixes,
		offload:  cfg.Offload,
		limits:   cfg.Limits,
		started:  time.Now(),
		errors:   newLimiter(cfg.Limits.ICMPErrors),
		pace:     pace.New(sessionsPerCPU),
		done:     make(chan struct{}),
		poller:   p,
	}
	n.scratch.New = func() any { return new(wire.Scratch) }
	l := &n.limits
	n.tick = min(max(min(l.Idle, l.IdleUnreplied, l.IdleDNS)/8, 10*time.Millisecond), time.Second)
	for i := range n.table {
		n.table[i].init()
	}
	n.reassembler.count = &n.count
	n.published.init()
	go n.run()
	return n, nil
}

func (n *NAT) clock() time.Duration { return time.Since(n.started) }

// Close ends all sessions and published ports. Input drops from then on. It returns
// when no descriptor is left open.
func (n *NAT) Close() error {
	if n.closed.Swap(true) {
		<-n.done
		return nil
	}
	n.poller.signal()
	<-n.done
	for i := range n.table {
		h := &n.table[i]
		h.mu.Lock()
		old := h.sessions
		h.init()
		h.mu.Unlock()
		for _, s := range old {
			s.close(closing)
		}
	}
	n.published.close()
	n.poller.close()
	return nil
}

// Input takes a frame of the guest, Ethernet header first. True means that it is
// dealt with, also when it was dropped and counted; false that it is the full
// stack's. It neither blocks nor keeps the frame.
func (n *NAT) Input(h tap.Header, frame []byte) bool {
	d, v := parse(h, frame)
	if v == notOurs {
		return n.inputFragment(h, frame)
	}
	n.take(&d, v)
	return true
}

// inputFragment is Input for what may be a fragment.
func (n *NAT) inputFragment(h tap.Header, frame []byte) bool {
	f, v := parseFragment(frame)
	if v == notOurs {
		return false
	}
	if v == malformed || h.GSOType != tap.GSONone {
		n.count.malformed.Add(1)
		return true
	}
	n.count.fragments.Add(1)
	// The poller sleeps while there is nothing that ages.
	asleep := n.ageing() == 0
	if asleep {
		n.now.Store(int64(n.clock()))
	}
	p := n.reassembler.add(&f, frame, time.Duration(n.now.Load()))
	if p == nil {
		if asleep {
			n.poller.signal()
		}
		return true
	}
	n.count.reassembled.Add(1)
	d, v := parse(tap.Header{}, p.frame())
	n.take(&d, v)
	n.reassembler.done(p)
	return true
}

// ageing is how much there is that sweeps end.
func (n *NAT) ageing() uint64 {
	return n.count.nat.open.Load() + n.count.pub.open.Load() + uint64(n.reassembler.waiting.Load())
}

// take is the way of a datagram from the guest.
func (n *NAT) take(d *datagram, v verdict) {
	switch v {
	case malformed, notOurs:
		n.count.malformed.Add(1)
		return
	case corrupt:
		n.count.checksum.Add(1)
		return
	case multicast:
		n.count.multicast.Add(uint64(d.count()))
		return
	}
	if n.reply(d) {
		return
	}
	now := n.now.Load()
	s := n.session(d.src)
	found := false
	if s != nil {
		var hop hop
		var ok bool
		if hop, found, ok = s.known(d.dst, now); ok && !n.expires(d) {
			s.seen.Store(now)
			hop.limit(d.ttl)
			s.out.send(&hop, d)
			return
		}
	}
	if !found && n.offered(d) {
		return
	}
	n.first(s, d)
}

// expires reports whether a datagram may go no further than to us, a router on its
// way unless it is for the gateway itself.
func (n *NAT) expires(d *datagram) bool {
	return d.ttl <= 1 && d.dst.Addr() != n.gateway[0] && d.dst.Addr() != n.gateway[1]
}

// first sends a datagram after Route was asked.
func (n *NAT) first(s *session, d *datagram) {
	if n.expires(d) {
		n.count.ttl.Add(uint64(d.count()))
		n.complain(timeExceeded, d.ip)
		return
	}
	fresh := s == nil
	if fresh && !n.pace.Take() {
		n.count.paced.Add(uint64(d.count()))
		return
	}
	host, err := n.route(d.dst)
	host = netip.AddrPortFrom(host.Addr().Unmap(), host.Port())
	if err == nil && (!host.IsValid() || host.Port() == 0 || host.Addr().Zone() != "") {
		err = unix.EHOSTUNREACH
	}
	if err != nil {
		if s != nil {
			s.forget(d.dst)
		}
		n.refuse(d, err)
		return
	}
	if fresh {
		if s, err = n.newSession(d.src); err != nil {
			n.count.closed.Add(uint64(d.count()))
			return
		}
	}
	hop, err := s.learn(d.dst, host, n.now.Load())
	if errors.Is(err, errClosed) {
		n.count.closed.Add(uint64(d.count()))
		return
	}
	if err != nil {
		n.count.socket.Add(uint64(d.count()))
		if fresh {
			n.drop(s, closing)
		}
		return
	}
	s.seen.Store(n.now.Load())
	hop.limit(d.ttl)
	s.out.send(&hop, d)
}

// offered gives a datagram, or each of a run, to Config.Local.
func (n *NAT) offered(d *datagram) bool {
	if n.local == nil {
		return false
	}
	src, dst := d.src, d.dst
	reply := func(payload []byte) { n.answer(dst, src, payload) }
	b := d.payload
	if d.segment > 0 {
		b = b[:d.segment]
	}
	if !n.local(src, dst, b, reply) {
		return false
	}
	n.count.local.Add(uint64(d.count()))
	for rest := d.payload[len(b):]; len(rest) > 0; {
		b = rest[:min(d.segment, len(rest))]
		rest = rest[len(b):]
		n.local(src, dst, b, reply)
	}
	return true
}

// answer writes a local service's reply.
func (n *NAT) answer(from, to netip.AddrPort, payload []byte) {
	if n.closed.Load() || len(payload) > runMax {
		n.count.write.Add(1)
		return
	}
	s := n.scratch.Get().(*wire.Scratch)
	defer n.scratch.Put(s)
	if err := n.emitOne(s, from, to, payload); err != nil {
		n.count.write.Add(1)
	}
}
