package dhcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	ft "slipway/netstack/internal/frametest"
	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

var (
	serverMAC = net.HardwareAddr{0x52, 0x55, 10, 0, 2, 2}
	nowhere   = netip.MustParseAddrPort("0.0.0.0:68")
	anyServer = netip.MustParseAddrPort("255.255.255.255:67")
)

// client is an Ethernet address by its number.
func client(n byte) mac { return mac{2, 0, 0, 0, 1, n} }

// network is the frames that a server sends.
type network struct {
	t      testing.TB
	frames [][]byte
	fail   error
}

func (n *network) write(_ tap.Header, frame [][]byte) error {
	if n.fail != nil {
		return n.fail
	}
	n.frames = append(n.frames, bytes.Join(frame, nil))
	return nil
}

func (n *network) config() Config {
	return Config{
		Write: n.write, MAC: serverMAC, Network: netip.MustParsePrefix("10.0.2.0/24"), First: netip.MustParseAddr("10.0.2.15"),
		Server: ft.Gate4, DNS: ft.DNS4,
	}
}

func newServer(t testing.TB) (*Server, *network) {
	t.Helper()
	n := &network{t: t}
	s, err := New(n.config())
	if err != nil {
		t.Fatal(err)
	}
	return s, n
}

// answer is a reply and where it went.
type answer struct {
	mac mac
	ip  netip.Addr
	m   *dhcpv4.DHCPv4
}

// datagram checks the headers of a frame and takes the payload out.
func datagram(t testing.TB, frame []byte, src, dst uint16) (wire.Packet, []byte) {
	t.Helper()
	p, verdict := wire.Parse(frame)
	if verdict != wire.OK || p.Proto != wire.ProtoUDP {
		t.Fatalf("no UDP datagram: % x", frame)
	}
	u := header.UDP(p.Payload)
	if wire.Sum(u, wire.PseudoSum(p.Src, p.Dst, p.Proto, len(u))) != 0xffff || int(u.Length()) != len(u) {
		t.Fatalf("wrong length or checksum: % x", frame)
	}
	if u.SourcePort() != src || u.DestinationPort() != dst {
		t.Fatalf("from port %d to %d, want %d to %d", u.SourcePort(), u.DestinationPort(), src, dst)
	}
	if !bytes.Equal(frame[6:12], serverMAC) {
		t.Fatalf("from % x, want % x", frame[6:12], serverMAC)
	}
	return p, u.Payload()
}

// take returns the reply that was sent, or nil.
func (n *network) take() *answer {
	n.t.Helper()
	if len(n.frames) == 0 {
		return nil
	}
	if len(n.frames) > 1 {
		n.t.Fatalf("%d replies to one message", len(n.frames))
	}
	frame := n.frames[0]
	n.frames = nil
	p, b := datagram(n.t, frame, 67, 68)
	if p.Src != ft.Gate4 || len(p.IP) > 576 {
		n.t.Fatalf("reply of %d bytes from %s", len(p.IP), p.Src)
	}
	m, err := dhcpv4.FromBytes(b)
	if err != nil {
		n.t.Fatalf("reply: %v", err)
	}
	if m.OpCode != dhcpv4.OpcodeBootReply {
		n.t.Fatalf("opcode %v", m.OpCode)
	}
	return &answer{mac: mac(frame[:6]), ip: p.Dst, m: m}
}

// message is one of a client, with the fields that f sets.
func message(from mac, kind dhcpv4.MessageType, f ...func(*dhcpv4.DHCPv4)) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, TransactionID: dhcpv4.TransactionID{1, 2, 3, from[5]},
		ClientHWAddr: from[:], Options: dhcpv4.OptionsFromList(dhcpv4.OptMessageType(kind)),
	}
	for _, f := range f {
		f(m)
	}
	return m
}

func wish(a string) func(*dhcpv4.DHCPv4) {
	return func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(a))) }
}

func has(a string) func(*dhcpv4.DHCPv4) {
	return func(m *dhcpv4.DHCPv4) { m.ClientIPAddr = net.ParseIP(a) }
}

