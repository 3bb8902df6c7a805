//go:build e2e

package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
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
// with and without offloads, over both families.
func TestIntegrity(t *testing.T) {
	n := integrityBytes(t)
	for _, mtu := range []int{1500, 9000, 65520} {
		for _, offload := range []string{"auto", "off"} {
			t.Run(fmt.Sprintf("mtu=%d/offload=%s", mtu, offload), func(t *testing.T) {
				options := []string{"--mtu", strconv.Itoa(mtu), "--offload", offload}
				t.Run("outwards", func(t *testing.T) { integrityOutwards(t, n, mtu, offload, options) })
				for _, path := range []string{"tap", "kernel"} {
					t.Run("published by "+path, func(t *testing.T) { integrityPublished(t, n, path, options) })
				}
			})
		}
	}
}

// integrityOutwards has the container connect to the host.
func integrityOutwards(t *testing.T, n int64, mtu int, offload string, options []string) {
	socket := metricsSocket(t)
	a := newAgent(t, append(options, "--host-access", "loopback", "--metrics", "unix:"+socket)...)
	l := hostListen(t, "tcp4", "127.0.0.1:0")
	host := make(chan error, 1)
	go func() {
		c, err := l.AcceptTCP()
		if err != nil {
			host <- err
			return
		}
		defer c.Close()
		host <- exchange(c, n)
	}()
	r := a.try("swap", at(gateway4, portOf(t, l.Addr())), n)
	if r.Err != "" {
		l.Close() // it may never have come
		t.Errorf("in the container: %s", r.Err)
	}
	if err := <-host; err != nil {
		t.Errorf("on the host: %v", err)
	}
	m := scrape(t, socket)
	if flows := number(t, m, "slipway_tcp_flows_total"); flows != 1 {
		t.Errorf("%d flows went through the TAP device, want 1", flows)
	}
	// Whether the device is the one that the test is about: without offloads a frame
	// carries no more than the MTU, with them several times as much.
	const ethernet = 14
	if size := frameSize(t, m); offload == "off" && size > mtu+ethernet {
		t.Errorf("frames of %d bytes on average without offloads", size)
	} else if offload == "auto" && mtu == 1500 && size < 2*mtu {
		t.Errorf("frames of only %d bytes on average with offloads", size)
	}
}

// integrityPublished has the host connect to the container.
func integrityPublished(t *testing.T, n int64, path string, options []string) {
	port, socket := freeTCP(t), metricsSocket(t)
	a := newAgent(t, append(options, "--metrics", "unix:"+socket, "--publish-path", path,
		"-p", at("127.0.0.1", port)+":80", "-p", at("::1", port)+":80")...)
	a.do("listen", "tcp", ":80")
	for i, tt := range []struct{ host, seen string }{{"127.0.0.1", gateway4}, {"::1", gateway6}} {
		host := make(chan error, 1)
		go func() {
			c, err := dialFrom("tcp", at(tt.host, port), 0)
			if err != nil {
				host <- err
				return
			}
			defer c.Close()
			host <- exchange(c.(*net.TCPConn), n)
		}()
		r := a.try("swap", 80, n)
		if r.Err != "" {
			t.Errorf("%s, in the container: %s", tt.host, r.Err)
		}
		if err := <-host; err != nil {
			t.Errorf("%s, on the host: %v", tt.host, err)
		}
		// The family shows that an IPv6 client was not served by the way round for servers
		// that listen on IPv4 only.
		if !strings.Contains(r.Text, tt.seen) {
			t.Errorf("the client at %s is shown as %s, want %s", tt.host, r.Text, tt.seen)
		}
		m := scrape(t, socket)
		for _, p := range []string{"tap", "kernel"} {
			want := 0
			if p == path {
				want = i + 1
			}
			if got := portConnections(t, m, p); got != want {
				t.Errorf("%d connections of a published port went by %s, want %d", got, p, want)
			}
		}
		want := 0
		if path == "tap" {
			want = i + 1
		}
		if flows := number(t, m, "slipway_tcp_flows_total"); flows != want {
			t.Errorf("%d flows went through the TAP device, want %d", flows, want)
		}
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
