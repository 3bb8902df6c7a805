//go:build e2e

package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// integrityBytes go each way over each connection of TestIntegrity. make integrity
// sets 1 GiB.
func integrityBytes(t *testing.T) int64 {
	t.Helper()
	v := os.Getenv("SLIPWAY_E2E_BYTES")
	if v == "" {
		return 64 << 20
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 1 {
		t.Fatalf("SLIPWAY_E2E_BYTES=%s is no number of bytes", v)
	}
	return n
}

// TestIntegrity: random data goes both ways at once, through the TAP device and
// through published ports by both paths, and arrives as it was sent: at every MTU,
// with and without offloads, over both families, in one connection and in many at once.
func TestIntegrity(t *testing.T) {
	one := swap{flows: 1, bytes: integrityBytes(t)}
	// 64 MiB of each for 1 GiB of the one.
	many := swap{flows: 64, bytes: max(one.bytes/16, 1)}
	for _, mtu := range []int{1500, 9000, 65520} {
		for _, offload := range []string{"auto", "off"} {
			t.Run(fmt.Sprintf("mtu=%d/offload=%s", mtu, offload), func(t *testing.T) {
				options := []string{"--mtu", strconv.Itoa(mtu), "--offload", offload}
				t.Run("outwards", func(t *testing.T) { integrityOutwards(t, one, mtu, offload, options) })
				for _, path := range []string{"tap", "kernel"} {
					t.Run("published by "+path, func(t *testing.T) { integrityPublished(t, one, path, options) })
				}
			})
		}
	}
	for _, mtu := range []int{1500, 65520} {
		t.Run(fmt.Sprintf("mtu=%d/flows=%d", mtu, many.flows), func(t *testing.T) {
			options := []string{"--mtu", strconv.Itoa(mtu)}
			t.Run("outwards", func(t *testing.T) { integrityOutwards(t, many, mtu, "auto", options) })
			for _, path := range []string{"tap", "kernel"} {
				t.Run("published by "+path, func(t *testing.T) { integrityPublished(t, many, path, options) })
			}
			t.Run("drop-in", func(t *testing.T) { integrityDropIn(t, many, mtu) })
		})
	}
}

// swap is what goes each way: so many bytes over each of so many connections at once.
type swap struct {
	flows int
	bytes int64
}

// with swaps data over connections of the host, which open makes, and of a container, which
// takes them at a port of its own or makes them to an address. It returns who the container
// has seen at their other ends.
func (s swap) with(t *testing.T, a *agent, where any, open func() (net.Conn, error)) string {
	t.Helper()
	host := make(chan error, 1)
	go func() { host <- exchangeAll(s.flows, s.bytes, open) }()
	r := a.try("swap", where, s.bytes, s.flows)
	if r.Err != "" {
		t.Errorf("in the container: %s", r.Err)
	}
	if err := <-host; err != nil {
		t.Errorf("on the host: %v", err)
	}
	return r.Text
}

// integrityOutwards has the container connect to the host.
func integrityOutwards(t *testing.T, s swap, mtu int, offload string, options []string) {
	socket := metricsSocket(t)
	a := newAgent(t, append(options, "--host-access", "loopback", "--metrics", "unix:"+socket)...)
	for i, tt := range []struct{ network, host, gateway string }{{"tcp4", "127.0.0.1", gateway4}, {"tcp6", "::1", gateway6}} {
		l := hostListen(t, tt.network, at(tt.host, 0))
		s.with(t, a, at(tt.gateway, portOf(t, l.Addr())), func() (net.Conn, error) {
			if err := l.SetDeadline(time.Now().Add(3 * patience)); err != nil {
				return nil, err
			}
			return l.Accept()
		})
		m := scrape(t, socket)
		if flows := number(t, m, "slipway_tcp_flows_total"); flows != (i+1)*s.flows {
			t.Errorf("%d flows went through the TAP device, want %d", flows, (i+1)*s.flows)
		}
		// Whether the device is the one that the test is about: without offloads a frame
		// carries no more than the MTU, with them several times as much. Many flows send many
		// ACKs.
		const ethernet = 14
		if size := frameSize(t, m); offload == "off" && size > mtu+ethernet {
			t.Errorf("frames of %d bytes on average without offloads", size)
		} else if offload == "auto" && mtu == 1500 && s.flows == 1 && size < 2*mtu {
			t.Errorf("frames of only %d bytes on average with offloads", size)
		}
	}
}

// integrityPublished has the host connect to the container.
func integrityPublished(t *testing.T, s swap, path string, options []string) {
	port, socket := freeTCP(t), metricsSocket(t)
	a := newAgent(t, append(options, "--metrics", "unix:"+socket, "--publish-path", path,
		"-p", at("127.0.0.1", port)+":80", "-p", at("::1", port)+":80")...)
	a.do("listen", "tcp", ":80")
	for i, tt := range []struct{ host, seen string }{{"127.0.0.1", gateway4}, {"::1", gateway6}} {
		// The family shows that an IPv6 client was not served by the way round for servers
		// that listen on IPv4 only.
		open := func() (net.Conn, error) { return dialFrom("tcp", at(tt.host, port), 0) }
		if seen := s.with(t, a, 80, open); seen != tt.seen {
			t.Errorf("clients at %s are shown as %s, want %s", tt.host, seen, tt.seen)
		}
		m := scrape(t, socket)
		for _, p := range []string{"tap", "kernel"} {
			want := 0
			if p == path {
				want = (i + 1) * s.flows
			}
			if got := portConnections(t, m, p); got != want {
				t.Errorf("%d connections of a published port went by %s, want %d", got, p, want)
			}
		}
		want := 0
		if path == "tap" {
			want = (i + 1) * s.flows
		}
		if flows := number(t, m, "slipway_tcp_flows_total"); flows != want {
			t.Errorf("%d flows went through the TAP device, want %d", flows, want)
		}
	}
}

// integrityDropIn has the host connect to a namespace by ports that were forwarded through
// the API of slirp4netns.
func integrityDropIn(t *testing.T, s swap, mtu int) {
	if sandboxOff() {
		t.Skip("slirp4netns has no option to go without the lock-down")
	}
	guest, service := drivers(t)[0].guestOf(t, "--enable-ipv6", "--mtu", strconv.Itoa(mtu))
	guest.do("listen", "tcp", ":80")
	for _, f := range []forward{
		{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: freeTCP(t), GuestPort: 80},
		{Proto: "tcp6", HostAddr: "::1", HostPort: freeTCP(t), GuestAddr: address6(t, guest).String(), GuestPort: 80},
	} {
		service.publish(f)
		s.with(t, guest, 80, func() (net.Conn, error) { return dialFrom("tcp", at(f.HostAddr, f.HostPort), 0) })
	}
}

// portConnections sums the flow counters of one path.
func portConnections(t *testing.T, m map[string]string, path string) int {
	t.Helper()
	sum := 0
	for name := range m {
		if strings.HasPrefix(name, "slipway_port_connections_total{") && strings.Contains(name, `path="`+path+`"`) {
			sum += number(t, m, name)
		}
	}
	return sum
}

// frameSize is the average size of the frames that a container sent.
func frameSize(t *testing.T, m map[string]string) int {
	t.Helper()
	const labels = `{direction="from_container"}`
	return number(t, m, "slipway_link_bytes_total"+labels) / number(t, m, "slipway_link_packets_total"+labels)
}
