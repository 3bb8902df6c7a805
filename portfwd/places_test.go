package portfwd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slipway/netstack/relay"
)

// newCrowd returns places without a Manager, and a port of theirs.
func newCrowd(limit int) (*places, *port) {
	return newPlaces(limit, func(netip.Addr) {}, func() {}), &port{}
}

// takeAll takes as many places as the client gets, at most n.
func takeAll(s *places, p *port, client netip.Addr, n int) int {
	for i := range n {
		w := make(turn)
		if s.take(p, client, w) != relay.Admitted {
			s.leave(client, w)
			return i
		}
	}
	return n
}

func TestPlacesShares(t *testing.T) {
	for _, tc := range []struct {
		limit int
		want  []int // by client, in the order in which they come
	}{
		{1, []int{1, 0}},
		{2, []int{1, 1, 0}},
		{3, []int{2, 1, 0}},
		{10, []int{9, 1, 0}},
		{100, []int{90, 9, 1, 0}},
		{1000, []int{900, 90, 9, 1, 0}},
		{DefaultConnections, []int{7373, 738, 73, 7, 1, 0}},
	} {
		t.Run(fmt.Sprint(tc.limit), func(t *testing.T) {
			s, p := newCrowd(tc.limit)
			client := netip.MustParseAddr("198.51.100.1")
			var got []int
			for range tc.want {
				got = append(got, takeAll(s, p, client, tc.limit))
				client = client.Next()
			}
			if fmt.Sprint(got) != fmt.Sprint(tc.want) {
				t.Errorf("clients got %v places, want %v", got, tc.want)
			}
			for i, n := range got {
				client := netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + i)})
				for range n {
					s.give(p, client)
				}
			}
			if len(s.shares) != 0 || s.open.Load() != 0 || p.open.Load() != 0 {
				t.Errorf("at the end %d clients are known, %d places taken, %d of the port", len(s.shares), s.open.Load(), p.open.Load())
			}
		})
	}
}

// TestPlacesClient: what of an address is one client.
func TestPlacesClient(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		same bool
	}{
		{"198.51.100.1", "198.51.100.2", false},
		{"198.51.100.1", "::ffff:198.51.100.1", true},
		{"2001:db8::1", "2001:db8::ffff:2", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%lo", "fe80::1%eth0", true},
		{"127.0.0.1", "::1", false},
	} {
		if got := clientOf(netip.MustParseAddr(tc.a)) == clientOf(netip.MustParseAddr(tc.b)); got != tc.same {
			t.Errorf("%s and %s are one client: %t, want %t", tc.a, tc.b, got, tc.same)
		}
	}
}

// TestPlacesTurns: who waits gets a place in the order of coming, one address after the other,
// and none waits that may have a place.
func TestPlacesTurns(t *testing.T) {
	s, p := newCrowd(20)
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	if n := takeAll(s, p, a, 20) + takeAll(s, p, b, 20) + takeAll(s, p, c, 20); n != 20 {
		t.Fatalf("%d places are taken, want all 20", n)
	}
	var order []string
	wait := func(name string, client netip.Addr) *named {
		t.Helper()
		w := &named{name, &order}
		if got := s.take(p, client, w); got != relay.Waiting {
			t.Fatalf("%s: %v, want that it waits", name, got)
		}
		return w
	}
	wait("a1", a)
	gone := wait("a2", a)
	wait("a3", a)
	wait("b1", b)
	if !s.leave(a, gone) || s.leave(a, gone) {
		t.Error("a client leaves once, and no more often")
	}
	if waiting, waited := s.numbers(); waiting != 3 || waited != 3+4 { // and three of takeAll
		t.Errorf("%d wait, %d have: want 3 and 7", waiting, waited)
	}
	for range 12 {
		s.give(p, a)
	}
	if got := strings.Join(order, " "); got != "a1 b1 a3" && got != "b1 a1 a3" {
		t.Errorf("places went to %q", got)
	}
	if waiting, _ := s.numbers(); waiting != 0 || len(s.turns) != 0 {
		t.Errorf("%d wait, of %d addresses", waiting, len(s.turns))
	}
}

