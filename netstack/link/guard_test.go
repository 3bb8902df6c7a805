package link

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	ft "slipway/netstack/internal/frametest"
	"slipway/netstack/tap"
)

func testGuard() Guard {
	return Guard{Sources: []netip.Prefix{netip.PrefixFrom(ft.Guest4, 32), netip.PrefixFrom(ft.Guest6, 128)}, Own: []netip.Addr{ft.Gate4, ft.Gate6}}
}

func segment(src, dst netip.Addr, payload string) []byte {
	return ft.TCP(src, dst, header.TCPFlagAck, payload)
}

func change(b []byte, f func([]byte)) []byte {
	f(b)
	return b
}

func TestGuard(t *testing.T) {
	trusted := tap.Header{Flags: tap.FlagNeedsCsum}
	linkLocal, unspecified := netip.MustParseAddr("fe80::1"), netip.IPv6Unspecified()
	tests := map[string]struct {
		h     tap.Header
		frame []byte
		want  reason
	}{
		"tcp":                             {frame: segment(ft.Guest4, ft.World4, "x"), want: pass},
		"tcp over IPv6":                   {frame: segment(ft.Guest6, ft.World6, "xy"), want: pass},
		"no frame":                        {frame: nil, want: badLength},
		"half an Ethernet header":         {frame: make([]byte, 13), want: badLength},
		"group source address":            {frame: change(segment(ft.Guest4, ft.World4, ""), func(b []byte) { b[6] = 1 }), want: badMAC},
		"other EtherType":                 {frame: ft.Ethernet(0x88cc, make([]byte, 50)), want: notOurs},
		"IPv4 cut":                        {frame: segment(ft.Guest4, ft.World4, "")[:30], want: badLength},
		"IPv4 version 5":                  {frame: change(segment(ft.Guest4, ft.World4, ""), func(b []byte) { b[14] = 0x55 }), want: badLength},
		"IPv4 header of 4 bytes":          {frame: change(segment(ft.Guest4, ft.World4, ""), func(b []byte) { b[14] = 0x41 }), want: badLength},
		"IPv4 header beyond the frame":    {frame: change(segment(ft.Guest4, ft.World4, ""), func(b []byte) { b[14] = 0x4f }), want: badLength},
		"IPv4 total length beyond frame":  {frame: change(segment(ft.Guest4, ft.World4, ""), func(b []byte) { binary.BigEndian.PutUint16(b[16:], 1500) }), want: badLength},
		"IPv4 total length below header":  {frame: change(segment(ft.Guest4, ft.World4, ""), func(b []byte) { binary.BigEndian.PutUint16(b[16:], 10) }), want: badLength},
		"IPv4 foreign source":             {frame: segment(ft.World4, ft.Gate4, ""), want: badSource},
		"IPv4 the gateway's source":       {frame: segment(ft.Gate4, ft.World4, ""), want: badSource},
		"IPv4 header checksum":            {frame: change(segment(ft.Guest4, ft.World4, ""), func(b []byte) { b[24]++ }), want: badChecksum},
		"TCP checksum":                    {frame: change(segment(ft.Guest4, ft.World4, "x"), func(b []byte) { b[len(b)-1]++ }), want: badChecksum},
		"TCP checksum left to us":         {h: trusted, frame: change(segment(ft.Guest4, ft.World4, "x"), func(b []byte) { b[len(b)-1]++ }), want: pass},
		"TCP header cut":                  {frame: ft.Frame(header.TCPProtocolNumber, ft.Guest4, ft.World4, make([]byte, 10)), want: badLength},
		"fragment of TCP":                 {frame: change(segment(ft.Guest4, ft.World4, "x"), func(b []byte) { b[len(b)-1]++; fragment(b) }), want: pass},
		"IPv6 cut":                        {frame: segment(ft.Guest6, ft.World6, "")[:50], want: badLength},
		"IPv6 version 4":                  {frame: change(segment(ft.Guest6, ft.World6, ""), func(b []byte) { b[14] = 0x40 }), want: badLength},
		"IPv6 payload beyond the frame":   {frame: change(segment(ft.Guest6, ft.World6, ""), func(b []byte) { b[18] = 9 }), want: badLength},
		"IPv6 foreign source":             {frame: segment(ft.World6, ft.Gate6, ""), want: badSource},
		"TCP over IPv6 from link-local":   {frame: segment(linkLocal, ft.World6, ""), want: badSource},
		"multicast listener report":       {frame: ft.Frame(0, linkLocal, netip.MustParseAddr("ff02::16"), []byte{58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0}), want: notOurs},
		"TCP checksum over IPv6":          {frame: change(segment(ft.Guest6, ft.World6, "x"), func(b []byte) { b[len(b)-1]++ }), want: badChecksum},
		"ARP for the gateway":             {frame: ft.ARP(header.ARPRequest, ft.Gate4), want: pass},
		"ARP for another":                 {frame: ft.ARP(header.ARPRequest, ft.Guest4), want: notOurs},
		"ARP reply":                       {frame: ft.ARP(header.ARPReply, ft.Guest4), want: pass},
		"ARP cut":                         {frame: ft.ARP(header.ARPRequest, ft.Gate4)[:34], want: badLength},
		"solicitation for the gateway":    {frame: ft.Solicit(ft.Guest6, ft.Gate6), want: pass},
		"solicitation from link-local":    {frame: ft.Solicit(linkLocal, ft.Gate6), want: pass},
		"duplicate address detection":     {frame: ft.Solicit(unspecified, ft.Guest6), want: notOurs},
		"solicitation from a foreigner":   {frame: ft.Solicit(ft.World6, ft.Gate6), want: badSource},
		"ICMPv6 of 4 bytes":               {frame: ft.Frame(header.ICMPv6ProtocolNumber, ft.Guest6, ft.Gate6, []byte{135, 0, 0, 0}), want: badLength},
		"solicitation without its target": {frame: ft.Frame(header.ICMPv6ProtocolNumber, ft.Guest6, ft.Gate6, []byte{135, 0, 0, 0, 0, 0, 0, 0}), want: badLength},
	}
	g := testGuard()
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := g.check(tt.h, tt.frame, len(tt.frame)); got != tt.want {
				t.Errorf("got %q, want %q", reasonNames[got], reasonNames[tt.want])
			}
		})
	}
}

