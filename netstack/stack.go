package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"slipway/netstack/dns"
	echo "slipway/netstack/icmp"
	"slipway/netstack/internal/histogram"
	"slipway/netstack/internal/neighbour"
	"slipway/netstack/link"
	"slipway/netstack/relay"
	"slipway/netstack/tap"
	nat "slipway/netstack/udp"
)

const (
	nicID   = 1
	dnsPort = 53
)

// Limits bound what the guest can make the stack hold.
type Limits struct {
	// Flows is the number of TCP connections at a time; one more is reset.
	Flows int `json:"flows"`
	// PendingDials is the number of TCP connections being made; one more takes the
	// place of the oldest. Where that has only just begun, the SYN of the new one waits.
	PendingDials int `json:"pending_dials"`
	// UDPSessions is the number of UDP mappings; one more evicts the one that has
	// been idle for longest.
	UDPSessions int `json:"udp_sessions"`
	// Buffer is how many bytes all TCP connections together may have queued in the stack. Near
	// it a connection may queue what is taken from it at once, or very little; when that does
	// not help for seconds, the one that has been stalled for long with most is reset.
	Buffer int64 `json:"buffer"`
}

// DefaultLimits fit one container: each flow and each pending dial is one
// descriptor.
func DefaultLimits() Limits {
	return Limits{Flows: 8192, PendingDials: 4096, UDPSessions: 4096, Buffer: 256 << 20}
}

const (
	// leastBuffer is the least for Limits.Buffer, in bytes: what a few fast connections take.
	leastBuffer = 16 << 20
	// flowMemory is what a connection takes that has nothing queued, in bytes.
	flowMemory = 24 << 10
	// baseMemory is what the process takes beside connections, in bytes.
	baseMemory = 64 << 20
)

// MinBuffer is the least for Buffer, in bytes.
func (l Limits) MinBuffer() int64 { return max(leastBuffer, relay.LeastBudget(l.Flows)) }

// Memory is how much the process may need, in bytes. Its garbage has to be collected before
// that.
func (l Limits) Memory() int64 { return baseMemory + l.Buffer + flowMemory*int64(l.Flows) }

// spareFiles are for what Limits does not count: the device, listeners, pipes,
// resolvers.
const spareFiles = 1024

// Within returns l made small enough for a process that may open files descriptors
// (RLIMIT_NOFILE, getrlimit(2)), and others, what else it wants to open, made as much
// smaller: no kind of flow can then starve another of descriptors. Pending dials and UDP
// sessions give way first, down to an eighth: a SYN can wait for its place, and a session that
// makes room for another was idle.
func (l Limits) Within(files uint64, others int) (Limits, int) {
	const gives = 8
	have := int(max(min(files, 1<<30), 2*spareFiles) - spareFiles)
	lack := l.Flows + l.PendingDials + l.UDPSessions + others - have
	if lack <= 0 {
		return l, others
	}
	short := max(1, l.PendingDials+l.UDPSessions)
	kept := max(short-lack, short/gives)
	l.PendingDials, l.UDPSessions = max(1, l.PendingDials*kept/short), max(1, l.UDPSessions*kept/short)
	if lack -= short - kept; lack <= 0 {
		return l, others
	}
	need := l.Flows + l.PendingDials + l.UDPSessions + others
	scale := func(n int) int { return max(1, n*have/need) }
	l.Flows, l.PendingDials, l.UDPSessions = scale(l.Flows), scale(l.PendingDials), scale(l.UDPSessions)
	return l, others * have / need
}

// Config describes a Stack.
type Config struct {
	// Network is the address plan.
	Network Network
	// MTU of the link in bytes.
	MTU int
	// Device is the TAP. The Stack owns it.
	Device *tap.Device
	// GuestMAC is the Ethernet address of the guest's end. An address of the guest that
	// its frames show to be elsewhere is found there.
	GuestMAC net.HardwareAddr
	// Sources are the networks whose addresses the guest may have, those of gateway and
	// resolver aside; nil: Guest4 and Guest6 of Network alone.
	Sources []netip.Prefix
	// Policy decides where the guest's flows go. Its Network is set by New.
	Policy Policy
	// Outbound4 and Outbound6 are the host's addresses that the guest's flows come from;
	// invalid: the kernel's choice.
	Outbound4, Outbound6 netip.Addr
	// Resolvers returns the host's current resolvers; nil: the addresses of the resolver
	// answer pings and nothing else.
	Resolvers func(context.Context) ([]netip.AddrPort, error)
	// Services are for a guest that configures its own end.
	Services Services
	// Limits bound the guest.
	Limits Limits
	// ReturnMemory is called when much less memory is needed than a while ago; nil: the runtime
	// gives it back when it likes.
	ReturnMemory func()
	// handshakeTime is how long the guest may take for a handshake, heldForPlace how long a
	// SYN waits for its place; 0: the constant of that name.
	handshakeTime, heldForPlace time.Duration
	// Log gets what a person should know, never from the packet path twice; nil: no log.
	Log *slog.Logger
}

