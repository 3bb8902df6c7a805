//go:build e2e

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// openEcho connects to addr from local, has one byte come back, and keeps the connection.
func openEcho(t *testing.T, local, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte{'!'}); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPublishedLimit: at --max-published a client waits, the idle connections of one address leave
// places to others, and it is counted and said, once.
func TestPublishedLimit(t *testing.T) {
	const limit, share = 20, 18
	for _, path := range []string{"kernel", "tap"} {
		t.Run(path, func(t *testing.T) {
			socket, published := metricsSocket(t), at("127.0.0.1", freeTCP(t))
			a := newAgent(t, "-p", published+":80", "--publish-path", path, "--metrics", "unix:"+socket, "--max-published", strconv.Itoa(limit))
			a.do("echo", "tcp", ":80")
			served := func(c net.Conn, what string) {
				t.Helper()
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Fatalf("%s is not served: %v", what, err)
				}
			}
			var idle []net.Conn
			for i := range share {
				c := openEcho(t, "127.0.0.1", published)
				served(c, fmt.Sprintf("connection %d of one address", i+1))
				idle = append(idle, c)
			}
			waits := openEcho(t, "127.0.0.1", published)
			eventually(t, patience, "a client waits", func() bool { return number(t, scrape(t, socket), "slipway_port_connections_waiting") == 1 })
			served(openEcho(t, "127.0.0.2", published), "another address")
			idle[0].Close()
			idle[1].Close()
			served(waits, "the client that has waited")

			again := openEcho(t, "127.0.0.1", published)
			served(again, "the place that is left")
			if _, err := openEcho(t, "127.0.0.1", published).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("one that waits in vain: %v, want %v", err, syscall.ECONNRESET)
			}
			m := scrape(t, socket)
			for name, want := range map[string]int{
				`slipway_refused_total{limit="published"}`: 1, "slipway_port_connections_waited_total": 2, "slipway_port_connections_waiting": 0,
			} {
				if got := number(t, m, name); got != want {
					t.Errorf("%s is %d, want %d", name, got, want)
				}
			}
			if s := a.stderr.String(); strings.Count(s, "published ports have as many connections") != 1 ||
				!strings.Contains(s, "limit=20") || !strings.Contains(s, "--max-published") {
				t.Errorf("standard error says %q, want one line with the limit and the flag", s)
			}
		})
	}
}
