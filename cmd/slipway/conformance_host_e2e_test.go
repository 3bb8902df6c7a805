//go:build e2e

package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Resolvers of the private host.
const (
	resolverOne = "127.0.0.53"
	resolverTwo = "127.0.0.54"
)

var networks = []string{"udp", "tcp"}

// The resolver at 10.0.2.3.
var dnsCases = []conformanceCase{
	{name: "DNS by UDP", check: func(t *testing.T, d driver) { resolves(t, d, "udp") }},
	{name: "DNS by TCP", check: func(t *testing.T, d driver) { resolves(t, d, "tcp") }},
	{name: "DNS follows resolv.conf", check: func(t *testing.T, d driver) {
		startResolver(t, resolverOne)
		startResolver(t, resolverTwo)
		setResolvConf(t, "nameserver "+resolverOne+"\n")
		g, _ := d.guestOf(t)
		asks(t, g, resolver, resolverOne)
		setResolvConf(t, "search example.com\nnameserver "+resolverTwo+"\noptions edns0\n")
		for _, network := range networks {
			eventually(t, patience, "an answer of the new resolver", func() bool {
				return g.try("query", network, at(resolver, 53), "2s").Text == resolverTwo
			})
		}
	}},
	{name: "DNS: first resolver refuses", known: excuse{bug, "only the first nameserver is asked (#347)"}, check: func(t *testing.T, d driver) {
		startResolver(t, resolverTwo)
		setResolvConf(t, "nameserver "+resolverOne+"\nnameserver "+resolverTwo+"\n")
		g, _ := d.guestOf(t)
		asks(t, g, resolver, resolverTwo)
	}},
	{name: "DNS: first resolver is silent", known: excuse{bug, "only the first nameserver is asked (#347)"}, check: func(t *testing.T, d driver) {
		c, err := net.ListenPacket("udp", at(resolverOne, 53))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		startResolver(t, resolverTwo)
		setResolvConf(t, "nameserver "+resolverOne+"\nnameserver "+resolverTwo+"\n")
		g, _ := d.guestOf(t)
		// As a stub resolver does: resolv.conf(5) has 5 s and two attempts.
		r := g.try("query", "udp", at(resolver, 53), "5s")
		if r.Text == "" {
			r = g.try("query", "udp", at(resolver, 53), "5s")
		}
		if r.Text != resolverTwo {
			t.Errorf("%q, %q; want %s", r.Text, r.Err, resolverTwo)
		}
	}},
	{name: "DNS: no resolver is an error at once", check: func(t *testing.T, d driver) {
		setResolvConf(t, "search example.com\n")
		g, _ := d.guestOf(t)
		fails(t, g.try("dial", "tcp", at(resolver, 53)), unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ECONNREFUSED)
	}},
	{name: "other ports of the resolver", check: func(t *testing.T, d driver) {
		startResolver(t, resolverOne)
		setResolvConf(t, "nameserver "+resolverOne+"\n")
		g, _ := d.guestOf(t)
		fails(t, g.try("dial", "tcp", at(resolver, 80)), unreachableErrors...)
	}},
	{name: "--disable-dns", check: func(t *testing.T, d driver) {
		startResolver(t, resolverOne)
		setResolvConf(t, "nameserver "+resolverOne+"\n")
		g, _ := d.guestOf(t, "--disable-dns")
		for _, network := range networks {
			if r := g.try("query", network, at(resolver, 53), "1s"); r.Err == "" {
				t.Errorf("%s: the answer is %q, want none", network, r.Text)
			}
		}
		if mac := g.do("arp", "tap0", resolver); mac != "52:55:0a:00:02:03" {
			t.Errorf("the address has %q, want it as without the option", mac)
		}
		talks(t, g, gateway4)
	}},
}

func resolves(t *testing.T, d driver, network string) {
	t.Helper()
	startResolver(t, resolverOne)
	setResolvConf(t, "nameserver "+resolverOne+"\n")
	g, _ := d.guestOf(t)
	if r := g.try("query", network, at(resolver, 53)); r.Text != resolverOne || r.Took > atOnce {
		t.Errorf("%q, %q after %s; want %s at once", r.Text, r.Err, r.Took, resolverOne)
	}
}