// Stack is the TCP/IP stack at the far end of the guest's TAP.
type Stack struct {
	cfg    Config
	policy Policy
	stack  *stack.Stack
	link   *link.Endpoint
	guest  relay.Guest
	where  *neighbour.Table
	own    []netip.Addr // the stack's addresses, the gateway's first of each family
	serve  services
	tcp    *guestTCP
	held   *heldSYNs
	nat    *nat.NAT
	echo   *echo.Relay
	dns    *dns.Relay
	stats  counters
	gvisor map[string]*tcpip.StatCounter // by name

	ctx    context.Context
	cancel context.CancelCauseFunc

	mu     sync.Mutex // guards closed, and wg's Add against its Wait
	closed bool
	wg     sync.WaitGroup
}

// New assembles the stack and starts to serve the guest.
func New(cfg Config) (*Stack, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Sources == nil {
		cfg.Sources = cfg.Network.guests()
	}
	s := &Stack{cfg: cfg, policy: cfg.Policy, own: cfg.Network.own()}
	if cfg.Services.Router {
		s.own = append(s.own, cfg.Network.Router6())
	}
	s.policy.Network = cfg.Network
	s.guest.Turn.Rush = make(chan struct{}, 1)
	s.guest.Budget = relay.NewBudget(relay.BudgetConfig{
		Bytes: cfg.Limits.Buffer, Flows: cfg.Limits.Flows, Reset: s.stats.resetForMemory(cfg.Log), Return: cfg.ReturnMemory,
	})
	s.stats.dialTime = histogram.New(shortestDial, longestDial)
	s.stats.flowTime = histogram.New(shortestFlow, longestFlow)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	if err := s.assemble(); err != nil {
		return nil, errors.Join(fmt.Errorf("assemble stack: %w", err), s.Close())
	}
	return s, nil
}

func (s *Stack) assemble() error {
	cfg, n := s.cfg, s.cfg.Network
	s.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			arp.NewProtocol, ipv4.NewProtocol,
			// Nobody else can have the gateway's addresses on this link.
			ipv6.NewProtocolWithOptions(ipv6.Options{DADConfigs: stack.DADConfigurations{DupAddrDetectTransmits: 0}}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		// With promiscuous mode, handling local traffic would take every source
		// address for our own and drop the packet.
		HandleLocal: false,
	})
	s.gvisor = make(map[string]*tcpip.StatCounter)
	walk(s.gvisor, "", reflect.ValueOf(s.stack.Stats()))
	if err := s.setTCPOptions(); err != nil {
		return err
	}
	if cfg.Resolvers != nil {
		var err error
		if s.dns, err = dns.New(dns.Config{Resolvers: cfg.Resolvers}); err != nil {
			return err
		}
	}
	if len(cfg.GuestMAC) != 6 {
		return fmt.Errorf("guest's Ethernet address %q: want 6 bytes", cfg.GuestMAC)
	}
	s.tcp, s.held = newGuestTCP(s), newHeldSYNs(s)
	s.where = neighbour.New([6]byte(cfg.GuestMAC))
	s.link = link.New(link.Config{
		Device: cfg.Device,
		MTU:    cfg.MTU,
		MAC:    n.MAC(),
		Guard: link.Guard{
			Sources: cfg.Sources,
			Own:     s.own,
			DHCP:    cfg.Services.DHCP,
			Router:  cfg.Services.Router,
		},
		Neighbours: s.where,
		Handlers:   []link.Handler{handler{s}},
		Stack:      s.stack,
		NIC:        nicID,
		Turn:       &s.guest.Turn,
		Memory:     s.guest.Budget,
		Handshakes: s.tcp.handshakes,
	})
	if err := s.newFastPaths(); err != nil {
		return err
	}
	if err := s.newServices(); err != nil {
		return err
	}
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, s.tcp.handle)
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, s.handleFragmentedUDP)
	s.stack.SetTransportProtocolHandler(icmp.ProtocolNumber4, s.handleEcho)
	s.stack.SetTransportProtocolHandler(icmp.ProtocolNumber6, s.handleEcho)
	if err := s.attach(); err != nil {
		return err
	}
	if s.begin() {
		go s.held.run()
	}
	s.serve.start()
	s.wg.Go(func() { s.guest.Budget.Watch(s.ctx) })
	return nil
}

