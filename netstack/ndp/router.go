package ndp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/mdlayher/ndp"

	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

// What is advertised, as users of slirp4netns get it.
const (
	hopLimit          = 64
	routerLifetime    = 1800 * time.Second
	validLifetime     = 86400 * time.Second
	preferredLifetime = 14400 * time.Second
)

// When it is advertised unasked (RFC 4861 sections 6.2.1 and 6.2.4): MaxRtrAdvInterval,
// MinRtrAdvInterval, MAX_INITIAL_RTR_ADVERTISEMENTS, MAX_INITIAL_RTR_ADVERT_INTERVAL.
const (
	maxInterval     = 600 * time.Second
	minInterval     = maxInterval * 33 / 100
	initialAdverts  = 3
	initialInterval = 16 * time.Second
)

const (
	// maxWaiting is how many solicitations may wait to be answered.
	maxWaiting = 16
	// resolverTime is how long what Resolver said holds, and the most it may take.
	resolverTime = time.Second
	// discoveryHops is the hop limit of every message of neighbour discovery: it cannot have
	// come through a router (RFC 4861 section 6.1.1).
	discoveryHops = 255
)

var (
	allNodes    = solicitor{addr: netip.MustParseAddr("ff02::1"), mac: [6]byte{0x33, 0x33, 0, 0, 0, 1}}
	allRouters  = netip.MustParseAddr("ff02::2")
	errNoDevice = errors.New("want a function to write and an Ethernet address")
)

// Config is what a Router needs to know.
type Config struct {
	// Write sends one frame, Ethernet header first, to the guest. It must not block and
	// keeps nothing.
	Write func(h tap.Header, frame [][]byte) error
	// MAC is the router's Ethernet address, Address its link-local one.
	MAC     net.HardwareAddr
	Address netip.Addr
	// Prefix is the guest's network.
	Prefix netip.Prefix
	// DNS is the resolver that is told of while Resolver returns true; invalid, or a nil
	// Resolver: none. Resolver is asked at most once a second.
	DNS      netip.Addr
	Resolver func(context.Context) bool
}

// Router advertises. It is safe for concurrent use.
type Router struct {
	cfg     Config
	mac     [6]byte
	waiting chan solicitor
	cancel  context.CancelFunc
	ctx     context.Context
	done    chan struct{}
	started atomic.Bool

	// For the sending goroutine only.
	hasResolver bool
	asked       time.Time

	solicited, advertised, limited, malformed, write atomic.Uint64
}

// solicitor is who an advertisement goes to.
type solicitor struct {
	addr netip.Addr
	mac  [6]byte
}

// Stats are plain numbers since the Router was made.
type Stats struct {
	Solicitations  uint64
	Advertisements uint64
	Limited        uint64 // solicitations beyond what may wait
	Malformed      uint64 // solicitations that break a rule of RFC 4861 section 6.1.1
	Write          uint64 // the device refused the frame: it is down, say
}

