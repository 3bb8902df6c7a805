//go:build e2e

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
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

// TestPublishedBurst: many connections through a published port all carry their bytes: all at
// once, and in a burst. Its rest waits for its turn where the limit of files is low.
func TestPublishedBurst(t *testing.T) {
	const atOnce, parallel, burst = 5000, 2000, 8000
	needsFiles(t, 20000)
	for _, path := range []string{"kernel", "tap"} {
		t.Run(path, func(t *testing.T) {
			published := at("127.0.0.1", freeTCP(t))
			a := newAgent(t, "-p", published+":80", "--publish-path", path)
			a.do("echo", "tcp", ":80")
			t.Run("at once", func(t *testing.T) {
				var opened, all sync.WaitGroup
				opened.Add(atOnce)
				errs := make(chan error, atOnce)
				for i := range atOnce {
					all.Go(func() { errs <- heldEcho(published, i, &opened) })
				}
				all.Wait()
				failed(t, errs, atOnce)
			})
			t.Run("burst", func(t *testing.T) {
				var all sync.WaitGroup
				errs := make(chan error, burst)
				for first := range parallel {
					all.Go(func() {
						for i := first; i < burst; i += parallel {
							errs <- heldEcho(published, i, nil)
						}
					})
				}
				all.Wait()
				failed(t, errs, burst)
			})
		})
	}
}

// burstPatience is how long one of thousands of connections may take.
const burstPatience = 2 * time.Minute

// heldEcho has a number come back from addr. With opened, it closes the connection when all the
// others have had theirs.
func heldEcho(addr string, number int, opened *sync.WaitGroup) error {
	c, err := net.DialTimeout("tcp", addr, burstPatience)
	if err == nil {
		defer c.Close()
		err = c.SetDeadline(time.Now().Add(burstPatience))
	}
	if err == nil {
		_, err = fmt.Fprintf(c, "%08d", number)
	}
	got := make([]byte, 8)
	if err == nil {
		_, err = io.ReadFull(c, got)
	}
	if want := fmt.Sprintf("%08d", number); err == nil && string(got) != want {
		err = fmt.Errorf("%q came back, want %q", got, want)
	}
	if opened != nil {
		opened.Done()
		opened.Wait()
	}
	return err
}

// failed tells how many of n failed, and how the first of them did.
func failed(t *testing.T, errs <-chan error, n int) {
	t.Helper()
	count := 0
	var first error
	for range n {
		if err := <-errs; err != nil {
			if count++; first == nil {
				first = err
			}
		}
	}
	if count > 0 {
		t.Errorf("%d of %d connections failed, the first with: %v", count, n, first)
	}
}
