package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

// Ports of DHCP (RFC 2131 section 4.1).
const (
	serverPort = 67
	clientPort = 68
)

var (
	errIncomplete = errors.New("want a function to write and an Ethernet address")
	broadcast     = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	everybody     = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

// Config is what a Server needs to know.
type Config struct {
	// Write sends one frame, Ethernet header first, to the guest. It must not block and
	// keeps nothing.
	Write func(h tap.Header, frame [][]byte) error
	// MAC is the server's Ethernet address.
	MAC net.HardwareAddr
	// Network is where the clients are; First and the addresses behind it are leased.
	Network netip.Prefix
	First   netip.Addr
	// Server is the server's own address, and that of the router.
	Server netip.Addr
	// DNS is the resolver; invalid: clients are told of none.
	DNS netip.Addr
}

// Server is a DHCPv4 server. It is safe for concurrent use.
type Server struct {
	cfg  Config
	send sender

	mu   sync.Mutex // guards pool
	pool pool

	count counters
}

// Stats are plain numbers since the Server was made; Leases are those that hold now.
type Stats struct {
	Leases    uint64
	Offers    uint64
	Acks      uint64
	Naks      uint64 // requests for what the client may not have
	Refused   uint64 // clients without an offer, because no address was free
	Declined  uint64 // addresses that a client found in use
	Released  uint64
	Malformed uint64 // what is no message of a client
	Write     uint64 // the device refused the frame
}

type counters struct {
	offers, acks, naks, refused, declined, released, malformed, write atomic.Uint64
}

// New makes a Server.
func New(cfg Config) (*Server, error) {
	send, err := newSender(cfg.Write, cfg.MAC)
	if err != nil {
		return nil, fmt.Errorf("new DHCP server: %w", err)
	}
	if !cfg.Network.Contains(cfg.First) || !cfg.Network.Contains(cfg.Server) || !cfg.Server.Is4() || cfg.DNS.IsValid() && !cfg.DNS.Is4() {
		return nil, fmt.Errorf("new DHCP server: leases from %s, server %s, resolver %s: want IPv4 addresses, the first two in %s",
			cfg.First, cfg.Server, cfg.DNS, cfg.Network)
	}
	s := &Server{cfg: cfg, send: send, pool: pool{first: cfg.First}}
	if last := s.pool.address(Leases - 1); !cfg.Network.Contains(last) {
		return nil, fmt.Errorf("new DHCP server: leases from %s to %s: want them in %s", cfg.First, last, cfg.Network)
	}
	return s, nil
}

// Stats reads the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	leases := s.pool.bound(time.Now())
	s.mu.Unlock()
	c := &s.count
	return Stats{
		Leases: uint64(leases),
		Offers: c.offers.Load(), Acks: c.acks.Load(), Naks: c.naks.Load(), Refused: c.refused.Load(),
		Declined: c.declined.Load(), Released: c.released.Load(), Malformed: c.malformed.Load(), Write: c.write.Load(),
	}
}

// Input takes a frame of the guest, Ethernet header first. True means that it was for the
// server, and is dealt with.
func (s *Server) Input(h tap.Header, frame []byte) bool {
	if !carries(frame, wire.EtherIPv4, wire.IPv4Len, serverPort) {
		return false
	}
	p, verdict := wire.Parse(frame)
	if verdict == wire.Other || p.Dst != broadcast && p.Dst != s.cfg.Server {
		return false
	}
	m, ok := parse(h, p, verdict)
	if !ok {
		s.count.malformed.Add(1)
		return true
	}
	s.answer(m)
	return true
}

// parse reads a client's message. Relays (RFC 2131 section 4.1) are none on this link.
func parse(h tap.Header, p wire.Packet, verdict wire.Verdict) (*dhcpv4.DHCPv4, bool) {
	if verdict != wire.OK {
		return nil, false
	}
	b, ok := payload(h, p)
	if !ok {
		return nil, false
	}
	m, err := dhcpv4.FromBytes(b)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootRequest || m.HWType != iana.HWTypeEthernet ||
		len(m.ClientHWAddr) != 6 || m.ClientHWAddr[0]&1 != 0 || !m.GatewayIPAddr.IsUnspecified() {
		return nil, false
	}
	return m, true
}