func chose(a string) func(*dhcpv4.DHCPv4) {
	return func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptServerIdentifier(net.ParseIP(a))) }
}

// frameOf is the frame that a client without an address sends m in.
func frameOf(m *dhcpv4.DHCPv4) []byte {
	f := ft.Datagram(nowhere, anyServer, string(m.ToBytes()))
	copy(f[6:12], m.ClientHWAddr)
	return f
}

// ask gives the server a message and returns its reply, or nil.
func (n *network) ask(s *Server, m *dhcpv4.DHCPv4) *answer {
	n.t.Helper()
	if !s.Input(tap.Header{}, frameOf(m)) {
		n.t.Fatal("the server did not take a client's message")
	}
	return n.take()
}

// lease gets a client an address as a client does.
func (n *network) lease(s *Server, c mac) string {
	n.t.Helper()
	offer := n.ask(s, message(c, dhcpv4.MessageTypeDiscover))
	if offer == nil {
		return ""
	}
	if kind := offer.m.MessageType(); kind != dhcpv4.MessageTypeOffer {
		n.t.Fatalf("got %v for a discover", kind)
	}
	a := offer.m.YourIPAddr.String()
	ack := n.ask(s, message(c, dhcpv4.MessageTypeRequest, wish(a), chose("10.0.2.2")))
	if ack == nil || ack.m.MessageType() != dhcpv4.MessageTypeAck || ack.m.YourIPAddr.String() != a {
		n.t.Fatalf("request of the offered %s: %+v", a, ack)
	}
	return a
}

func TestLease(t *testing.T) {
	s, n := newServer(t)
	id := []byte{1, 2, 0, 0, 0, 1, 1}
	want := func(kind dhcpv4.MessageType) map[uint8][]byte {
		return map[uint8][]byte{
			53: {byte(kind)}, 1: {255, 255, 255, 0}, 3: {10, 0, 2, 2}, 6: {10, 0, 2, 3}, 54: {10, 0, 2, 2},
			51: binary.BigEndian.AppendUint32(nil, 86400), 61: id,
		}
	}
	identify := func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptClientIdentifier(id)) }
	for _, tt := range []struct {
		m    *dhcpv4.DHCPv4
		want dhcpv4.MessageType
	}{
		{message(client(1), dhcpv4.MessageTypeDiscover, identify), dhcpv4.MessageTypeOffer},
		{message(client(1), dhcpv4.MessageTypeRequest, identify, wish("10.0.2.15"), chose("10.0.2.2")), dhcpv4.MessageTypeAck},
	} {
		got := n.ask(s, tt.m)
		if got == nil {
			t.Fatalf("no answer to %v", tt.m.MessageType())
		}
		if diff := cmp.Diff(want(tt.want), map[uint8][]byte(got.m.Options)); diff != "" {
			t.Errorf("options of %v (-want +got)\n%s", tt.want, diff)
		}
		if got.m.YourIPAddr.String() != "10.0.2.15" || got.m.TransactionID != tt.m.TransactionID || mac(got.m.ClientHWAddr) != client(1) {
			t.Errorf("%v: %v", tt.want, got.m)
		}
		if got.mac != client(1) || got.ip != netip.MustParseAddr("10.0.2.15") {
			t.Errorf("%v went to %x at %s", tt.want, got.mac, got.ip)
		}
	}
	if diff := cmp.Diff(Stats{Leases: 1, Offers: 1, Acks: 1}, s.Stats()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestWithoutResolver(t *testing.T) {
	n := &network{t: t}
	cfg := n.config()
	cfg.DNS = netip.Addr{}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := n.ask(s, message(client(1), dhcpv4.MessageTypeDiscover)); got == nil || got.m.Options.Has(dhcpv4.OptionDomainNameServer) {
		t.Errorf("got %+v, want an offer without a resolver", got)
	}
}

func TestPoolIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := newServer(t)
		for i := range byte(Leases) {
			want := netip.AddrFrom4([4]byte{10, 0, 2, 15 + i}).String()
			if got := n.lease(s, client(i)); got != want {
				t.Fatalf("client %d got %s, want %s", i, got, want)
			}
			time.Sleep(time.Second)
		}
		if got := n.lease(s, client(100)); got != "" {
			t.Errorf("the 17th client got %s", got)
		}
		if got := n.lease(s, client(3)); got != "10.0.2.18" {
			t.Errorf("client 3 got %s when it asked again, want 10.0.2.18", got)
		}
		// What was released first is given away first, and who had it gets another.
		for _, i := range []byte{7, 2} {
			a := netip.AddrFrom4([4]byte{10, 0, 2, 15 + i}).String()
			if got := n.ask(s, message(client(i), dhcpv4.MessageTypeRelease, has(a), chose("10.0.2.2"))); got != nil {
				t.Errorf("a release was answered: %v", got.m)
			}
			time.Sleep(time.Second)
		}
		if got := n.lease(s, client(101)); got != "10.0.2.22" {
			t.Errorf("after two releases the next client got %s, want 10.0.2.22", got)
		}
		if got := n.lease(s, client(7)); got != "10.0.2.17" {
			t.Errorf("client 7 got %s, want 10.0.2.17", got)
		}
		st := s.Stats()
		if st.Leases != Leases || st.Refused != 1 || st.Released != 2 {
			t.Errorf("%+v", st)
		}
		// Leases end.
		time.Sleep(leaseTime)
		if got := s.Stats().Leases; got != 0 {
			t.Errorf("%d leases after a day, want none", got)
		}
		if got := n.lease(s, client(102)); got != "10.0.2.15" {
			t.Errorf("after a day the next client got %s, want 10.0.2.15", got)
		}
	})
}

