//go:build e2e

package main

import (
	"fmt"
	"io"
	"maps"
	"net"
	"os"
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

// resident is the memory of a process in bytes, proc_pid_status(5).
func resident(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("process %d has no memory", pid)
	return 0
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// halves floods in turns with nothing, and returns which part of its throughput the bulk
// flow keeps, and how many frames the floods had. During is called while it is flooded.
func (h *floodHost) halves(guest *agent, kind string, during func()) (kept float64, frames int) {
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
				kept, frames := h.halves(guest, kind, during)
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
	_ = io.EOF
}
