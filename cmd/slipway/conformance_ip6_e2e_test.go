//go:build e2e

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	resolver6 = "fd00::3"
	router6   = "fe80::2"
)

// guest6 is guestOf with IPv6, once the guest has an address.
func (d driver) guest6(t *testing.T, options ...string) (*agent, netip.Addr) {
	t.Helper()
	g, _ := d.guestOf(t, append([]string{"--enable-ipv6"}, options...)...)
	return g, address6(t, g)
}

// address6 waits for a guest's address of its own making, RFC 4862, and for its route.
func address6(t *testing.T, guest *agent) netip.Addr {
	t.Helper()
	var i netif
	eventually(t, patience, "an IPv6 address", func() bool {
		i = tapOf(t, guest)
		return len(i.only6()) > 0 && slices.Contains(i.Gateways, netip.MustParseAddr(router6))
	})
	return i.only6()[0].Addr()
}

// eui64 is the address that a MAC address makes of fd00::/64, RFC 4291 appendix A.
func eui64(t *testing.T, mac string) netip.Addr {
	t.Helper()
	m, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("fd00::").As16()
	copy(a[8:], []byte{m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
	return netip.AddrFrom16(a)
}

var ip6Cases = []conformanceCase{
	{name: "IPv6: address and route", check: func(t *testing.T, d driver) {
		g, addr := d.guest6(t)
		if want := eui64(t, tapOf(t, g).MAC); addr != want {
			t.Errorf("the guest's address is %s, want %s", addr, want)
		}
	}},
	{name: "IPv6: address within a second", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t, "--enable-ipv6")
		begin := time.Now()
		address6(t, g)
		if took := time.Since(begin); took > time.Second {
			t.Errorf("the guest had its address after %s", took)
		}
	}},
	{name: "IPv6: router advertisement", check: func(t *testing.T, d driver) {
		startResolver(t, "::1")
		setResolvConf(t, "nameserver ::1\n")
		g, _ := d.guest6(t)
		var got advertisement
		if err := json.Unmarshal([]byte(g.do("solicit", "tap0")), &got); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.Resolvers, []netip.Addr{netip.MustParseAddr(resolver6)}) {
			t.Errorf("the resolvers are %v", got.Resolvers)
		}
		want := advertisement{
			HopLimit: 64, Lifetime: 1800 * time.Second,
			Prefix: netip.MustParsePrefix("fd00::/64"), OnLink: true, Auto: true,
			Valid: 86400 * time.Second, Preferred: 14400 * time.Second, MAC: "52:56:00:00:00:02",
			MTU: got.MTU, Resolvers: got.Resolvers, ResolversLifetime: got.ResolversLifetime,
		}
		if a, b := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); a != b {
			t.Errorf("the advertisement is\n%s\nwant\n%s", a, b)
		}
	}},
	{name: "IPv6: stateless DHCPv6", check: func(t *testing.T, d driver) {
		startResolver(t, "::1")
		setResolvConf(t, "nameserver ::1\n")
		g, _ := d.guest6(t)
		if got := g.do("dhcp6", "tap0"); got != resolver6 {
			t.Errorf("the resolvers are %q, want %s", got, resolver6)
		}
	}},
	{name: "IPv6: ping gateway and resolver", check: func(t *testing.T, d driver) {
		g, _ := d.guest6(t)
		for _, n := range []int{56, 1400} {
			g.do("ping", gateway6, n)
			g.do("ping", resolver6, n)
		}
	}},
	{name: "IPv6: ping outside", known: excuse{newer, "since libslirp 4.8"}, check: func(t *testing.T, d driver) {
		newWorld(t)
		allowPing(t)
		g, _ := d.guest6(t)
		g.do("ping", serverAddr6, 56)
	}},
	{name: "IPv6: the gateway is the host's loopback", check: func(t *testing.T, d driver) {
		g, _ := d.guest6(t)
		g.do("talk", at(gateway6, hostEcho(t, "tcp6", "[::1]:0")), 0, 1<<20)
		g.do("packet", "udp", at(gateway6, hostEcho(t, "udp6", "[::1]:0")), 1000)
	}},
	{name: "IPv6: TCP outside", check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guest6(t)
		g.do("talk", at(serverAddr6.String(), echoPort), 0, 1<<20)
	}},
	{name: "IPv6: UDP outside", check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guest6(t)
		for _, n := range []int{1, farMTU - 48} {
			g.do("packet", "udp", at(serverAddr6.String(), echoPort), n)
		}
	}},
	{name: "IPv6: UDP of 1 to 65,507 bytes", known: excuse{bug, "fragments are not put together"}, check: func(t *testing.T, d driver) {
		g, _ := d.guest6(t)
		for _, n := range datagrams {
			g.do("packet", "udp", at(gateway6, hostEcho(t, "udp6", "[::1]:0")), n)
		}
	}},
	{name: "IPv6: UDP outside, larger than the path's MTU", known: excuse{bug, "fragments are not put together"}, check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guest6(t)
		for _, n := range datagrams {
			echoedAtLast(t, g, at(serverAddr6.String(), echoPort), n)
		}
	}},
	{name: "IPv6: refused", check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guest6(t)
		fails(t, g.try("dial", "tcp", at(gateway6, freeTCP(t))), unix.ECONNREFUSED)
		fails(t, g.try("dial", "tcp", at(serverAddr6.String(), 4)), unix.ECONNREFUSED)
	}},
	{name: "IPv6: unreachable", check: func(t *testing.T, d driver) {
		const nowhere = "[2001:4860:4860::8888]:53"
		hostFails(t, nowhere)
		g, _ := d.guest6(t)
		fails(t, g.try("dial", "tcp", nowhere), unreachableErrors...)
	}},
	{name: "IPv6: unreachable for a router", known: excuse{bug, "a dial that fails later is never answered"}, check: func(t *testing.T, d driver) {
		newWorld(t)
		hostFails(t, at(noNetAddr6.String(), 80))
		g, _ := d.guest6(t)
		fails(t, g.try("tell", "tcp", at(noNetAddr6.String(), 80)), unreachableErrors...)
	}},
	{name: "IPv6: path MTU", known: excuse{bug, "the host fragments what is too big"}, check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guest6(t)
		if mtu := g.do("pmtu", serverAddr6, 1440); mtu != fmt.Sprint(farMTU) {
			t.Errorf("the path's MTU is %s, want %d", mtu, farMTU)
		}
	}},
	{name: "IPv6: DNS", check: func(t *testing.T, d driver) {
		const one = "::1"
		startResolver(t, one)
		setResolvConf(t, "nameserver "+one+"\n")
		g, _ := d.guest6(t)
		for _, network := range networks {
			g.do("query", network, at(resolver6, 53))
		}
	}},
	{name: "IPv6: DNS by a resolver of IPv4", known: excuse{bug, "each family has its own resolvers only"}, check: func(t *testing.T, d driver) {
		startResolver(t, resolverOne)
		setResolvConf(t, "nameserver "+resolverOne+"\n")
		g, _ := d.guest6(t)
		asks(t, g, resolver6, resolverOne)
	}},
	{name: "IPv6: --disable-host-loopback", check: func(t *testing.T, d driver) {
		g, _ := d.guest6(t, "--disable-host-loopback")
		fails(t, g.try("dial", "tcp", at(gateway6, hostEcho(t, "tcp6", "[::1]:0"))), unreachableErrors...)
		g.do("ping", gateway6, 56)
	}},
	{name: "no IPv6 without --enable-ipv6", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		if r := g.try("solicit", "tap0"); r.Err == "" {
			t.Errorf("there is a router: %s", r.Text)
		}
	}},
}
