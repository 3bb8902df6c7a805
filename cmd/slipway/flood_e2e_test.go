//go:build e2e

package main

import (
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// floodGrowth is how much more memory than before an engine and its monitor may have
	// while they are flooded, in bytes.
	floodGrowth = 96 << 20
	// What is measured with and without a flood, in turns.
	calmFor   = 250 * time.Millisecond
	floodFor  = 400 * time.Millisecond
	settleFor = 50 * time.Millisecond
	turns     = 3
)

// floodHost is what a guest finds on a private host while it floods its network.
type floodHost struct {
	tcp, udp int // echo
	bulk     int // takes all it gets
	taken    atomic.Int64
}

func newFloodHost(t *testing.T) *floodHost {
	t.Helper()
	allowPing(t)
	startResolver(t, resolverOne)
	setResolvConf(t, "nameserver "+resolverOne+"\n")
	h := &floodHost{tcp: hostEcho(t, "tcp4", "127.0.0.1:0"), udp: hostEcho(t, "udp4", "127.0.0.1:0")}
	l := hostListen(t, "tcp4", "127.0.0.1:0")
	h.bulk = portOf(t, l.Addr())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go h.take(c)
		}
	}()
	return h
}

func (h *floodHost) take(c net.Conn) {
	defer c.Close()
	b := make([]byte, 1<<20)
	for {
		n, err := c.Read(b)
		h.taken.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// port is where a flood of this kind goes.
func (h *floodHost) port(kind string) int {
	if kind == "udp-ports" {
		return h.udp
	}
	return h.tcp
}

// rate is how many bytes a second the bulk flow carries for a while.
func (h *floodHost) rate(d time.Duration) float64 {
	before, begin := h.taken.Load(), time.Now()
	time.Sleep(d) // what is measured is this while
	return float64(h.taken.Load()-before) / time.Since(begin).Seconds()
}

// compare floods in turns with nothing, and returns which part of its throughput the bulk
// flow keeps, and how many frames the floods had. During is called while it is flooded.
func (h *floodHost) compare(guest *agent, kind string, during func()) (kept float64, frames int) {
	guest.t.Helper()
	var calm, flooded []float64
	for range turns {
		calm = append(calm, h.rate(calmFor))
		guest.do("flood", kind, h.port(kind))
		time.Sleep(settleFor)
		flooded = append(flooded, h.rate(floodFor))
		during()
		n, err := strconv.Atoi(guest.do("calm"))
		if err != nil {
			guest.t.Fatal(err)
		}
		frames += n
		time.Sleep(settleFor)
	}
	guest.t.Logf("%s: %.0f MB/s without, %.0f MB/s with %d frames", kind, median(calm)/1e6, median(flooded)/1e6, frames)
	return median(flooded) / median(calm), frames
}

// works checks that everything works at once.
func (h *floodHost) works(guest *agent, kind string) {
	t := guest.t
	t.Helper()
	for _, command := range [][]any{
		{"talk", at(gateway4, h.tcp), 0, 1000}, {"packet", "udp", at(gateway4, h.udp), 1000}, {"packet", "udp", at(gateway4, h.udp), 10000},
		{"query", "udp", at(resolver, 53)}, {"query", "tcp", at(resolver, 53)},
	} {
		if r := guest.try(command...); r.Err != "" || r.Took > atOnce {
			t.Errorf("after %s: %v: %q after %s", kind, command, r.Err, r.Took)
		}
	}
}

// TestFlood: a guest that floods the drop-in with 10,000 frames a second of any kind
// costs its other flows no more than half of their throughput, and the host no memory to
// speak of; and afterwards everything works at once.
func TestFlood(t *testing.T) {
	if !onPrivateHost(t) {
		return
	}
	h := newFloodHost(t)
	guest, s := drivers(t)[0].guestOf(t, "--enable-ipv6")
	engine := find(t, s.Process.Pid, "an engine", func(cmdline string) bool { return strings.HasSuffix(cmdline, "engine") })
	h.works(guest, "the start")
	guest.do("steady", at(gateway4, h.bulk))
	h.rate(500 * time.Millisecond) // what is made once is made
	for _, kind := range slices.Sorted(maps.Keys(floods)) {
		t.Run(kind, func(t *testing.T) {
			guest.t, s.t = t, t
			before := [2]int{resident(t, s.Process.Pid), resident(t, engine)}
			var most [2]int
			during := func() {
				for i, pid := range []int{s.Process.Pid, engine} {
					most[i] = max(most[i], resident(t, pid)-before[i])
				}
			}
			const attempts = 3
			for i := range attempts {
				kept, frames := h.compare(guest, kind, during)
				if sent := float64(frames) / (turns * floodFor.Seconds()); sent < floodRate/2 {
					t.Logf("only %.0f frames a second were sent", sent)
				}
				if kept >= 0.5 {
					break
				}
				if i == attempts-1 {
					t.Errorf("the other flow keeps %.2f of its throughput, want 0.5", kept)
				}
			}
			h.works(guest, kind)
			if a := s.call(`{"execute":"list_hostfwd"}`); a.Return == nil {
				t.Errorf("the API answers %v", a)
			}
			for i, name := range []string{"monitor", "engine"} {
				t.Logf("%s grew by %d KiB from %d KiB", name, most[i]>>10, before[i]>>10)
				if most[i] > floodGrowth {
					t.Errorf("the %s grew by %d KiB, want %d at most", name, most[i]>>10, floodGrowth>>10)
				}
			}
		})
	}
	if now := child(t, s.Process.Pid, "engine"); now != engine {
		t.Errorf("the engine is process %d, was %d", now, engine)
	}
}

// TestFloodCounters: what is refused of a flood is counted, and nothing is left of it
// afterwards.
func TestFloodCounters(t *testing.T) {
	if !onPrivateHost(t) {
		return
	}
	h := newFloodHost(t)
	guest := newTarget(t)
	socket := metricsSocket(t)
	a := attachTo(t, "--pid", strconv.Itoa(guest.Process.Pid), "--host-access", "loopback", "--metrics", "unix:"+socket,
		"--max-pending-dials", "1000", "--max-udp-sessions", "300")
	engine := child(t, a.Process.Pid, "slipway engine")
	h.works(guest, "the start")
	start := belongingsOf(t, socket, engine, 0)
	// The first are those that last longest.
	for _, tt := range []struct {
		kind string
		want []string
	}{
		{"syn-dead", []string{`slipway_refused_total{limit="pending_dials"}`, `slipway_refused_total{limit="dial_rate"}`, `slipway_tcp_dial_errors_total{reason="given_up"}`}},
		{"syn-closed", []string{`slipway_refused_total{limit="dial_rate"}`, `slipway_tcp_dial_errors_total{reason="refused"}`}},
		{"syn-half", []string{`slipway_drops_total{reason="foreign_source"}`}},
		{"udp-ports", []string{`slipway_refused_total{limit="udp_session_rate"}`, "slipway_udp_sessions_evicted_total"}},
		{"arp", []string{`slipway_drops_total{reason="not_answered"}`}},
		{"ndp", []string{`slipway_drops_total{reason="not_answered"}`}},
		{"fragments", []string{"slipway_fragments_total", `slipway_drops_total{reason="udp_incomplete"}`}},
		{"dhcp", []string{`slipway_drops_total{reason="foreign_source"}`}},
		{"dns", []string{`slipway_refused_total{limit="dns_query_rate"}`}},
		{"echo", []string{`slipway_refused_total{limit="icmp_rate"}`}},
		{"random", []string{`slipway_drops_total{reason="bad_length"}`, `slipway_drops_total{reason="foreign_mac"}`, `slipway_refused_total{limit="neighbour_moves"}`}},
	} {
		before := scrape(t, socket)
		guest.do("flood", tt.kind, h.port(tt.kind))
		time.Sleep(time.Second) // that long it is flooded
		guest.do("calm")
		for _, name := range tt.want {
			// A SYN that waits in vain counts when it is dropped.
			eventually(t, patience, tt.kind+": a rise of "+name, func() bool { return number(t, scrape(t, socket), name) > number(t, before, name) })
		}
		h.works(guest, tt.kind)
	}
	// Dead destinations are given up after 30 s, sessions that nobody answers after 60 s.
	eventually(t, 45*time.Second, "an end of what the floods began", func() bool {
		now := belongingsOf(t, socket, engine, 1000)
		return now.flows == 0 && now.goroutines <= start.goroutines+50 && now.descriptors <= start.descriptors+350
	})
}

// TestAPIBadInput: requests that are malformed, split, or never finished are answered as
// the contract says, and hold nobody up.
func TestAPIBadInput(t *testing.T) {
	if !onPrivateHost(t) {
		return
	}
	h := newFloodHost(t)
	guest, s := drivers(t)[0].guestOf(t, "--enable-ipv6")
	const list, empty = `{"execute":"list_hostfwd"}`, `{"return":{"entries":[]},"entries":[]}`
	bad := func(desc string) string { return `{"error":{"desc":"bad request: ` + desc + `"}}` }
	padded := func(n int) string { return list + strings.Repeat(" ", n-len(list)) }
	dial := func() *net.UnixConn {
		t.Helper()
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: s.api})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, tt := range []struct {
		name   string
		pieces []string
		close  bool // the sending half
		want   string
	}{
		{"nothing", nil, true, bad("cannot parse JSON")},
		{"cut off", []string{`{"execute":"list_host`}, true, bad("cannot parse JSON")},
		{"malformed", []string{"GET / HTTP/1.1\r\n\r\n"}, false, bad("cannot parse JSON")},
		{"zeros", []string{strings.Repeat("\x00", 100)}, false, bad("cannot parse JSON")},
		{"deep", []string{strings.Repeat("[", 4000)}, true, bad("cannot parse JSON")},
		{"no object", []string{"[{}]"}, false, bad("json_object() failed")},
		{"split in two", []string{list[:9], list[9:]}, true, empty},
		{"split in two, open", []string{list[:9], list[9:]}, false, empty},
		{"byte by byte", strings.Split(list, ""), false, empty},
		{"the largest", []string{padded(4095)}, true, empty},
		{"one more", []string{padded(4096)}, true, bad("too large message")},
		{"far more", []string{strings.Repeat("x", 64<<10)}, true, bad("too large message")},
		{"endless text", []string{`{"execute":"` + strings.Repeat("x", 200<<10)}, false, bad("too large message")},
	} {
		c := dial()
		for _, p := range tt.pieces {
			if _, err := io.WriteString(c, p); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			time.Sleep(time.Millisecond) // so that pieces are read apart
		}
		if tt.close {
			if err := c.CloseWrite(); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.name, b, err, tt.want)
		}
	}

	engine := child(t, s.Process.Pid, "engine")
	before := resident(t, engine)
	var silent []*net.UnixConn
	for i := range 200 {
		c := dial()
		if i%2 == 0 {
			if _, err := io.WriteString(c, list[:i%len(list)]); err != nil {
				t.Fatal(err)
			}
		}
		silent = append(silent, c)
	}
	h.works(guest, "200 silent clients of the API")
	begin := time.Now()
	if a := s.call(list); a.text != empty {
		t.Errorf("behind silent clients: %v", a)
	}
	if took := time.Since(begin); took > apiPatience {
		t.Errorf("behind silent clients: answered after %s, want %s at most", took, apiPatience)
	}
	if more := resident(t, engine) - before; more > 16<<20 {
		t.Errorf("the engine grew by %d KiB", more>>10)
	}
	for _, c := range silent {
		c.Close()
	}
	begin = time.Now()
	if a := s.call(list); a.text != empty || time.Since(begin) > atOnce {
		t.Errorf("after they have left: %v after %s", a, time.Since(begin))
	}
}

// apiPatience is how long 200 silent clients of the API may hold up one that is not: each
// has a second while others wait, and 64 are served at a time.
const apiPatience = 6 * time.Second