// A guest that configures itself is heard before it has an address, and with every address
// of its networks, where there is somebody to hear it.
func TestGuardOfAGuestThatConfiguresItself(t *testing.T) {
	udp := func(src, dst string) []byte {
		return ft.Datagram(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), "x")
	}
	linkLocal := netip.MustParseAddr("fe80::1")
	own := []netip.Addr{ft.Gate4, ft.Gate6, netip.MustParseAddr("fe80::2")}
	networks := []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fd00::/64")}
	fixed := testGuard()
	open := Guard{Sources: networks, Own: own, DHCP: true, Router: true}
	only4 := Guard{Sources: networks[:1], Own: own[:1], DHCP: true}
	discover := udp("0.0.0.0:68", "255.255.255.255:67")
	tests := map[string]struct {
		frame              []byte
		fixed, open, only4 reason
	}{
		"an address of the network":         {segment(netip.MustParseAddr("10.0.2.15"), ft.World4, "x"), badSource, pass, pass},
		"an IPv6 address of the network":    {segment(netip.MustParseAddr("fd00::1234"), ft.World6, "x"), badSource, pass, notOurs},
		"the gateway's":                     {segment(ft.Gate4, ft.World4, "x"), badSource, badSource, badSource},
		"the gateway's over IPv6":           {segment(ft.Gate6, ft.World6, "x"), badSource, badSource, notOurs},
		"another network's":                 {segment(netip.MustParseAddr("10.0.3.15"), ft.World4, "x"), badSource, badSource, badSource},
		"DHCP":                              {discover, badSource, pass, pass},
		"DHCP in fragments":                 {change(udp("0.0.0.0:68", "255.255.255.255:67"), fragment), badSource, badSource, badSource},
		"DHCP cut":                          {ft.Frame(header.UDPProtocolNumber, netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), []byte{0, 68, 0, 67}), badSource, badSource, badSource},
		"DHCP to one address":               {udp("0.0.0.0:68", "10.0.2.2:67"), badSource, badSource, badSource},
		"from nowhere to another port":      {udp("0.0.0.0:68", "255.255.255.255:69"), badSource, badSource, badSource},
		"TCP from nowhere":                  {segment(netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), "x"), badSource, badSource, badSource},
		"router solicitation":               {ft.SolicitRouter(linkLocal), notOurs, pass, notOurs},
		"router solicitation from nowhere":  {ft.SolicitRouter(netip.IPv6Unspecified()), notOurs, pass, notOurs},
		"DHCPv6":                            {udp("[fe80::1]:546", "[ff02::1:2]:547"), badSource, pass, notOurs},
		"DHCPv6 to another address":         {udp("[fe80::1]:546", "[fd00::2]:547"), badSource, badSource, notOurs},
		"UDP from link-local":               {udp("[fe80::1]:546", "[ff02::1:2]:53"), badSource, badSource, notOurs},
		"solicitation for the router":       {ft.Solicit(linkLocal, own[2]), notOurs, pass, notOurs},
		"solicitation for the gateway":      {ft.Solicit(linkLocal, ft.Gate6), pass, pass, notOurs},
		"echo from link-local":              {ft.Echo(linkLocal, own[2]), pass, pass, notOurs},
		"ARP for the gateway from nowhere":  {ft.ARP(header.ARPRequest, ft.Gate4), pass, pass, pass},
		"DHCP whose checksum is not for us": {change(udp("0.0.0.0:68", "255.255.255.255:67"), func(b []byte) { b[24]++ }), badSource, badChecksum, badChecksum},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, g := range []struct {
				name  string
				guard *Guard
				want  reason
			}{{"fixed", &fixed, tt.fixed}, {"open", &open, tt.open}, {"IPv4 only", &only4, tt.only4}} {
				if got := g.guard.check(tap.Header{}, tt.frame, len(tt.frame)); got != g.want {
					t.Errorf("%s: got %q, want %q", g.name, reasonNames[got], reasonNames[g.want])
				}
			}
		})
	}
}

