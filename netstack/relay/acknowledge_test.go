package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
)

// delayedACKs is how many acknowledgements the kernel has sent for want of anything to send
// them with, TcpExtDelayedACKs in Documentation/networking/snmp_counter.rst.
func delayedACKs(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/net/netstat")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	for i, name := range strings.Fields(lines[0]) {
		if name == "DelayedACKs" {
			n, err := strconv.Atoi(strings.Fields(lines[1])[i])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no DelayedACKs in %q", lines[0])
	return 0
}

// answerInTwo has server answer requests of client, which a relay lies between, and each time
// hold the second half back until the first is acknowledged. It returns how many of the
// acknowledgements the kernel delayed.
func answerInTwo(t *testing.T, client, server net.Conn, requests int) int {
	t.Helper()
	if err := server.(*net.TCPConn).SetNoDelay(false); err != nil {
		t.Fatal(err)
	}
	half := make([]byte, 20_000) // less than a segment on the loopback interface
	served := make(chan error, 1)
	go func() {
		var err error
		for range requests {
			_, err = io.ReadFull(server, make([]byte, 1))
			for range 2 {
				if err == nil {
					_, err = server.Write(half)
				}
			}
		}
		served <- err
	}()
	before := delayedACKs(t)
	for range requests {
		_, err := client.Write([]byte{1})
		if err == nil {
			_, err = io.ReadFull(client, make([]byte, 2*len(half)))
		}
		if err != nil {
			t.Fatal(errors.Join(err, server.Close(), <-served))
		}
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	return delayedACKs(t) - before
}

// TestAcknowledge: a sender of much that waits for an acknowledgement before it sends the end
// gets it at once. Others on the machine may be late meanwhile, but not that often.
func TestAcknowledge(t *testing.T) {
	const requests = 100
	for _, tt := range []struct {
		name  string
		relay func(t *testing.T) (client, server net.Conn)
	}{
		{"from the container", func(t *testing.T) (client, server net.Conn) {
			c, g, _ := spliced(t, nil)
			return c, g
		}},
		{"from the client", func(t *testing.T) (client, server net.Conn) {
			c, g, _ := spliced(t, nil)
			return g, c
		}},
		{"TAP path", func(t *testing.T) (client, server net.Conn) {
			f := newFlow(t.Context(), t)
			return f.guest, f.host
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := tt.relay(t)
			if n := answerInTwo(t, client, server, requests); n > requests/4 {
				t.Errorf("%d acknowledgements of %d came late", n, requests)
			}
		})
	}
}