// Offers that nobody takes up do not use up the pool.
func TestOffersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := newServer(t)
		for i := range byte(Leases) {
			n.ask(s, message(client(i), dhcpv4.MessageTypeDiscover))
		}
		if got := n.ask(s, message(client(50), dhcpv4.MessageTypeDiscover)); got != nil {
			t.Errorf("%s was offered twice", got.m.YourIPAddr)
		}
		time.Sleep(offerTime)
		if got := n.lease(s, client(50)); got == "" {
			t.Error("offers that have ended keep others out")
		}
		if got := s.Stats().Leases; got != 1 {
			t.Errorf("%d leases, want 1", got)
		}
	})
}

func TestRequest(t *testing.T) {
	const silence = dhcpv4.MessageTypeNone
	ack, nak := dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak
	// Client 1 has 10.0.2.15, client 2 was offered 10.0.2.16, client 3 is new.
	tests := map[string]struct {
		from byte
		f    []func(*dhcpv4.DHCPv4)
		want dhcpv4.MessageType
		addr string
	}{
		"the offer":                    {2, []func(*dhcpv4.DHCPv4){wish("10.0.2.16"), chose("10.0.2.2")}, ack, "10.0.2.16"},
		"another than the offer":       {2, []func(*dhcpv4.DHCPv4){wish("10.0.2.17"), chose("10.0.2.2")}, nak, ""},
		"somebody else's":              {2, []func(*dhcpv4.DHCPv4){wish("10.0.2.15"), chose("10.0.2.2")}, nak, ""},
		"another server's":             {2, []func(*dhcpv4.DHCPv4){wish("10.0.2.16"), chose("10.0.2.9")}, silence, ""},
		"after a reboot":               {1, []func(*dhcpv4.DHCPv4){wish("10.0.2.15")}, ack, "10.0.2.15"},
		"another after a reboot":       {1, []func(*dhcpv4.DHCPv4){wish("10.0.2.17")}, nak, ""},
		"unknown after a reboot":       {3, []func(*dhcpv4.DHCPv4){wish("10.0.2.20")}, ack, "10.0.2.20"},
		"somebody else's after reboot": {3, []func(*dhcpv4.DHCPv4){wish("10.0.2.15")}, nak, ""},
		"another network's":            {3, []func(*dhcpv4.DHCPv4){wish("192.0.2.15")}, nak, ""},
		"outside of the pool":          {3, []func(*dhcpv4.DHCPv4){wish("10.0.2.100")}, nak, ""},
		"the gateway's":                {3, []func(*dhcpv4.DHCPv4){wish("10.0.2.2")}, nak, ""},
		"renewal":                      {1, []func(*dhcpv4.DHCPv4){has("10.0.2.15")}, ack, "10.0.2.15"},
		"renewal of another's":         {3, []func(*dhcpv4.DHCPv4){has("10.0.2.15")}, nak, ""},
		"renewal of an unknown lease":  {3, []func(*dhcpv4.DHCPv4){has("10.0.2.21")}, ack, "10.0.2.21"},
		"nothing":                      {3, nil, nak, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, n := newServer(t)
			n.lease(s, client(1))
			n.ask(s, message(client(2), dhcpv4.MessageTypeDiscover))
			got := n.ask(s, message(client(tt.from), dhcpv4.MessageTypeRequest, tt.f...))
			if got == nil {
				if tt.want != silence {
					t.Fatalf("no answer, want %v", tt.want)
				}
				return
			}
			if kind := got.m.MessageType(); kind != tt.want {
				t.Fatalf("got %v, want %v", kind, tt.want)
			}
			if tt.want == ack && got.m.YourIPAddr.String() != tt.addr {
				t.Errorf("got %s, want %s", got.m.YourIPAddr, tt.addr)
			}
			if tt.want == nak {
				if diff := cmp.Diff(map[uint8][]byte{53: {6}, 54: {10, 0, 2, 2}}, map[uint8][]byte(got.m.Options)); diff != "" {
					t.Errorf("options (-want +got)\n%s", diff)
				}
				if got.ip != broadcast || got.mac != everybody || !got.m.YourIPAddr.IsUnspecified() {
					t.Errorf("refusal of %s to %s at %x", got.m.YourIPAddr, got.ip, got.mac)
				}
				if s.Stats().Naks != 1 {
					t.Errorf("%+v", s.Stats())
				}
			}
		})
	}
}