func TestSender(t *testing.T) {
	g := Guard{
		Sources: []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fd00::/64")},
		Own:     []netip.Addr{ft.Gate4, ft.Gate6, netip.MustParseAddr("fe80::2")}, DHCP: true, Router: true,
	}
	foreign := ft.ARP(header.ARPReply, ft.Guest4)
	copy(header.ARP(foreign[header.EthernetMinimumSize:]).ProtocolAddressSender(), ft.Gate4.AsSlice())
	for name, tt := range map[string]struct {
		frame []byte
		want  string
	}{
		"IPv4":                 {segment(ft.Guest4, ft.World4, ""), "10.0.2.100"},
		"IPv6":                 {segment(ft.Guest6, ft.World6, ""), "fd00::64"},
		"link-local":           {ft.SolicitRouter(netip.MustParseAddr("fe80::1")), "fe80::1"},
		"the router's own":     {ft.SolicitRouter(netip.MustParseAddr("fe80::2")), ""},
		"IPv6 from nowhere":    {ft.SolicitRouter(netip.IPv6Unspecified()), ""},
		"IPv4 from nowhere":    {ft.Datagram(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), ""), ""},
		"ARP":                  {ft.ARP(header.ARPReply, ft.Gate4), "10.0.2.100"},
		"ARP of the gateway's": {foreign, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if r := g.check(tap.Header{}, tt.frame, len(tt.frame)); r != pass {
				t.Fatalf("the guard says %q", reasonNames[r])
			}
			got, ok := g.sender(tt.frame)
			if !ok && tt.want == "" || ok && got.String() == tt.want {
				return
			}
			t.Errorf("got %s, %v; want %q", got, ok, tt.want)
		})
	}
}

// fragment sets the more-fragments flag and mends the header checksum.
func fragment(frame []byte) {
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	ip.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
}

func TestGuardDoesNotAllocate(t *testing.T) {
	g := testGuard()
	frame := segment(ft.Guest4, ft.World4, "payload")
	if n := testing.AllocsPerRun(100, func() { g.check(tap.Header{}, frame, len(frame)) }); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}
