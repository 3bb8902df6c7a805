package netstack

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unicode"

	"gvisor.dev/gvisor/pkg/tcpip"

	"slipway/netstack/dhcp"
	"slipway/netstack/dns"
	"slipway/netstack/icmp"
	"slipway/netstack/internal/histogram"
	"slipway/netstack/link"
	"slipway/netstack/ndp"
	"slipway/netstack/relay"
	"slipway/netstack/udp"
)

// ErrLimit is wrapped by errors about a bound of Limits that was reached.
var ErrLimit = errors.New("limit reached")

// answer is what the guest gets for a SYN that leads nowhere.
type answer int

const (
	answerReset answer = iota
	answerUnreachable
	answerSilence
)

// cause is why a dial failed. The set is fixed, so that it can label a metric.
type cause int

const (
	causeRefused cause = iota
	causeUnreachable
	causeTimeout
	causePolicy
	causeLimit
	causeResources
	causeGivenUp
	causeOther
	causes
)

var causeNames = [causes]string{"refused", "unreachable", "timeout", "policy", "limit", "resources", "given_up", "other"}

// closures are why Policy.Route closes a destination, and what the metric calls them.
var closures = [...]struct {
	err  error
	name string
}{
	{ErrInvalidDestination, "invalid_destination"},
	{ErrOwnNetwork, "own_network"},
	{ErrHostClosed, "host_access"},
	{ErrMetadataClosed, "metadata"},
	{ErrOwnListener, "own_listener"},
}

// Bounds of the histograms, in powers of two of a second.
const (
	shortestDial, longestDial = -13, 5  // 122 µs to 32 s; dialTimeout ends a dial
	shortestFlow, longestFlow = -10, 17 // 1 ms to 36 hours
)

type counters struct {
	tcp              relay.Bytes
	flowsOpen        atomic.Int64
	flowsTotal       atomic.Uint64
	flowsReset       atomic.Uint64
	flowsFailed      atomic.Uint64
	flowsRefused     atomic.Uint64
	flowsTold        sync.Once // that they are as many as they may be
	dialsPending     atomic.Int64
	dialsRefused     atomic.Uint64
	dialsPaced       atomic.Uint64
	synsRefused      atomic.Uint64
	handshakesFailed atomic.Uint64
	reassembled      atomic.Uint64
	memoryTold       atomic.Bool // see resetForMemory
	dialErrors       [causes]atomic.Uint64
	closed           [len(closures)]atomic.Uint64
	dialTime         *histogram.Histogram
	flowTime         *histogram.Histogram
}

// flowsFull says that there are as many flows as there may be, and has a person know the
// first time.
func (s *Stack) flowsFull() bool {
	limit := s.cfg.Limits.Flows
	if s.stats.flowsOpen.Load() < int64(limit) {
		return false
	}
	s.stats.flowsTold.Do(func() {
		s.cfg.Log.Warn("the container has as many TCP connections as it may: new ones are reset", "limit", limit)
	})
	return true
}

// route is Policy.Route, which counts what is closed.
func (s *Stack) route(dst netip.AddrPort) (netip.AddrPort, error) {
	to, err := s.policy.Route(dst)
	if err != nil {
		for i, c := range closures {
			if errors.Is(err, c.err) {
				s.stats.closed[i].Add(1)
			}
		}
	}
	return to, err
}

// resetForMemory tells of the first flow that is reset for want of memory.
func (c *counters) resetForMemory(log *slog.Logger) func(queued int) {
	return func(queued int) {
		if !c.memoryTold.Swap(true) {
			log.Warn("a stalled connection is reset: the memory for queued bytes is used up (others will not be told of; --max-buffer is the limit)", "queued", queued)
		}
	}
}

// refused counts a SYN that was dropped, or a request that was given up.
func (c *counters) refused(why admission) {
	switch why {
	case noPlace:
		c.dialsRefused.Add(1)
	case tooFast:
		c.dialsPaced.Add(1)
	}
}

// dialFailed counts a failed dial and says how the guest hears of it.
func (c *counters) dialFailed(err error) answer {
	why, a := classify(err)
	c.dialErrors[why].Add(1)
	return a
}

func classify(err error) (cause, answer) {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return causeRefused, answerReset
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH),
		errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EAFNOSUPPORT),
		errors.Is(err, syscall.EINVAL):
		return causeUnreachable, answerUnreachable
	case errors.Is(err, ErrInvalidDestination), errors.Is(err, ErrOwnNetwork), errors.Is(err, ErrHostClosed),
		errors.Is(err, ErrMetadataClosed), errors.Is(err, ErrOwnListener):
		return causePolicy, answerUnreachable
	case errors.Is(err, ErrLimit):
		return causeLimit, answerReset
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS),
		errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EADDRNOTAVAIL):
		return causeResources, answerReset
	case errors.Is(err, errGivenUp):
		return causeGivenUp, answerSilence
	case errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed):
		return causeOther, answerSilence
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT),
		errors.As(err, &timeout) && timeout.Timeout():
		return causeTimeout, answerSilence
	}
	return causeOther, answerReset
}

