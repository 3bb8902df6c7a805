//go:build e2e

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// deadPeer is an address of the host that answers no SYN: a listener whose backlog is
// full, as a destination behind a firewall that drops.
func deadPeer(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := sa.(*unix.SockaddrInet4).Port
	for range 16 {
		c, err := net.DialTimeout("tcp4", at("127.0.0.1", port), 500*time.Millisecond)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return port
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the backlog does not get full")
	return 0
}

// number is a metric's value.
func number(t *testing.T, m map[string]string, name string) int {
	t.Helper()
	f, err := strconv.ParseFloat(m[name], 64)
	if err != nil {
		t.Fatalf("metric %s is %q", name, m[name])
	}
	return int(f)
}

// needsFiles skips the test where the engine could not have n descriptors.
func needsFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max < n {
		t.Skipf("at most %d open files, %d are needed: ulimit -Hn", limit.Max, n)
	}
}

// TestDeadDestinationsHoldUpNobody: while more than 1,000 dials wait for an answer
// that does not come, others are made.
func TestDeadDestinationsHoldUpNobody(t *testing.T) {
	const wanted = 1000
	needsFiles(t, 2*wanted)
	socket := metricsSocket(t)
	a := newAgent(t, "--host-access", "loopback", "--metrics", "unix:"+socket)
	dead, alive := deadPeer(t), hostEcho(t, "tcp4", "127.0.0.1:0")
	pending := func() int { return number(t, scrape(t, socket), "slipway_tcp_dials_pending") }

	a.do("hold", at(gateway4, dead), wanted+200)
	eventually(t, patience, fmt.Sprintf("%d pending dials", wanted), func() bool { return pending() >= wanted })
	for i := range 20 {
		if r := a.try("talk", at(gateway4, alive), 0, 1000); r.Err != "" || r.Took > atOnce {
			t.Errorf("connection %d to a live address: %q after %s", i, r.Err, r.Took)
		}
	}
	if n := pending(); n < wanted {
		t.Errorf("only %d dials were pending until the end, want %d", n, wanted)
	}
	t.Logf("%d dials were pending", pending())
}

// belongings are what an engine has that must not grow with the connections it has
// served. gVisor's references are counted in package netstack, TestFlowsLeakNothing.
type belongings struct {
	goroutines, descriptors, flows, established, sessions int
	// unexplained is by how many descriptors the engine and /proc disagree.
	unexplained int
}

func belongingsOf(t *testing.T, socket string, engine, slack int) belongings {
	t.Helper()
	m := scrape(t, socket)
	b := belongings{
		goroutines:  number(t, m, "go_goroutines"),
		descriptors: number(t, m, "process_open_fds"),
		flows:       number(t, m, "slipway_tcp_flows_open"),
		established: number(t, m, "slipway_netstack_tcp_current_established"),
	}
	for name := range m {
		if strings.HasPrefix(name, "slipway_port_connections_open{") {
			b.sessions += number(t, m, name)
		}
	}
	// Root can check what the engine says of itself.
	if os.Getuid() == 0 {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", engine))
		if err != nil {
			t.Fatal(err)
		}
		// The connection of the scrape is over by now, or not; others may be about to be.
		b.unexplained = max(0, len(entries)-b.descriptors-slack, b.descriptors-2-slack-len(entries))
	}
	return b
}