// addr is invalid for an address that is absent or unspecified.
func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// answer is RFC 2131 section 4.3.
func (s *Server) answer(m *dhcpv4.DHCPv4) {
	client, now := mac(m.ClientHWAddr), time.Now()
	wish, has, server := addr(m.RequestedIPAddress()), addr(m.ClientIPAddr), addr(m.ServerIdentifier())
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		i := s.pool.offer(client, wish, now)
		if i < 0 {
			s.count.refused.Add(1)
			return
		}
		s.count.offers.Add(1)
		s.reply(m, dhcpv4.MessageTypeOffer, s.pool.address(i))
	case dhcpv4.MessageTypeRequest:
		if server.IsValid() && server != s.cfg.Server {
			s.pool.withdraw(client, now) // it chose another server
			return
		}
		// Renewing and rebinding clients name the address as theirs, those that select or
		// reboot as their wish (section 4.3.2).
		want := wish
		if !want.IsValid() {
			want = has
		}
		if !s.pool.bind(client, want, now) {
			s.count.naks.Add(1)
			s.reply(m, dhcpv4.MessageTypeNak, netip.Addr{})
			return
		}
		s.count.acks.Add(1)
		s.reply(m, dhcpv4.MessageTypeAck, want)
	case dhcpv4.MessageTypeDecline:
		if server == s.cfg.Server && s.pool.decline(client, wish, now) {
			s.count.declined.Add(1)
		}
	case dhcpv4.MessageTypeRelease:
		if server == s.cfg.Server && s.pool.release(client, has, now) {
			s.count.released.Add(1)
		}
	case dhcpv4.MessageTypeInform:
		if !s.cfg.Network.Contains(has) {
			s.count.malformed.Add(1)
			return
		}
		s.count.acks.Add(1)
		s.reply(m, dhcpv4.MessageTypeAck, netip.Addr{})
	default:
		s.count.malformed.Add(1)
	}
}

// maxClientID is the longest client identifier that is repeated (RFC 6842).
const maxClientID = 255

// reply answers m; yours is the address that the client gets, if any.
func (s *Server) reply(m *dhcpv4.DHCPv4, kind dhcpv4.MessageType, yours netip.Addr) {
	r := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: m.HWType, TransactionID: m.TransactionID, Flags: m.Flags & broadcastFlag,
		ClientHWAddr: m.ClientHWAddr, YourIPAddr: yours.AsSlice(),
		Options: dhcpv4.OptionsFromList(dhcpv4.OptMessageType(kind), dhcpv4.OptServerIdentifier(s.cfg.Server.AsSlice())),
	}
	if id := m.GetOneOption(dhcpv4.OptionClientIdentifier); id != nil && len(id) <= maxClientID {
		r.UpdateOption(dhcpv4.OptClientIdentifier(id))
	}
	if kind != dhcpv4.MessageTypeNak {
		r.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(s.cfg.Network.Bits(), 32)))
		r.UpdateOption(dhcpv4.OptRouter(s.cfg.Server.AsSlice()))
		if s.cfg.DNS.IsValid() {
			r.UpdateOption(dhcpv4.OptDNS(s.cfg.DNS.AsSlice()))
		}
	}
	if yours.IsValid() {
		r.UpdateOption(dhcpv4.OptIPAddressLeaseTime(leaseTime))
	}
	if kind == dhcpv4.MessageTypeAck {
		r.ClientIPAddr = m.ClientIPAddr
	}
	to, at := destination(m, kind, yours)
	err := s.send.send(to, netip.AddrPortFrom(s.cfg.Server, serverPort), netip.AddrPortFrom(at, clientPort), r.ToBytes())
	if err != nil {
		s.count.write.Add(1)
	}
}

// broadcastFlag is bit 0 of the flags field: the client takes no unicast before it is
// configured (RFC 2131 section 2).
const broadcastFlag = 0x8000

// destination is where a reply goes (RFC 2131 section 4.1): to an address that the client
// has already, else to the one that it gets, else to everybody.
func destination(m *dhcpv4.DHCPv4, kind dhcpv4.MessageType, yours netip.Addr) (mac, netip.Addr) {
	has := addr(m.ClientIPAddr)
	switch {
	case kind == dhcpv4.MessageTypeNak:
	case has.IsValid():
		return mac(m.ClientHWAddr), has
	case m.Flags&broadcastFlag == 0 && yours.IsValid():
		return mac(m.ClientHWAddr), yours
	}
	return everybody, broadcast
}