// Stats are totals since the stack was made, and gauges named Open or Pending.
type Stats struct {
	Link link.Stats
	UDP  udp.Stats
	DNS  dns.Stats
	ICMP icmp.Stats
	// DHCP, DHCP6 and Router stay zero where Services are not on.
	DHCP   dhcp.Stats
	DHCP6  dhcp.Stats6
	Router ndp.Stats

	// TCPFromGuest and TCPToGuest are payload bytes.
	TCPFromGuest, TCPToGuest uint64
	FlowsOpen, DialsPending  int64
	FlowsTotal, FlowsReset   uint64
	FlowsFailed              uint64
	// FlowsRefused counts connections towards the guest beyond Limits.Flows,
	// DialsRefused connections of the guest beyond Limits.PendingDials: those whose SYN
	// waited in vain, and those given up for others.
	FlowsRefused, DialsRefused uint64
	// DialsPaced counts SYNs of the guest that waited in vain, as they came faster than it
	// may begin connections.
	DialsPaced uint64
	// SYNsHeld are SYNs of the guest that wait, for a place or for the end of a connection of
	// the same ports. SYNsRefused counts those beyond the bound of them.
	SYNsHeld    int64
	SYNsRefused uint64
	// HandshakesFailed counts flows whose guest went away before its handshake
	// was done.
	HandshakesFailed uint64
	// Memory is about the bytes that all flows have queued.
	Memory relay.BudgetStats
	// Reassembled counts UDP and echo messages that gVisor put together of fragments:
	// UDP only of those with IPv4 options or IPv6 extension headers.
	Reassembled uint64
	// DialErrors counts failed dials by cause. The causes are a fixed set.
	DialErrors map[string]uint64
	// PolicyRefusals counts how often a destination was closed to the guest, by reason:
	// connections, datagrams and echo requests. The reasons are a fixed set.
	PolicyRefusals map[string]uint64
	// DialTime is from the guest's SYN to the answer of the destination, of the dials that
	// succeeded. FlowTime is from there on to the end, of the flows that have ended.
	DialTime, FlowTime histogram.Counts
	// GVisor are gVisor's own counters by their path in its tcpip.Stats in
	// snake_case, like tcp_retransmits.
	GVisor map[string]uint64
}

// Stats returns the totals.
func (s *Stack) Stats() Stats {
	c := &s.stats
	out := Stats{
		Link: s.link.Stats(), UDP: s.nat.Stats(), ICMP: s.echo.Stats(),
		TCPFromGuest: c.tcp.FromGuest.Load(), TCPToGuest: c.tcp.ToGuest.Load(),
		FlowsOpen: c.flowsOpen.Load(), DialsPending: c.dialsPending.Load(),
		FlowsTotal: c.flowsTotal.Load(), FlowsReset: c.flowsReset.Load(), FlowsFailed: c.flowsFailed.Load(),
		FlowsRefused: c.flowsRefused.Load(), DialsRefused: c.dialsRefused.Load(), DialsPaced: c.dialsPaced.Load(),
		SYNsHeld: s.held.count.Load(), SYNsRefused: c.synsRefused.Load(),
		HandshakesFailed: c.handshakesFailed.Load(), Memory: s.guest.Budget.Stats(), Reassembled: c.reassembled.Load(),
		DialErrors:     make(map[string]uint64, causes),
		PolicyRefusals: make(map[string]uint64, len(closures)),
		DialTime:       c.dialTime.Counts(), FlowTime: c.flowTime.Counts(),
		GVisor: make(map[string]uint64, len(s.gvisor)),
	}
	if s.dns != nil {
		out.DNS = s.dns.Stats()
	}
	s.serve.stats(&out)
	for i := range c.dialErrors {
		out.DialErrors[causeNames[i]] = c.dialErrors[i].Load()
	}
	for i := range c.closed {
		out.PolicyRefusals[closures[i].name] = c.closed[i].Load()
	}
	for name, c := range s.gvisor {
		out.GVisor[name] = c.Value()
	}
	return out
}

// walk collects every *tcpip.StatCounter below v, a struct of gVisor's statistics.
func walk(into map[string]*tcpip.StatCounter, prefix string, v reflect.Value) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if !field.IsExported() {
			continue
		}
		name := prefix + snake(strings.ReplaceAll(field.Name, "NICs", "Nics"))
		switch f := v.Field(i); {
		case f.Type() == reflect.TypeFor[*tcpip.StatCounter]():
			if c, ok := f.Interface().(*tcpip.StatCounter); ok && c != nil {
				into[name] = c
			}
		case f.Kind() == reflect.Struct && field.Anonymous:
			walk(into, prefix, f)
		case f.Kind() == reflect.Struct:
			walk(into, name+"_", f)
		}
	}
}

// snake turns an exported Go name into snake_case; runs of capitals are one word.
func snake(name string) string {
	var b strings.Builder
	r := []rune(name)
	for i, c := range r {
		if unicode.IsUpper(c) && i > 0 && (unicode.IsLower(r[i-1]) || unicode.IsDigit(r[i-1]) || i+1 < len(r) && unicode.IsLower(r[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}