type named struct {
	name  string
	order *[]string
}

func (n *named) Admitted() { *n.order = append(*n.order, n.name) }

// TestPlacesRoom: there is no endless room for those who wait, and one address leaves some of it.
func TestPlacesRoom(t *testing.T) {
	s, p := newCrowd(10)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	takeAll(s, p, a, 9)
	waiting := 0
	for ; s.take(p, a, make(turn)) == relay.Waiting; waiting++ {
	}
	if waiting < leastRoom*9/10 || waiting >= leastRoom {
		t.Errorf("%d of one address wait, where %d have room", waiting, leastRoom)
	}
	if got := s.take(p, b, make(turn)); got != relay.Admitted {
		t.Fatalf("another address: %v, want the last place", got)
	}
	if got := s.take(p, b, make(turn)); got != relay.Waiting {
		t.Errorf("another address: %v, want that it waits", got)
	}
}

// TestPlacesAtOnce: whatever happens at once, no place is lost, and none is given twice.
func TestPlacesAtOnce(t *testing.T) {
	const limit, clients, rounds = 20, 100, 200
	s, p := newCrowd(limit)
	var wg sync.WaitGroup
	for i := range clients {
		client := netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 4)})
		wg.Go(func() {
			for round := range rounds {
				w := make(turn)
				switch s.take(p, client, w) {
				case relay.Refused:
					continue
				case relay.Waiting:
					if (i+round)%2 == 0 && s.leave(client, w) {
						continue
					}
					<-w
				case relay.Admitted:
				}
				if n := s.open.Load(); n > limit {
					t.Errorf("%d of %d places are taken", n, limit)
				}
				s.give(p, client)
			}
		})
	}
	wg.Wait()
	if waiting, _ := s.numbers(); waiting != 0 || s.open.Load() != 0 || p.open.Load() != 0 || len(s.shares) != 0 || len(s.turns) != 0 {
		t.Errorf("at the end %d wait, %d places are taken, %d of the port, %d clients are known, %d in turn",
			waiting, s.open.Load(), p.open.Load(), len(s.shares), len(s.turns))
	}
}

// said is a log that several goroutines write to.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// crowded publishes a port that answers each client with a byte and holds it, by each path, with
// room for so many connections, and gives f the Manager and a way to connect from an address.
func crowded(t *testing.T, limits Limits, f func(t *testing.T, m *Manager, log *said, dial func(from string) *net.TCPConn)) {
	t.Run("kernel", func(t *testing.T) {
		log := &said{}
		limits.Sockets = 8
		w := newWorld(t, func(c *Config) {
			c.Limits, c.Log, c.Raise = limits, slog.New(slog.NewTextHandler(log, nil)), "raise it"
		})
		serve(t, w.guest.listen(t, "10.0.2.100:80")[0], func(c *net.TCPConn) {
			_, _ = c.Write([]byte("!"))
			_, _ = io.Copy(io.Discard, c)
		})
		f(t, w.m, log, func(from string) *net.TCPConn { return w.host.dial(t, from+":0", "127.0.0.1:8080") })
	})
	t.Run("tap", func(t *testing.T) {
		log := &said{}
		m := New(Config{
			Stack: &fakeStack{}, Guest4: guest4, Gateway4: gateway4, Prefixes: prefixes,
			Limits: limits, Log: slog.New(slog.NewTextHandler(log, nil)), Raise: "raise it",
		})
		t.Cleanup(func() { m.Close() })
		to := publish(t, m, "127.0.0.1:0")
		f(t, m, log, func(from string) *net.TCPConn {
			c, err := dialTCP(from+":0", to)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			if _, err := c.Write([]byte("!")); err != nil { // which comes back
				t.Fatal(err)
			}
			return c
		})
	})
}

