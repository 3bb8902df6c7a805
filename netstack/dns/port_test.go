package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"slipway/netstack/internal/pace"
)

// A port carries many queries but not all of them, and each has an id of its own whatever the guest's.
func TestPortsChange(t *testing.T) {
	s := newServer(t, answering)
	before := openFiles(t)
	r := newRelay(t, Config{}, s.addr)
	const n = 3*portUses + 1
	for range n {
		q := query(7)
		if a := ask(t, r, q); !bytes.Equal(a, answerTo(q, 0)) {
			t.Fatalf("answer % x", a)
		}
		// The answer comes before the port is back.
		eventually(t, "the query has ended", func() bool { return r.Stats().InFlight == 0 })
	}
	got, from := s.seen()
	ids, ports := map[uint16]bool{}, map[uint16]int{}
	for i, q := range got {
		ids[binary.BigEndian.Uint16(q)] = true
		ports[from[i].Port()]++
	}
	if len(ids) < n-5 { // 97 of 65536: five of a kind once in 10^9 runs
		t.Errorf("%d ids of %d queries", len(ids), n)
	}
	if len(ports) < 4 || len(ports) == n {
		t.Errorf("%d ports for %d queries", len(ports), n)
	}
	for p, uses := range ports {
		if uses > portUses {
			t.Errorf("port %d carried %d queries", p, uses)
		}
	}
	r.Close()
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// What answers the query that had the port before is no answer.
func TestAnswerToTheQueryBefore(t *testing.T) {
	var first []byte
	s := newServer(t, func(c *net.UDPConn, from netip.AddrPort, q []byte) {
		if first == nil {
			first = q
		} else {
			_, _ = c.WriteToUDPAddrPort(answerTo(first, 5), from)
		}
		answering(c, from, q)
	})
	r := newRelay(t, Config{}, s.addr)
	for range 2 {
		q := query(1)
		if a := ask(t, r, q); !bytes.Equal(a, answerTo(q, 0)) {
			t.Errorf("answer % x", a)
		}
		eventually(t, "the query has ended", func() bool { return r.Stats().InFlight == 0 })
	}
	if _, from := s.seen(); from[0] != from[1] {
		t.Fatalf("the queries came from %v and %v", from[0], from[1])
	}
	if got := r.Stats().Mismatches; got != 1 {
		t.Errorf("%d mismatches, want 1", got)
	}
}

func TestIdlePortsEnd(t *testing.T) {
	good, bad := newServer(t, answering).addr, newServer(t, answering).addr
	r := newRelay(t, Config{}, good)
	p := &r.ports
	fill := func(n int, to netip.AddrPort) {
		t.Helper()
		var all []*port
		for range n {
			k, err := p.take(t.Context(), to)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, k)
		}
		for _, k := range all {
			p.give(k)
		}
	}
	idle := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.idle)
	}
	before := openFiles(t)
	fill(maxIdle+10, good)
	if idle() != maxIdle || openFiles(t) != before+maxIdle {
		t.Errorf("%d idle, %d descriptors more, want %d", idle(), openFiles(t)-before, maxIdle)
	}
	p.mu.Lock()
	for _, k := range p.idle[:maxIdle-3] {
		k.made = k.made.Add(-portAge)
	}
	p.mu.Unlock()
	p.closeOld()
	if idle() != 3 {
		t.Errorf("%d idle, want the 3 that are not old", idle())
	}
	fill(2, bad)
	r.note(bad, errSilent)
	if idle() != 3 {
		t.Errorf("%d idle, want the 3 to the resolver that did not fail", idle())
	}
	p.mu.Lock()
	for _, k := range p.idle {
		k.made = k.made.Add(-time.Hour)
	}
	p.mu.Unlock()
	k, err := p.take(t.Context(), good)
	if err != nil || k.uses != 0 {
		t.Errorf("%v, a port that was used %d times", err, k.uses)
	}
	k.Close()
	r.Close()
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// BenchmarkQuery is one query after the other, the resolver's work included.
func BenchmarkQuery(b *testing.B) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 53)})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m := make([]byte, maxMessage)
		for {
			n, from, err := c.ReadFromUDPAddrPort(m)
			if err != nil {
				return
			}
			m[2] |= flagQR
			_, _ = c.WriteToUDPAddrPort(m[:n], from)
		}
	}()
	defer func() { c.Close(); <-ended }()
	at := c.LocalAddr().(*net.UDPAddr).AddrPort()
	r, err := New(Config{Resolvers: func(context.Context) ([]netip.AddrPort, error) { return []netip.AddrPort{at}, nil }})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	r.pace = pace.New(1 << 30)
	q, got := query(1), make(chan []byte)
	b.ReportAllocs()
	for b.Loop() {
		r.Query(client, q, func(a []byte) { got <- a })
		<-got
	}
}
