package dhcp

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	ft "slipway/netstack/internal/frametest"
	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

var (
	client6    = netip.MustParseAddrPort("[fe80::1]:546")
	anyServer6 = netip.MustParseAddrPort("[ff02::1:2]:547")
	resolver6  = netip.MustParseAddr("fd00::3")
	clientDUID = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr(ft.GuestMAC)}
)

func (n *network) config6() Config6 {
	return Config6{Write: n.write, MAC: serverMAC, Server: netip.MustParseAddr("fe80::2"), DNS: resolver6}
}

func newServer6(t testing.TB) (*Server6, *network) {
	t.Helper()
	n := &network{t: t}
	s, err := New6(n.config6())
	if err != nil {
		t.Fatal(err)
	}
	return s, n
}

// inform is a request for information about resolvers.
func inform(options ...dhcpv6.Option) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeInformationRequest, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	m.AddOption(dhcpv6.OptClientID(clientDUID))
	m.AddOption(dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer))
	for _, o := range options {
		m.AddOption(o)
	}
	return m
}

func solicit6() *dhcpv6.Message {
	m := inform()
	m.MessageType = dhcpv6.MessageTypeSolicit
	return m
}

func longID() *dhcpv6.Message {
	m := inform()
	m.UpdateOption(dhcpv6.OptClientID(&dhcpv6.DUIDOpaque{Type: 9, Data: make([]byte, 1000)}))
	return m
}

func frameOf6(m *dhcpv6.Message) []byte {
	return ft.Datagram(client6, anyServer6, string(m.ToBytes()))
}

// take6 returns the reply that was sent, or nil.
func (n *network) take6() *dhcpv6.Message {
	n.t.Helper()
	if len(n.frames) == 0 {
		return nil
	}
	frame := n.frames[0]
	n.frames = nil
	p, b := datagram(n.t, frame, 547, 546)
	if p.Src != netip.MustParseAddr("fe80::2") || !p.Dst.IsLinkLocalUnicast() || len(p.IP) > 576 {
		n.t.Fatalf("reply of %d bytes from %s to %s", len(p.IP), p.Src, p.Dst)
	}
	m, err := dhcpv6.MessageFromBytes(b)
	if err != nil || m.MessageType != dhcpv6.MessageTypeReply {
		n.t.Fatalf("reply %v: %v", m, err)
	}
	return m
}

func TestInformationRequest(t *testing.T) {
	s, n := newServer6(t)
	m := inform()
	if !s.Input(tap.Header{}, frameOf6(m)) {
		t.Fatal("the server did not take a request")
	}
	if to := n.frames[0][:6]; !bytes.Equal(to, []byte(ft.GuestMAC)) {
		t.Errorf("the reply went to % x", to)
	}
	got := n.take6()
	if got.TransactionID != m.TransactionID || !got.Options.ClientID().Equal(clientDUID) || !got.Options.ServerID().Equal(s.duid) {
		t.Errorf("got %v", got)
	}
	if dns := got.Options.DNS(); len(dns) != 1 || dns[0].String() != "fd00::3" {
		t.Errorf("resolvers %v, want fd00::3", dns)
	}
	if diff := cmp.Diff(Stats6{Replies: 1}, s.Stats()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	s.Input(tap.Header{}, frameOf6(inform(dhcpv6.OptServerID(s.duid))))
	if n.take6() == nil {
		t.Error("no answer to a request to this very server")
	}
}

func TestResolverIsToldWhenThereIsOneAndItIsWanted(t *testing.T) {
	n := &network{t: t}
	cfg := n.config6()
	cfg.DNS = netip.Addr{}
	without, err := New6(cfg)
	if err != nil {
		t.Fatal(err)
	}
	with, err := New6(n.config6())
	if err != nil {
		t.Fatal(err)
	}
	unwanted := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeInformationRequest}
	for _, tt := range []struct {
		s *Server6
		m *dhcpv6.Message
	}{{without, inform()}, {with, unwanted}} {
		tt.s.Input(tap.Header{}, frameOf6(tt.m))
		if got := n.take6(); got == nil || len(got.Options.DNS()) != 0 {
			t.Errorf("got %v, want a reply without a resolver", got)
		}
	}
}

func TestIgnored6(t *testing.T) {
	other := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
	for name, m := range map[string]*dhcpv6.Message{
		"solicit":        solicit6(),
		"another server": inform(dhcpv6.OptServerID(other)),
		"an address":     inform(&dhcpv6.OptIANA{}),
		"a prefix":       inform(&dhcpv6.OptIAPD{}),
	} {
		s, n := newServer6(t)
		if !s.Input(tap.Header{}, frameOf6(m)) || len(n.frames) != 0 || s.Stats() != (Stats6{Ignored: 1}) {
			t.Errorf("%s: %d replies, %+v", name, len(n.frames), s.Stats())
		}
	}
}

func malformed6() map[string][]byte {
	b := string(inform().ToBytes())
	absent := frameOf6(inform())
	at := wire.EthernetLen + wire.IPv6Len
	absent[at+6], absent[at+7] = 0, 0
	wrong := frameOf6(inform())
	wrong[at+9]++
	return map[string][]byte{
		"nothing":           ft.Datagram(client6, anyServer6, ""),
		"cut":               ft.Datagram(client6, anyServer6, b[:len(b)-1]),
		"relayed":           ft.Datagram(client6, anyServer6, "\x0c"+b[1:]),
		"another port":      ft.Datagram(netip.AddrPortFrom(client6.Addr(), 547), anyServer6, b),
		"from afar":         ft.Datagram(netip.AddrPortFrom(ft.Guest6, 546), anyServer6, b),
		"long identifier":   frameOf6(longID()),
		"without checksum":  absent,
		"wrong checksum":    wrong,
		"option of nothing": ft.Datagram(client6, anyServer6, b+"\x00\x01\x00\x00"),
	}
}

func TestMalformed6(t *testing.T) {
	for name, frame := range malformed6() {
		s, n := newServer6(t)
		if !s.Input(tap.Header{}, frame) || len(n.frames) != 0 || s.Stats() != (Stats6{Malformed: 1}) {
			t.Errorf("%s: %d replies, %+v", name, len(n.frames), s.Stats())
		}
	}
	s, _ := newServer6(t)
	for name, frame := range map[string][]byte{
		"to one address": ft.Datagram(client6, netip.AddrPortFrom(ft.Gate6, 547), string(inform().ToBytes())),
		"IPv4":           ft.Datagram(netip.AddrPortFrom(ft.Guest4, 546), netip.AddrPortFrom(ft.Gate4, 547), "x"),
		"ICMPv6":         ft.Echo(ft.Guest6, ft.Gate6),
	} {
		if s.Input(tap.Header{}, frame) {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestNew6(t *testing.T) {
	n := &network{t: t}
	for name, f := range map[string]func(*Config6){
		"no Write":              func(c *Config6) { c.Write = nil },
		"no MAC":                func(c *Config6) { c.MAC = nil },
		"server not link-local": func(c *Config6) { c.Server = ft.Gate6 },
		"no server":             func(c *Config6) { c.Server = netip.Addr{} },
		"IPv4 resolver":         func(c *Config6) { c.DNS = ft.DNS4 },
	} {
		cfg := n.config6()
		f(&cfg)
		if _, err := New6(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