// TestConnectionsLeakNothing: thousands of connections, one after the other, on every
// path, and the engine has what it had before.
func TestConnectionsLeakNothing(t *testing.T) {
	// A scrape counts its own goroutines, and has more or fewer of them by chance:
	// prometheus.Registry.Gather starts another worker when the first is not fast enough.
	const scrapers = 8
	for _, tt := range []struct {
		name    string
		n       int
		options []string
		slack   int // sockets made ahead: what is ready at a time varies
		run     func(a *agent, published string, n int) error
	}{
		{"outwards", 10000, []string{"--host-access", "loopback"}, 0, func(a *agent, _ string, n int) error {
			a.do("churn", at(gateway4, hostEcho(a.t, "tcp4", "127.0.0.1:0")), n)
			return nil
		}},
		{"published by tap", 2000, []string{"--publish-path", "tap"}, 0, func(_ *agent, published string, n int) error {
			return churn(published, n)
		}},
		{"published by kernel", 2000, []string{"--publish-path", "kernel"}, 128, func(_ *agent, published string, n int) error {
			return churn(published, n)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			published := at("127.0.0.1", freeTCP(t))
			socket := metricsSocket(t)
			a := newAgent(t, append(tt.options, "--metrics", "unix:"+socket, "-p", published+":80")...)
			engine := child(t, a.Process.Pid, "slipway engine")
			a.do("echo", "tcp", ":80")
			if err := tt.run(a, published, 100); err != nil { // what is made once stays
				t.Fatal(err)
			}
			var before belongings
			quiet := func() bool {
				before = belongingsOf(t, socket, engine, tt.slack)
				return before.flows == 0 && before.established == 0 && before.sessions == 0 && before.unexplained == 0
			}
			eventually(t, patience, "no open flow", quiet)
			if err := tt.run(a, published, tt.n); err != nil {
				t.Fatal(err)
			}
			var now belongings
			deadline := time.Now().Add(patience)
			for {
				now = belongingsOf(t, socket, engine, tt.slack)
				less := now.goroutines <= before.goroutines+scrapers && now.descriptors <= before.descriptors+tt.slack &&
					now.flows == 0 && now.established == 0 && now.sessions == 0 && now.unexplained == 0
				if less {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("after %d connections the engine has %+v, before %+v", tt.n, now, before)
				}
				time.Sleep(10 * time.Millisecond) // between two looks
			}
			t.Logf("before: %+v, after %d connections: %+v", before, tt.n, now)
		})
	}
}

// TestManyAtOnce: many connections at a time do not mix up their bytes.
func TestManyAtOnce(t *testing.T) {
	const n, size = 200, 128 << 10
	for _, offload := range []string{"auto", "off"} {
		t.Run("offload="+offload, func(t *testing.T) {
			t.Run("outwards", func(t *testing.T) {
				a := newAgent(t, "--host-access", "loopback", "--offload", offload)
				a.do("many", at(gateway4, hostEcho(t, "tcp4", "127.0.0.1:0")), n, size)
			})
			for _, path := range []string{"tap", "kernel"} {
				t.Run("published by "+path, func(t *testing.T) {
					published := at("127.0.0.1", freeTCP(t))
					a := newAgent(t, "-p", published+":80", "--publish-path", path, "--offload", offload)
					a.do("echo", "tcp", ":80")
					if err := many(published, n, size); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

// TestLimits: what is beyond a limit is refused and counted, and what is within it
// goes on.
func TestLimits(t *testing.T) {
	const limit, more = 5, 3
	socket := metricsSocket(t)
	a := newAgent(t, "--host-access", "loopback", "--metrics", "unix:"+socket,
		"--max-flows", strconv.Itoa(limit), "--max-pending-dials", strconv.Itoa(limit), "--max-udp-sessions", strconv.Itoa(limit))
	tcp, udp := at(gateway4, hostEcho(t, "tcp4", "127.0.0.1:0")), at(gateway4, hostEcho(t, "udp4", "127.0.0.1:0"))

	a.do("hold", tcp, limit)
	eventually(t, patience, "open flows", func() bool { return number(t, scrape(t, socket), "slipway_tcp_flows_open") == limit })
	for range more {
		if r := a.try("dial", "tcp", tcp); r.Errno != unix.ECONNREFUSED || r.Took > atOnce {
			t.Errorf("a flow beyond the limit: %q after %s, want %v at once", r.Err, r.Took, unix.ECONNREFUSED)
		}
	}
	if s := a.stderr.String(); strings.Count(s, "as many TCP connections as it may") != 1 || !strings.Contains(s, "limit="+strconv.Itoa(limit)) {
		t.Errorf("standard error says %q, want the limit of flows, once", s)
	}
	a.do("spread", udp, limit+more)
	for name, want := range map[string]int{
		"slipway_tcp_flows_open": limit, `slipway_refused_total{limit="flows"}`: more,
		"slipway_udp_sessions_open": limit, "slipway_udp_sessions_evicted_total": more,
	} {
		eventually(t, patience, fmt.Sprintf("%s is %d", name, want), func() bool { return number(t, scrape(t, socket), name) == want })
	}
	a.end()

	a = newAgent(t, "--host-access", "loopback", "--metrics", "unix:"+socket, "--max-pending-dials", strconv.Itoa(limit))
	a.do("hold", at(gateway4, deadPeer(t)), limit+more)
	eventually(t, patience, "refused dials", func() bool {
		m := scrape(t, socket)
		return number(t, m, "slipway_tcp_dials_pending") == limit && number(t, m, `slipway_refused_total{limit="pending_dials"}`) >= more
	})
}