func mustServe(t *testing.T, c *net.TCPConn, what string) {
	t.Helper()
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatalf("%s is not served: %v", what, err)
	}
}

// TestPortShares: the idle connections of one address leave a tenth of the places to others, and
// a further one of it waits until there is a place for it.
func TestPortShares(t *testing.T) {
	crowded(t, Limits{Connections: 10}, func(t *testing.T, m *Manager, log *said, dial func(string) *net.TCPConn) {
		var held []*net.TCPConn
		for i := range 9 {
			c := dial("127.0.0.1")
			mustServe(t, c, fmt.Sprint("connection ", i, " of one address"))
			held = append(held, c)
		}
		if s := log.String(); s != "" {
			t.Errorf("said within the limit: %s", s)
		}
		waits := dial("127.0.0.1")
		eventually(t, "it waits", func() bool { return m.Queue() == Queue{Waiting: 1, Waited: 1} })
		mustServe(t, dial("127.0.0.2"), "another address")
		if s := m.List()[0].Stats; s.Open != 10 || s.Limited != 0 {
			t.Errorf("stats: %+v", s)
		}
		for _, c := range held[:2] { // of one, the last place comes of it, which is not for this address
			c.Close()
		}
		mustServe(t, waits, "the one that has waited")
		if got := (Queue{Waited: 1}); m.Queue() != got {
			t.Errorf("queue: %+v, want %+v", m.Queue(), got)
		}
		if s := log.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "limit=10") ||
			!strings.Contains(s, "client=127.0.0.1") || !strings.Contains(s, `fix="raise it"`) {
			t.Errorf("said: %s; want one line", s)
		}
	})
}

// TestPortFull: while every place is taken, clients stay in the backlog.
func TestPortFull(t *testing.T) {
	crowded(t, Limits{Connections: 2}, func(t *testing.T, m *Manager, log *said, dial func(string) *net.TCPConn) {
		first := dial("127.0.0.1")
		mustServe(t, first, "the first")
		mustServe(t, dial("127.0.0.2"), "the second")
		third := dial("127.0.0.3")
		eventually(t, "the limit is spoken of", func() bool { return strings.Count(log.String(), "\n") == 1 })
		if got := m.Queue(); got != (Queue{}) {
			t.Errorf("queue: %+v, want that all is the backlog's", got)
		}
		first.Close()
		mustServe(t, third, "the third")
		if s := m.List()[0].Stats; s.Flows != 3 || s.Limited != 0 {
			t.Errorf("stats: %+v", s)
		}
	})
}

// TestPortWaitsInVain: a client that gets no place in time is reset, and counted.
func TestPortWaitsInVain(t *testing.T) {
	crowded(t, Limits{Connections: 10, Connect: 100 * time.Millisecond}, func(t *testing.T, m *Manager, _ *said, dial func(string) *net.TCPConn) {
		for range 9 {
			mustServe(t, dial("127.0.0.1"), "one of nine")
		}
		_, err := dial("127.0.0.1").Read(make([]byte, 1))
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("waited in vain: %v, want ECONNRESET", err)
		}
		eventually(t, "it is counted", func() bool { return m.Queue() == Queue{Waited: 1, Reset: 1} })
		if s := m.List()[0].Stats; s.Open != 9 || s.Limited != 1 || s.TimedOut != 0 {
			t.Errorf("stats: %+v", s)
		}
		mustServe(t, dial("127.0.0.2"), "another address")
	})
}

// TestPortRemovedWhileFull: what waits for a place at a port that is removed ends.
func TestPortRemovedWhileFull(t *testing.T) {
	m := New(Config{Stack: &fakeStack{}, Guest4: guest4, Gateway4: gateway4, Limits: Limits{Connections: 1}})
	defer m.Close()
	echo(t, dialHere(t, publish(t, m, "127.0.0.1:0")), "the only one")
	check := checkLeaks(t)
	publish(t, m, "127.0.0.1:0")
	if err := m.Remove(2); err != nil {
		t.Fatal(err)
	}
	check()
}
