package dhcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

// Ports of DHCPv6 (RFC 8415 section 7.2).
const (
	serverPort6 = 547
	clientPort6 = 546
)

// servers6 is All_DHCP_Relay_Agents_and_Servers (RFC 8415 section 7.1).
var servers6 = netip.MustParseAddr("ff02::1:2")

// maxDUID is the longest identifier of a client (RFC 8415 section 11.1).
const maxDUID = 130

// Config6 is what a Server6 needs to know.
type Config6 struct {
	// Write sends one frame, Ethernet header first, to the guest. It must not block and
	// keeps nothing.
	Write func(h tap.Header, frame [][]byte) error
	// MAC is the server's Ethernet address, and what it is identified by.
	MAC net.HardwareAddr
	// Server is the server's own address, a link-local one.
	Server netip.Addr
	// DNS is the resolver; invalid: clients are told of none.
	DNS netip.Addr
}

// Server6 is a stateless DHCPv6 server. It is safe for concurrent use.
type Server6 struct {
	cfg  Config6
	send sender
	duid dhcpv6.DUID

	replies, ignored, malformed, write atomic.Uint64
}

// Stats6 are plain numbers since the Server6 was made.
type Stats6 struct {
	Replies   uint64
	Ignored   uint64 // messages that ask for addresses, or another server
	Malformed uint64
	Write     uint64 // the device refused the frame
}

// New6 makes a Server6.
func New6(cfg Config6) (*Server6, error) {
	send, err := newSender(cfg.Write, cfg.MAC)
	if err != nil {
		return nil, fmt.Errorf("new DHCPv6 server: %w", err)
	}
	if !cfg.Server.Is6() || !cfg.Server.IsLinkLocalUnicast() || cfg.DNS.IsValid() && !cfg.DNS.Is6() {
		return nil, fmt.Errorf("new DHCPv6 server: server %s, resolver %s: want IPv6 addresses, the first link-local", cfg.Server, cfg.DNS)
	}
	return &Server6{cfg: cfg, send: send, duid: &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: cfg.MAC}}, nil
}

// Stats reads the counters.
func (s *Server6) Stats() Stats6 {
	return Stats6{Replies: s.replies.Load(), Ignored: s.ignored.Load(), Malformed: s.malformed.Load(), Write: s.write.Load()}
}

// Input takes a frame of the guest, Ethernet header first. True means that it was for the
// server, and is dealt with.
func (s *Server6) Input(h tap.Header, frame []byte) bool {
	if !carries(frame, wire.EtherIPv6, wire.IPv6Len, serverPort6) {
		return false
	}
	p, verdict := wire.Parse(frame)
	if verdict == wire.Other || p.Dst != servers6 {
		return false
	}
	m, ok := parse6(h, p, verdict)
	switch {
	case !ok:
		s.malformed.Add(1)
	case !s.wanted(m):
		s.ignored.Add(1)
	default:
		s.reply(m, mac(frame[6:12]), p.Src)
	}
	return true
}

func parse6(h tap.Header, p wire.Packet, verdict wire.Verdict) (*dhcpv6.Message, bool) {
	if verdict != wire.OK || !p.Src.IsLinkLocalUnicast() {
		return nil, false
	}
	b, ok := payload(h, p)
	if !ok || binary.BigEndian.Uint16(p.Payload) != clientPort6 {
		return nil, false
	}
	m, err := dhcpv6.MessageFromBytes(b)
	if err != nil {
		return nil, false
	}
	if id := m.Options.ClientID(); id != nil && len(id.ToBytes()) > maxDUID {
		return nil, false
	}
	return m, true
}

// wanted reports whether m is a request for information that is for us (RFC 8415 section
// 16.12).
func (s *Server6) wanted(m *dhcpv6.Message) bool {
	if m.MessageType != dhcpv6.MessageTypeInformationRequest {
		return false
	}
	for _, code := range []dhcpv6.OptionCode{dhcpv6.OptionIANA, dhcpv6.OptionIATA, dhcpv6.OptionIAPD} {
		if len(m.GetOption(code)) > 0 {
			return false
		}
	}
	server := m.Options.ServerID()
	return server == nil || server.Equal(s.duid)
}

// reply answers a request (RFC 8415 section 18.3.6).
func (s *Server6) reply(m *dhcpv6.Message, to mac, client netip.Addr) {
	r := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: m.TransactionID}
	r.AddOption(dhcpv6.OptServerID(s.duid))
	if id := m.Options.ClientID(); id != nil {
		r.AddOption(dhcpv6.OptClientID(id))
	}
	if s.cfg.DNS.IsValid() && m.IsOptionRequested(dhcpv6.OptionDNSRecursiveNameServer) {
		r.AddOption(dhcpv6.OptDNS(s.cfg.DNS.AsSlice()))
	}
	err := s.send.send(to, netip.AddrPortFrom(s.cfg.Server, serverPort6), netip.AddrPortFrom(client, clientPort6), r.ToBytes())
	if err != nil {
		s.write.Add(1)
		return
	}
	s.replies.Add(1)
}