// Another server's client leaves its offer to others.
func TestOfferIsWithdrawn(t *testing.T) {
	s, n := newServer(t)
	for i := range byte(Leases) {
		n.ask(s, message(client(i), dhcpv4.MessageTypeDiscover))
	}
	n.ask(s, message(client(4), dhcpv4.MessageTypeRequest, wish("10.0.2.9"), chose("10.0.2.9")))
	if got := n.lease(s, client(50)); got != "10.0.2.19" {
		t.Errorf("the next client got %q, want the address of the withdrawn offer, 10.0.2.19", got)
	}
}

func TestWishIsGranted(t *testing.T) {
	s, n := newServer(t)
	got := n.ask(s, message(client(1), dhcpv4.MessageTypeDiscover, wish("10.0.2.20")))
	if got == nil || got.m.YourIPAddr.String() != "10.0.2.20" {
		t.Errorf("offered %+v, want 10.0.2.20", got)
	}
	got = n.ask(s, message(client(2), dhcpv4.MessageTypeDiscover, wish("10.0.2.20")))
	if got == nil || got.m.YourIPAddr.String() != "10.0.2.15" {
		t.Errorf("offered %+v, want 10.0.2.15", got)
	}
}

func TestDecline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := newServer(t)
		n.lease(s, client(1))
		for _, m := range []*dhcpv4.DHCPv4{
			message(client(2), dhcpv4.MessageTypeDecline, wish("10.0.2.15"), chose("10.0.2.2")), // not its own
			message(client(1), dhcpv4.MessageTypeDecline, wish("10.0.2.15"), chose("10.0.2.9")), // another server's
			message(client(1), dhcpv4.MessageTypeDecline, wish("10.0.2.16"), chose("10.0.2.2")),
		} {
			if got := n.ask(s, m); got != nil || s.Stats().Declined != 0 {
				t.Fatalf("answer %v, %+v", got, s.Stats())
			}
		}
		n.ask(s, message(client(1), dhcpv4.MessageTypeDecline, wish("10.0.2.15"), chose("10.0.2.2")))
		if got := s.Stats(); got.Declined != 1 || got.Leases != 0 {
			t.Errorf("%+v", got)
		}
		if got := n.lease(s, client(1)); got != "10.0.2.16" {
			t.Errorf("after declining 10.0.2.15 the client got %s", got)
		}
		if got := n.ask(s, message(client(2), dhcpv4.MessageTypeRequest, wish("10.0.2.15"))); got == nil || got.m.MessageType() != dhcpv4.MessageTypeNak {
			t.Errorf("request of a declined address: %+v", got)
		}
		time.Sleep(declinedTime)
		if got := n.ask(s, message(client(2), dhcpv4.MessageTypeRequest, wish("10.0.2.15"))); got == nil || got.m.MessageType() != dhcpv4.MessageTypeAck {
			t.Errorf("request when the decline is forgotten: %+v", got)
		}
	})
}