// asks checks who answers questions to addr, by UDP and TCP.
func asks(t *testing.T, guest *agent, addr, want string) {
	t.Helper()
	for _, network := range networks {
		if r := guest.try("query", network, at(addr, 53)); r.Text != want {
			t.Errorf("%s %s: %q, %q; want %s", network, addr, r.Text, r.Err, want)
		}
	}
}

// TCP and UDP outwards.
var flowCases = []conformanceCase{
	{name: "TCP outside", check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guestOf(t)
		for _, n := range []int{1, 1448, 4 << 20} {
			g.do("talk", at(serverAddr.String(), echoPort), 0, n)
		}
		g.do("many", at(serverAddr.String(), echoPort), 50, 10000)
	}},
	{name: "TCP half-close", check: func(t *testing.T, d driver) { plays(t, d, halfCloses...) }},
	{name: "TCP reset by the host", check: func(t *testing.T, d driver) { plays(t, d, resets[0]) }},
	{name: "TCP reset by the guest", known: excuse{bug, "the host sees an end of file"}, check: func(t *testing.T, d driver) { plays(t, d, resets[1]) }},
	{name: "TCP refused", check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guestOf(t)
		fails(t, g.try("dial", "tcp", at(gateway4, freeTCP(t))), unix.ECONNREFUSED)
		fails(t, g.try("dial", "tcp", at(serverAddr.String(), 4)), unix.ECONNREFUSED)
	}},
	{name: "TCP unreachable", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		fails(t, g.try("dial", "tcp", at(unroutable.String(), 80)), unreachableErrors...)
	}},
	{name: "TCP unreachable for a router", known: excuse{bug, "a dial that fails later is never answered"}, check: func(t *testing.T, d driver) {
		newWorld(t)
		hostFails(t, at(noNetAddr.String(), 80))
		g, _ := d.guestOf(t)
		fails(t, g.try("tell", "tcp", at(noNetAddr.String(), 80)), unreachableErrors...)
	}},
	{name: "TCP window scaling, SACK, timestamps", known: excuse{bug, "SYNs carry only an MSS (#171)"}, check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		if got := g.do("tcpoptions", at(gateway4, hostEcho(t, "tcp4", "127.0.0.1:0"))); got != "timestamps sack wscale" {
			t.Errorf("the connection has agreed on %q", got)
		}
	}},
	{name: "UDP of 1 to 65,507 bytes", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		for _, n := range datagrams {
			g.do("packet", "udp", at(gateway4, hostEcho(t, "udp4", "127.0.0.1:0")), n)
		}
	}},
	{name: "UDP outside", check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guestOf(t)
		for _, n := range []int{1, farMTU - 28} {
			g.do("packet", "udp", at(serverAddr.String(), echoPort), n)
		}
	}},
	{name: "UDP outside, larger than the path's MTU", check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guestOf(t)
		for _, n := range datagrams {
			echoedAtLast(t, g, at(serverAddr.String(), echoPort), n)
		}
	}},
	{name: "UDP of 0 bytes", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		g.do("packet", "udp", at(gateway4, hostEcho(t, "udp4", "127.0.0.1:0")), 0)
	}},
	{name: "UDP refused by the host's loopback", known: excuse{bug, "the error does not become the gateway's"}, check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		fails(t, g.try("packet", "udp", at(gateway4, freeTCP(t)), 10), unix.ECONNREFUSED)
	}},
	{name: "UDP refused outside", check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guestOf(t)
		fails(t, g.try("packet", "udp", at(serverAddr.String(), 4), 10), unix.ECONNREFUSED)
	}},
	{name: "the host's own address", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		own := hostAddr.String()
		g.do("talk", at(own, hostEcho(t, "tcp4", at(own, 0))), 0, 100000)
		g.do("packet", "udp", at(own, hostEcho(t, "udp4", at(own, 0))), 1000)
	}},
}

// datagrams are sizes in one packet, at its edge at MTU 1500, and in fragments up to
// the largest there is.
var datagrams = []int{1, 1472, 1473, 2000, 8972, 32768, 60000, 65507}

// echoedAtLast checks that a guest has a datagram echoed, if not at the first attempt:
// what is larger than the path's MTU is lost until the sender knows it.
func echoedAtLast(t *testing.T, guest *agent, addr string, n int) {
	t.Helper()
	var r reply
	for range 3 {
		if r = guest.try("packet", "udp", addr, n); r.Err == "" {
			return
		}
	}
	t.Fatalf("%d bytes to %s: %s", n, addr, r.Err)
}

