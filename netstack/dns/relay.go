package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"slipway/netstack/internal/histogram"
	"slipway/netstack/internal/pace"
)

// Config is what a Relay needs to know. Only Resolvers has no default.
type Config struct {
	// Resolvers are the host's at this moment, in order of preference. It is asked for each query, so it
	// should not take long.
	Resolvers func(ctx context.Context) ([]netip.AddrPort, error)
	// Dial connects to a resolver; the default is net.Dialer's, without MPTCP. The network is
	// "udp" or "tcp".
	Dial func(ctx context.Context, network string, resolver netip.AddrPort) (net.Conn, error)

	InFlight int           // queries by UDP at a time, default 512
	Patience time.Duration // until the next resolver is asked, default 2 s
	Timeout  time.Duration // until a query is given up, default 8 s
	Shun     time.Duration // how long a resolver that failed is asked last, default 5 s
}

// queriesPerCPU is how many queries are relayed a second, see package pace. That they are
// answered makes them no cheaper: each takes six system calls and two goroutines, about 10 µs.
const queriesPerCPU = 2000

// maxResolvers is how many resolvers are asked for one query, as in resolv.conf(5)'s MAXNS.
const maxResolvers = 3

// Relay asks the host's resolvers. It is safe for concurrent use.
type Relay struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{}
	pace   *pace.Limiter
	tasks  sync.WaitGroup
	buffer sync.Pool // of *[maxMessage]byte
	ports  ports

	mu     sync.Mutex // guards the following fields
	closed bool
	failed map[netip.AddrPort]time.Time // when resolvers failed last

	count counters
}

// Stats are plain numbers since the Relay was made; InFlight is that of now.
type Stats struct {
	Queries     uint64 // by UDP, all of them
	Answers     uint64
	Failures    uint64 // no resolver answered
	Refused     uint64 // too many in flight, or after Close
	Paced       uint64 // faster than queries are relayed
	Malformed   uint64 // too short, or no query
	Failovers   uint64 // queries and connections for which a further resolver was asked
	Mismatches  uint64 // messages that answer something else
	InFlight    uint64
	TCP         uint64 // connections asked for
	TCPFailures uint64
	// Latency is from a query by UDP to its answer, of those that were answered.
	Latency histogram.Counts
}

type counters struct {
	queries, answers, failures, refused, paced, malformed, failovers, mismatches, inFlight, tcp, tcpFailures atomic.Uint64

	latency *histogram.Histogram
}

// Bounds of the latency, in powers of two of a second: 122 µs to 16 s, of which Timeout
// has 8.
const fastest, slowest = -13, 4

// New makes a Relay; Close ends it.
func New(cfg Config) (*Relay, error) {
	if cfg.Resolvers == nil {
		return nil, errors.New("new DNS relay: no Resolvers")
	}
	if cfg.InFlight < 0 || cfg.Patience < 0 || cfg.Timeout < 0 || cfg.Shun < 0 {
		return nil, fmt.Errorf("new DNS relay: %d in flight, patience %v, timeout %v, shun %v: want none negative",
			cfg.InFlight, cfg.Patience, cfg.Timeout, cfg.Shun)
	}
	if cfg.InFlight == 0 {
		cfg.InFlight = 512
	}
	for d, zero := range map[*time.Duration]time.Duration{
		&cfg.Patience: 2 * time.Second, &cfg.Timeout: 8 * time.Second, &cfg.Shun: 5 * time.Second,
	} {
		if *d == 0 {
			*d = zero
		}
	}
	if cfg.Dial == nil {
		var d net.Dialer
		d.SetMultipathTCP(false)
		cfg.Dial = func(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, network, a.String())
		}
	}
	r := &Relay{cfg: cfg, slots: make(chan struct{}, cfg.InFlight), pace: pace.New(queriesPerCPU), failed: make(map[netip.AddrPort]time.Time)}
	r.count.latency = histogram.New(fastest, slowest)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.ports.dial = cfg.Dial
	r.buffer.New = func() any { return new([maxMessage]byte) }
	return r, nil
}

// Close gives up what is in flight and waits for its goroutines.
func (r *Relay) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.tasks.Wait()
	r.ports.close()
	return nil
}

// Stats reads the counters.
func (r *Relay) Stats() Stats {
	c := &r.count
	return Stats{
		Queries:     c.queries.Load(),
		Answers:     c.answers.Load(),
		Failures:    c.failures.Load(),
		Refused:     c.refused.Load(),
		Paced:       c.paced.Load(),
		Malformed:   c.malformed.Load(),
		Failovers:   c.failovers.Load(),
		Mismatches:  c.mismatches.Load(),
		InFlight:    c.inFlight.Load(),
		TCP:         c.tcp.Load(),
		TCPFailures: c.tcpFailures.Load(),
		Latency:     c.latency.Counts(),
	}
}

// start takes a slot, which done gives back.
func (r *Relay) start() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	select {
	case r.slots <- struct{}{}:
		r.tasks.Add(1)
		r.count.inFlight.Add(1)
		return true
	default:
		return false
	}
}

func (r *Relay) done() {
	<-r.slots
	r.count.inFlight.Add(^uint64(0))
	r.tasks.Done()
}

// resolvers are those to ask, the ones that failed of late at the end.
func (r *Relay) resolvers(ctx context.Context) ([]netip.AddrPort, error) {
	all, err := r.cfg.Resolvers(ctx)
	if err != nil {
		return nil, fmt.Errorf("find resolvers: %w", err)
	}
	if len(all) == 0 {
		return nil, errors.New("find resolvers: the host has none")
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	order := make([]netip.AddrPort, 0, len(all))
	var last []netip.AddrPort
	for _, a := range all {
		if t, ok := r.failed[a]; ok && now.Sub(t) < r.cfg.Shun {
			last = append(last, a)
		} else {
			order = append(order, a)
		}
	}
	order = append(order, last...)
	return order[:min(len(order), maxResolvers)], nil
}

// note remembers a failure, or that there is none any more.
func (r *Relay) note(a netip.AddrPort, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.failed, a)
		return
	}
	r.ports.distrust(a)
	now := time.Now()
	for b, t := range r.failed { // resolvers come and go as the host roams
		if now.Sub(t) >= r.cfg.Shun {
			delete(r.failed, b)
		}
	}
	r.failed[a] = now
}

// DialTCP connects to a resolver for a client that asks by TCP, trying one after
// the other. The error has those of all of them.
func (r *Relay) DialTCP(ctx context.Context) (net.Conn, error) {
	r.count.tcp.Add(1)
	all, err := r.resolvers(ctx)
	if err != nil {
		r.count.tcpFailures.Add(1)
		return nil, err
	}
	var errs []error
	for i, a := range all {
		if i > 0 {
			r.count.failovers.Add(1)
		}
		attempt, cancel := context.WithTimeout(ctx, r.cfg.Patience)
		c, err := r.cfg.Dial(attempt, "tcp", a)
		cancel()
		if err == nil {
			r.note(a, nil)
			return c, nil
		}
		errs = append(errs, fmt.Errorf("connect to resolver %v: %w", a, err))
		if ctx.Err() != nil {
			break // the caller's doing, not the resolver's
		}
		r.note(a, err)
	}
	r.count.tcpFailures.Add(1)
	return nil, errors.Join(errs...)
}