func TestInform(t *testing.T) {
	s, n := newServer(t)
	got := n.ask(s, message(client(1), dhcpv4.MessageTypeInform, has("10.0.2.100")))
	if got == nil || got.m.MessageType() != dhcpv4.MessageTypeAck {
		t.Fatalf("got %+v, want an acknowledgement", got)
	}
	want := map[uint8][]byte{53: {5}, 1: {255, 255, 255, 0}, 3: {10, 0, 2, 2}, 6: {10, 0, 2, 3}, 54: {10, 0, 2, 2}}
	if diff := cmp.Diff(want, map[uint8][]byte(got.m.Options)); diff != "" {
		t.Errorf("options (-want +got)\n%s", diff)
	}
	if got.ip != ft.Guest4 || !got.m.YourIPAddr.IsUnspecified() || s.Stats().Leases != 0 {
		t.Errorf("to %s, address %s, %+v", got.ip, got.m.YourIPAddr, s.Stats())
	}
	for _, a := range []string{"0.0.0.0", "192.0.2.1"} {
		if got := n.ask(s, message(client(1), dhcpv4.MessageTypeInform, has(a))); got != nil {
			t.Errorf("%s is told %v", a, got.m)
		}
	}
}

func TestDestination(t *testing.T) {
	s, n := newServer(t)
	flag := func(m *dhcpv4.DHCPv4) { m.SetBroadcast() }
	for name, tt := range map[string]struct {
		m   *dhcpv4.DHCPv4
		mac mac
		ip  string
	}{
		"unicast":           {message(client(1), dhcpv4.MessageTypeDiscover), client(1), "10.0.2.15"},
		"broadcast":         {message(client(1), dhcpv4.MessageTypeDiscover, flag), everybody, "255.255.255.255"},
		"has an address":    {message(client(1), dhcpv4.MessageTypeRequest, has("10.0.2.15")), client(1), "10.0.2.15"},
		"has one, and flag": {message(client(1), dhcpv4.MessageTypeRequest, has("10.0.2.15"), flag), client(1), "10.0.2.15"},
	} {
		got := n.ask(s, tt.m)
		if got == nil || got.mac != tt.mac || got.ip.String() != tt.ip {
			t.Errorf("%s: %+v; want it at %s, %x", name, got, tt.ip, tt.mac)
			continue
		}
		if got.m.IsBroadcast() != tt.m.IsBroadcast() {
			t.Errorf("%s: broadcast flag %v", name, got.m.IsBroadcast())
		}
	}
}