// hostFails checks of an address that the private host itself cannot reach it, and knows
// at once.
func hostFails(t *testing.T, addr string) {
	t.Helper()
	begin := time.Now()
	r := replyOf("", dialAndClose(addr))
	if r.Took = time.Since(begin); !slices.Contains(unreachableErrors, r.Errno) || r.Took > atOnce {
		t.Fatalf("%s%q after %s", setupFailed, r.Err, r.Took)
	}
}

func dialAndClose(addr string) error {
	c, err := dialFrom("tcp", addr, 0)
	if err != nil {
		return err
	}
	return c.Close()
}

// plays lets a guest and its host play scripts, over a connection that the guest makes.
func plays(t *testing.T, d driver, pairs ...[2]string) {
	t.Helper()
	g, _ := d.guestOf(t)
	l := hostListen(t, "tcp4", "127.0.0.1:0")
	play(t,
		func(what string) reply { return g.try("send", at(gateway4, portOf(t, l.Addr())), what) },
		func(what string) reply {
			c, err := l.AcceptTCP()
			if err != nil {
				return replyOf("", err)
			}
			return replyOf(script(c, what))
		}, pairs...)
}

// ICMP.
var icmpCases = []conformanceCase{
	{name: "ping gateway and resolver", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		for _, n := range []int{0, 56, 1472} {
			g.do("ping", gateway4, n)
			g.do("ping", resolver, n)
		}
	}},
	{name: "ping outside", check: func(t *testing.T, d driver) {
		newWorld(t)
		allowPing(t)
		g, _ := d.guestOf(t)
		for _, n := range []int{56, 1300} {
			g.do("ping", serverAddr, n)
		}
	}},
	{name: "ping outside in fragments", check: func(t *testing.T, d driver) {
		newWorld(t)
		allowPing(t)
		g, _ := d.guestOf(t)
		g.do("ping", serverAddr, 4000)
	}},
	{name: "ping of what is unreachable", known: excuse{bug, "ICMP errors of pings are dropped"}, check: func(t *testing.T, d driver) {
		newWorld(t)
		allowPing(t)
		g, _ := d.guestOf(t)
		fails(t, g.try("ping", unroutable, 56), unreachableErrors...)
		fails(t, g.try("ping", noNetAddr, 56), unreachableErrors...)
	}},
	{name: "traceroute -U", check: func(t *testing.T, d driver) {
		traces(t, d, "udp", serverAddr.String()+" 3 3")
	}},
	{name: "traceroute -I", known: excuse{bug, "TTL and ICMP errors of pings are dropped"}, check: func(t *testing.T, d driver) {
		traces(t, d, "icmp", serverAddr.String()+" 0 0")
	}},
	{name: "path MTU", known: excuse{bug, "the MTU that it tells is 0 (#306)"}, check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guestOf(t)
		if mtu := g.do("pmtu", serverAddr, 1450); mtu != fmt.Sprint(farMTU) {
			t.Errorf("the path's MTU is %s, want %d", mtu, farMTU)
		}
	}},
}

// traces checks that probes of growing TTL meet the router, then reach the server.
func traces(t *testing.T, d driver, kind, last string) {
	t.Helper()
	newWorld(t)
	allowPing(t)
	g, _ := d.guestOf(t)
	var hops []string
	for ttl := 1; ttl <= 5; ttl++ {
		r := g.try("probe", kind, serverAddr, ttl)
		if hops = append(hops, r.Text+r.Err); r.Text == last {
			break
		}
	}
	met := routerAddr.String() + " 11 0"
	if n := len(hops); n < 2 || hops[n-1] != last || hops[n-2] != met {
		t.Errorf("the hops are %q, want %s, then %s", hops, met, last)
	}
}