// newFastPaths makes the paths that the receive loop asks before gVisor.
func (s *Stack) newFastPaths() error {
	cfg, n := s.cfg, s.cfg.Network
	var err error
	s.nat, err = nat.New(nat.Config{
		Write:      s.link.WriteFrame,
		Route:      s.route,
		Local:      s.serveDNS,
		GatewayMAC: n.MAC(),
		GuestMAC:   cfg.GuestMAC,
		At:         s.where.At,
		Gateway4:   n.Gateway4(),
		Gateway6:   n.Gateway6(),
		Outbound4:  cfg.Outbound4,
		Outbound6:  cfg.Outbound6,
		Prefixes:   n.Prefixes(),
		MTU:        cfg.MTU,
		Offload:    cfg.Device.Offload(),
		Limits:     nat.Limits{Sessions: cfg.Limits.UDPSessions},
	})
	if err != nil {
		return err
	}
	s.echo, err = echo.New(echo.Config{
		Write:      s.link.WriteFrame,
		Route:      s.route,
		GatewayMAC: n.MAC(),
		GuestMAC:   cfg.GuestMAC,
		At:         s.where.At,
		Own:        s.own,
		MTU:        cfg.MTU,
		Outbound4:  cfg.Outbound4,
		Outbound6:  cfg.Outbound6,
		Refused: func(err error) {
			cfg.Log.Warn("the container cannot ping the world", "reason", err)
		},
	})
	return err
}

func (s *Stack) setTCPOptions() error {
	sack := tcpip.TCPSACKEnabled(true)
	// The relay sizes receive buffers itself. With this option gVisor offers the window scale of
	// the largest buffer, and not of the first (rcvWndScaleForHandshake in transport/tcp/endpoint.go).
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// A forwarder's SYN is not matched against connections in TIME_WAIT, so a
	// guest that reuses a port would wait for the end of it. The link is local
	// and loses nothing: there is no old segment to wait for. (heldSYNs does the
	// rest.)
	timeWait := tcpip.TCPTimeWaitTimeoutOption(0)
	// No RACK-TLP (RFC 8985): its timers are two round trips, some 100 µs here. A guest
	// that waits for a processor answers later than that, and is sent again what it has:
	// a stream to it loses a tenth of its throughput, on one processor more than a third.
	// Fast retransmit and the retransmission timer (RFC 6675, RFC 6298) are left.
	var recovery tcpip.TCPRecovery
	for _, o := range []tcpip.SettableTransportProtocolOption{
		// Buffers begin small, and the relay lets them grow, see package relay's Budget.
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: relay.StartBuffer, Max: relay.MaxBuffer},
		&tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: relay.StartWindow, Max: relay.MaxWindow},
		&sack, &recovery, &moderate, &timeWait,
	} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set %T: %s", o, err)
		}
	}
	return nil
}

// attach gives the stack its interface; frames are read from here on.
func (s *Stack) attach() error {
	opts := stack.NICOptions{Name: s.cfg.Device.Name(), QDisc: s.link.Queue(), Disabled: true}
	if err := s.stack.CreateNICWithOptions(nicID, s.link, opts); err != nil {
		return fmt.Errorf("create interface: %s", err)
	}
	for _, a := range s.own {
		address := tcpip.ProtocolAddress{
			Protocol: protocol(a),
			AddressWithPrefix: tcpip.AddressWithPrefix{
				Address: tcpip.AddrFromSlice(a.AsSlice()), PrefixLen: s.cfg.Network.bits(a),
			},
		}
		if err := s.stack.AddProtocolAddress(nicID, address, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("add address %s: %s", a, err)
		}
	}
	// Accept packets for every address in the world, and answer from it.
	if err := s.stack.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("set promiscuous: %s", err)
	}
	if err := s.stack.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("set spoofing: %s", err)
	}
	s.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	if err := s.stack.EnableNIC(nicID); err != nil {
		return fmt.Errorf("enable interface: %s", err)
	}
	return nil
}

func protocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// begin registers a flow; it reports false once the stack is closing.
func (s *Stack) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

func (s *Stack) end() { s.wg.Done() }

// Requests is how many small requests of the guest went to the host, of TCP.
func (s *Stack) Requests() uint64 { return s.guest.Turn.Requests.Load() }

// Rush gets a value now and then while there are Requests.
func (s *Stack) Rush() <-chan struct{} { return s.guest.Turn.Rush }

// Close ends every flow with a reset, then the interface and the device.
func (s *Stack) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.cancel(net.ErrClosed)
	s.wg.Wait()
	errs := []error{s.serve.close()}
	if s.nat != nil {
		errs = append(errs, s.nat.Close())
	}
	if s.echo != nil {
		errs = append(errs, s.echo.Close())
	}
	if s.dns != nil {
		errs = append(errs, s.dns.Close())
	}
	if s.stack != nil {
		s.stack.Close()
		// The interface, once removed, is closed: that ends the receive loop and closes the device.
		if err := s.stack.RemoveNIC(nicID); err != nil {
			errs = append(errs, s.cfg.Device.Close())
		}
		s.stack.Wait()
	}
	return errors.Join(errs...)
}

// PublishUDP serves a published UDP port: sockets are the host's, to4 and to6 the
// guest's addresses. Close of the result ends it.
func (s *Stack) PublishUDP(sockets []*os.File, to4, to6 netip.AddrPort) (io.Closer, error) {
	return s.nat.Publish(sockets, to4, to6)
}