// malformed are frames to the server that are no message of a client.
func malformed() map[string][]byte {
	discover := message(client(1), dhcpv4.MessageTypeDiscover)
	with := func(f func(*dhcpv4.DHCPv4)) []byte {
		return frameOf(message(client(1), dhcpv4.MessageTypeDiscover, f))
	}
	change := func(f func(frame []byte)) []byte {
		b := frameOf(discover)
		f(b)
		return b
	}
	const ip, udp, body = wire.EthernetLen, wire.EthernetLen + wire.IPv4Len, wire.EthernetLen + wire.IPv4Len + wire.UDPLen
	return map[string][]byte{
		"nothing":               ft.Datagram(nowhere, anyServer, ""),
		"cut":                   ft.Datagram(nowhere, anyServer, string(discover.ToBytes()[:235])),
		"no cookie":             ft.Datagram(nowhere, anyServer, string(discover.ToBytes()[:236])),
		"no end":                ft.Datagram(nowhere, anyServer, string(discover.ToBytes()[:243])),
		"a reply":               with(func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply }),
		"not Ethernet":          with(func(m *dhcpv4.DHCPv4) { m.HWType = iana.HWTypeARCNET }),
		"short address":         with(func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = m.ClientHWAddr[:4] }),
		"long address":          with(func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = bytes.Repeat([]byte{2}, 16) }),
		"group address":         with(func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = net.HardwareAddr{3, 0, 0, 0, 0, 1} }),
		"through a relay":       with(func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = net.IPv4(10, 0, 2, 9) }),
		"BOOTP":                 with(func(m *dhcpv4.DHCPv4) { m.DeleteOption(dhcpv4.OptionDHCPMessageType) }),
		"a server's message":    with(func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck)) }),
		"wrong checksum":        change(func(b []byte) { b[body+4]++ }),
		"wrong header checksum": change(func(b []byte) { b[ip+10]++ }),
		"UDP length beyond IP":  change(func(b []byte) { b[udp+4] = 0xff }),
		"UDP length of nothing": change(func(b []byte) { b[udp+4], b[udp+5] = 0, 7 }),
	}
}