// New makes a Router, which answers from Start on; Close ends it.
func New(cfg Config) (*Router, error) {
	if cfg.Write == nil || len(cfg.MAC) != 6 {
		return nil, fmt.Errorf("new router: %w", errNoDevice)
	}
	if !cfg.Address.IsLinkLocalUnicast() || !cfg.Address.Is6() {
		return nil, fmt.Errorf("new router: address %s is not a link-local one of IPv6", cfg.Address)
	}
	if !cfg.Prefix.IsValid() || !cfg.Prefix.Addr().Is6() || cfg.Prefix.Masked() != cfg.Prefix {
		return nil, fmt.Errorf("new router: prefix %s is no IPv6 network", cfg.Prefix)
	}
	r := &Router{cfg: cfg, mac: [6]byte(cfg.MAC), waiting: make(chan solicitor, maxWaiting), done: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// Start sends the first advertisement, and answers solicitations from then on. It may be
// called once.
func (r *Router) Start() {
	r.started.Store(true)
	go r.run()
}

// Close ends the advertisements. Nothing is sent after it.
func (r *Router) Close() error {
	r.cancel()
	if r.started.Load() {
		<-r.done
	}
	return nil
}

// Stats reads the counters.
func (r *Router) Stats() Stats {
	return Stats{
		Solicitations: r.solicited.Load(), Advertisements: r.advertised.Load(), Limited: r.limited.Load(),
		Malformed: r.malformed.Load(), Write: r.write.Load(),
	}
}

// Input takes a frame of the guest, Ethernet header first. True means that it was a router
// solicitation, and is dealt with.
func (r *Router) Input(h tap.Header, frame []byte) bool {
	const at = wire.EthernetLen + wire.IPv6Len
	if len(frame) < at+wire.ICMPLen || frame[at] != solicitation || frame[wire.EthernetLen+6] != wire.ProtoICMPv6 {
		return false
	}
	p, verdict := wire.Parse(frame)
	if verdict == wire.Other || p.Proto != wire.ProtoICMPv6 || !p.Src.Is6() {
		return false
	}
	r.solicited.Add(1)
	if verdict != wire.OK || !r.valid(h, p) {
		r.malformed.Add(1)
		return true
	}
	from := solicitor{addr: p.Src, mac: [6]byte(frame[6:12])}
	if p.Src.IsUnspecified() {
		from = allNodes
	}
	select {
	case r.waiting <- from:
	default:
		r.limited.Add(1)
	}
	return true
}

// solicitation is the ICMPv6 type of a router solicitation (RFC 4861 section 4.1).
const solicitation = 133

// valid is RFC 4861 section 6.1.1.
func (r *Router) valid(h tap.Header, p wire.Packet) bool {
	b := p.Payload
	if p.TTL != discoveryHops || p.Dst != allRouters && p.Dst != r.cfg.Address || len(b) < wire.ICMPLen || b[1] != 0 {
		return false
	}
	if !h.Trusted() && wire.Sum(b, wire.PseudoSum(p.Src, p.Dst, p.Proto, len(b))) != 0xffff {
		return false
	}
	m, err := ndp.ParseMessage(b)
	if err != nil {
		return false
	}
	s, ok := m.(*ndp.RouterSolicitation)
	if !ok {
		return false
	}
	for _, o := range s.Options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == ndp.Source && p.Src.IsUnspecified() {
			return false
		}
	}
	return true
}

// run is the life of the sending goroutine.
func (r *Router) run() {
	defer close(r.done)
	next := time.NewTimer(0)
	defer next.Stop()
	for sent := 0; ; {
		select {
		case <-r.ctx.Done():
			return
		case s := <-r.waiting:
			r.advertise(s)
		case <-next.C:
			r.advertise(allNodes)
			wait := minInterval + rand.N(maxInterval-minInterval)
			if sent++; sent < initialAdverts {
				wait = min(wait, initialInterval)
			}
			next.Reset(wait)
		}
	}
}

// advertise sends one advertisement.
func (r *Router) advertise(to solicitor) {
	b, err := ndp.MarshalMessageChecksum(r.advertisement(), r.cfg.Address, to.addr)
	if err == nil {
		var head [wire.EthernetLen + wire.IPv6Len]byte
		wire.PutEthernet(head[:], to.mac, r.mac, wire.EtherIPv6)
		wire.PutIPv6(head[wire.EthernetLen:], r.cfg.Address, to.addr, wire.ProtoICMPv6, discoveryHops, len(b))
		err = r.cfg.Write(tap.Header{}, [][]byte{head[:], b})
	}
	if err != nil {
		r.write.Add(1)
		return
	}
	r.advertised.Add(1)
}

func (r *Router) advertisement() *ndp.RouterAdvertisement {
	m := &ndp.RouterAdvertisement{
		CurrentHopLimit: hopLimit,
		RouterLifetime:  routerLifetime,
		Options: []ndp.Option{
			&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: r.cfg.MAC},
			&ndp.PrefixInformation{
				Prefix: r.cfg.Prefix.Addr(), PrefixLength: uint8(r.cfg.Prefix.Bits()),
				OnLink: true, AutonomousAddressConfiguration: true,
				ValidLifetime: validLifetime, PreferredLifetime: preferredLifetime,
			},
		},
	}
	if r.resolver() {
		m.Options = append(m.Options, &ndp.RecursiveDNSServer{Lifetime: routerLifetime, Servers: []netip.Addr{r.cfg.DNS}})
	}
	return m
}

// resolver reports whether the resolver is to be told of.
func (r *Router) resolver() bool {
	if !r.cfg.DNS.IsValid() || r.cfg.Resolver == nil {
		return false
	}
	if r.asked.IsZero() || time.Since(r.asked) >= resolverTime {
		ctx, cancel := context.WithTimeout(r.ctx, resolverTime)
		r.hasResolver = r.cfg.Resolver(ctx)
		cancel()
		r.asked = time.Now()
	}
	return r.hasResolver
}