// The host's loopback.
var hostCases = []conformanceCase{
	{name: "the gateway is the host's loopback", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		talks(t, g, gateway4)
		for _, network := range networks {
			s := sees(t, g, network, at(gateway4, hostTeller(t, network+"4", "127.0.0.1:0")))
			if s.Seen.Addr() != netip.MustParseAddr("127.0.0.1") {
				t.Errorf("%s: the host sees %s, want 127.0.0.1", network, s.Seen)
			}
		}
	}},
	{name: "--disable-host-loopback, TCP", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t, "--disable-host-loopback")
		fails(t, g.try("dial", "tcp", at(gateway4, hostEcho(t, "tcp4", "127.0.0.1:0"))), unix.ENETUNREACH)
		fails(t, g.try("dial", "tcp", at(gateway4, freeTCP(t))), unix.ENETUNREACH)
	}},
	{name: "--disable-host-loopback, UDP", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t, "--disable-host-loopback")
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		came := make(chan struct{})
		go func() {
			if _, _, err := c.ReadFrom(make([]byte, 100)); err == nil {
				close(came)
			}
		}()
		if r := g.try("tell", "udp", at(gateway4, portOf(t, c.LocalAddr()))); r.Err == "" {
			t.Errorf("the answer is %q, want none", r.Text)
		}
		select {
		case <-came:
			t.Error("the datagram has reached the host")
		default:
		}
	}},
	{name: "--disable-host-loopback, ping", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t, "--disable-host-loopback")
		g.do("ping", gateway4, 56)
	}},
	{name: "--disable-host-loopback, DNS", check: func(t *testing.T, d driver) {
		startResolver(t, resolverOne)
		setResolvConf(t, "nameserver "+resolverOne+"\n")
		g, _ := d.guestOf(t, "--disable-host-loopback")
		asks(t, g, resolver, resolverOne)
	}},
	{name: "--disable-host-loopback, the host's own address", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t, "--disable-host-loopback")
		own := hostAddr.String()
		g.do("talk", at(own, hostEcho(t, "tcp4", at(own, 0))), 0, 100000)
		g.do("packet", "udp", at(own, hostEcho(t, "udp4", at(own, 0))), 1000)
	}},
}

// Source addresses of what goes out.
var outboundCases = []conformanceCase{
	{name: "--outbound-addr=ADDRESS", check: func(t *testing.T, d driver) { outbound(t, d, secondAddr.String(), secondAddr) }},
	{name: "--outbound-addr=INTERFACE", check: func(t *testing.T, d driver) { outbound(t, d, altIface, ifaceAddr) }},
	{name: "--outbound-addr, to the gateway", check: func(t *testing.T, d driver) {
		newWorld(t)
		g, _ := d.guestOf(t, "--outbound-addr="+secondAddr.String())
		for _, network := range networks {
			if s := sees(t, g, network, at(gateway4, hostTeller(t, network+"4", "127.0.0.1:0"))); s.Seen.Addr() != secondAddr {
				t.Errorf("%s: the host sees %s, want %s", network, s.Seen, secondAddr)
			}
		}
	}},
	{name: "--outbound-addr, ping", check: func(t *testing.T, d driver) {
		w := newWorld(t)
		allowPing(t)
		g, _ := d.guestOf(t, "--outbound-addr="+secondAddr.String())
		w.server.do("watchpings")
		g.do("ping", serverAddr, 56)
		if got := w.server.do("pinged"); got != secondAddr.String() {
			t.Errorf("the server was pinged by %s, want %s", got, secondAddr)
		}
	}},
	{name: "--outbound-addr6=ADDRESS", check: func(t *testing.T, d driver) { outbound6(t, d, secondAddr6.String(), secondAddr6) }},
	{name: "--outbound-addr6=INTERFACE", known: excuse{bug, "the interface is looked up by the other option's value"}, check: func(t *testing.T, d driver) {
		outbound6(t, d, altIface, ifaceAddr6)
	}},
}

func outbound(t *testing.T, d driver, value string, want netip.Addr) {
	t.Helper()
	newWorld(t)
	g, _ := d.guestOf(t, "--outbound-addr="+value)
	for _, network := range networks {
		if s := sees(t, g, network, at(serverAddr.String(), tellerPort)); s.Seen.Addr() != want {
			t.Errorf("%s: the server sees %s, want %s", network, s.Seen, want)
		}
	}
}

func outbound6(t *testing.T, d driver, value string, want netip.Addr) {
	t.Helper()
	newWorld(t)
	g, _ := d.guest6(t, "--outbound-addr6="+value)
	for _, network := range networks {
		if s := sees(t, g, network, at(serverAddr6.String(), tellerPort)); s.Seen.Addr() != want {
			t.Errorf("%s: the server sees %s, want %s", network, s.Seen, want)
		}
	}
}