func TestMalformed(t *testing.T) {
	for name, frame := range malformed() {
		t.Run(name, func(t *testing.T) {
			s, n := newServer(t)
			if !s.Input(tap.Header{}, frame) {
				t.Error("it was left to others")
			}
			if got := n.take(); got != nil {
				t.Errorf("answer %v", got.m)
			}
			if diff := cmp.Diff(Stats{Malformed: 1}, s.Stats()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	s, _ := newServer(t)
	uso := tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: 100}
	if !s.Input(uso, frameOf(message(client(1), dhcpv4.MessageTypeDiscover))) || s.Stats().Malformed != 1 {
		t.Errorf("many datagrams in one: %+v", s.Stats())
	}
}

func TestChecksumMayBeAbsent(t *testing.T) {
	s, n := newServer(t)
	frame := frameOf(message(client(1), dhcpv4.MessageTypeDiscover))
	header.UDP(frame[wire.EthernetLen+wire.IPv4Len:]).SetChecksum(0)
	if !s.Input(tap.Header{}, frame) || n.take() == nil {
		t.Errorf("no offer: %+v", s.Stats())
	}
}

func TestOthersFrames(t *testing.T) {
	s, n := newServer(t)
	discover := string(message(client(1), dhcpv4.MessageTypeDiscover).ToBytes())
	guest := netip.AddrPortFrom(ft.Guest4, 68)
	fragment := frameOf(message(client(1), dhcpv4.MessageTypeDiscover))
	header.IPv4(fragment[wire.EthernetLen:]).SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
	for name, frame := range map[string][]byte{
		"nothing":               nil,
		"half a frame":          make([]byte, 30),
		"TCP":                   ft.TCP(ft.Guest4, ft.Gate4, header.TCPFlagSyn, ""),
		"another port":          ft.Datagram(guest, netip.AddrPortFrom(ft.Gate4, 68), discover),
		"a server in the world": ft.Datagram(guest, netip.AddrPortFrom(ft.World4, 67), discover),
		"IPv6":                  ft.Datagram(netip.AddrPortFrom(ft.Guest6, 68), netip.AddrPortFrom(ft.Gate6, 67), discover),
		"fragment":              fragment,
	} {
		if s.Input(tap.Header{}, frame) {
			t.Errorf("%s was taken", name)
		}
	}
	if got := n.take(); got != nil || s.Stats() != (Stats{}) {
		t.Errorf("answer %v, %+v", got, s.Stats())
	}
	if frame := ft.Datagram(guest, netip.AddrPortFrom(ft.Gate4, 67), discover); !s.Input(tap.Header{}, frame) || n.take() == nil {
		t.Error("a message to the server's own address had no answer")
	}
}

func TestWriteFails(t *testing.T) {
	s, n := newServer(t)
	n.fail = errors.New("link down")
	n.ask(s, message(client(1), dhcpv4.MessageTypeDiscover))
	if got := s.Stats().Write; got != 1 {
		t.Errorf("counted %d frames that were refused, want 1", got)
	}
}

func TestNew(t *testing.T) {
	n := &network{t: t}
	for name, f := range map[string]func(*Config){
		"no Write":        func(c *Config) { c.Write = nil },
		"no MAC":          func(c *Config) { c.MAC = nil },
		"first elsewhere": func(c *Config) { c.First = netip.MustParseAddr("10.0.3.15") },
		"last elsewhere":  func(c *Config) { c.First = netip.MustParseAddr("10.0.2.250") },
		"no server":       func(c *Config) { c.Server = netip.Addr{} },
		"IPv6 resolver":   func(c *Config) { c.DNS = ft.Gate6 },
	} {
		cfg := n.config()
		f(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestInputOfOthersDoesNotAllocate(t *testing.T) {
	s, _ := newServer(t)
	s6, _ := newServer6(t)
	frames := [][]byte{
		ft.TCP(ft.Guest4, ft.World4, header.TCPFlagAck, "x"),
		ft.Datagram(netip.AddrPortFrom(ft.Guest4, 40000), netip.AddrPortFrom(ft.World4, 53), "x"),
		ft.Datagram(netip.AddrPortFrom(ft.Guest6, 40000), netip.AddrPortFrom(ft.World6, 53), "x"),
	}
	if allocs := testing.AllocsPerRun(100, func() {
		for _, f := range frames {
			s.Input(tap.Header{}, f)
			s6.Input(tap.Header{}, f)
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// FuzzInput gives both servers two frames that the guest's kernel vouches for. What they
// answer is always well formed and never long, and the pool stays as it must be.
func FuzzInput(f *testing.F) {
	discover, request := message(client(1), dhcpv4.MessageTypeDiscover), message(client(1), dhcpv4.MessageTypeRequest, wish("10.0.2.15"), chose("10.0.2.2"))
	f.Add(frameOf(discover), frameOf(request))
	f.Add(frameOf(request), frameOf(message(client(1), dhcpv4.MessageTypeRelease, has("10.0.2.15"), chose("10.0.2.2"))))
	f.Add(frameOf(request), frameOf(message(client(1), dhcpv4.MessageTypeDecline, wish("10.0.2.15"), chose("10.0.2.2"))))
	f.Add(frameOf(message(client(1), dhcpv4.MessageTypeInform, has("10.0.2.100"))), frameOf(message(client(2), dhcpv4.MessageTypeDiscover, wish("10.0.2.30"))))
	f.Add(frameOf(message(client(1), dhcpv4.MessageTypeDiscover, func(m *dhcpv4.DHCPv4) {
		m.UpdateOption(dhcpv4.OptClientIdentifier(bytes.Repeat([]byte{1}, 1000)))
	})), frameOf6(longID()))
	f.Add(frameOf6(inform()), frameOf6(solicit6()))
	f.Add(frameOf(request), frameOf(message(client(1), dhcpv4.MessageTypeRequest, wish("10.0.2.16"))))
	for _, frame := range malformed() {
		f.Add(frame, frameOf(discover))
	}
	for _, frame := range malformed6() {
		f.Add(frame, frameOf6(inform()))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		s, n := newServer(t)
		s6, n6 := newServer6(t)
		vouched := tap.Header{Flags: tap.FlagDataValid}
		for _, frame := range [][]byte{a, b} {
			s.Input(vouched, frame)
			if got := n.take(); got != nil && !got.m.YourIPAddr.IsUnspecified() && s.pool.index(addr(got.m.YourIPAddr)) < 0 {
				t.Fatalf("%s was leased", got.m.YourIPAddr)
			}
			s6.Input(vouched, frame)
			n6.take6()
		}
		held := make(map[mac]bool)
		for i := range s.pool.leases {
			l := &s.pool.leases[i]
			if l.state == unused || l.state == declined {
				continue
			}
			if held[l.mac] {
				t.Fatalf("%x has two leases", l.mac)
			}
			held[l.mac] = true
		}
	})
}
