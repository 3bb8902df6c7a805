package dns

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

const patience = 10 * time.Second

var client = netip.MustParseAddrPort("10.0.2.100:4000")

// query is a message with an id, a flag word, and a body that no resolver would
// understand: it must arrive as it is.
func query(id byte) []byte {
	return append([]byte{id, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "\x03foo\x00 any bytes \xff"...)
}

func answerTo(q []byte, rcode byte) []byte {
	a := bytes.Clone(q)
	a[2] |= flagQR
	a[3] = rcode
	return append(a, "answer"...)
}

// server is a resolver; handle says what it sends back for a message.
type server struct {
	addr netip.AddrPort
	mu   sync.Mutex
	from []netip.AddrPort
	got  [][]byte
}

func newServer(t *testing.T, handle func(s *net.UDPConn, from netip.AddrPort, q []byte)) *server {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 53)})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: c.LocalAddr().(*net.UDPAddr).AddrPort()}
	s.addr = netip.AddrPortFrom(s.addr.Addr().Unmap(), s.addr.Port())
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, maxMessage)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			q := bytes.Clone(b[:n])
			s.mu.Lock()
			s.from, s.got = append(s.from, from), append(s.got, q)
			s.mu.Unlock()
			handle(c, from, q)
		}
	}()
	return s
}

// seen is what was asked so far, and from where.
func (s *server) seen() (queries [][]byte, from []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got), slices.Clone(s.from)
}

func answering(c *net.UDPConn, from netip.AddrPort, q []byte) {
	_, _ = c.WriteToUDPAddrPort(answerTo(q, 0), from)
}

func silent(*net.UDPConn, netip.AddrPort, []byte) {}

// closedPort refuses at once.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func newRelay(t *testing.T, cfg Config, resolvers ...netip.AddrPort) *Relay {
	t.Helper()
	if cfg.Resolvers == nil {
		cfg.Resolvers = func(context.Context) ([]netip.AddrPort, error) { return resolvers, nil }
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// ask waits for the answer to q.
func ask(t *testing.T, r *Relay, q []byte) []byte {
	t.Helper()
	got := make(chan []byte, 1)
	r.Query(client, q, func(a []byte) { got <- a })
	select {
	case a := <-got:
		return a
	case <-time.After(patience):
		t.Fatalf("no answer; %+v", r.Stats())
		return nil
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestQueryIsRelayedByteForByte(t *testing.T) {
	s := newServer(t, answering)
	r := newRelay(t, Config{}, s.addr)
	for id := range byte(3) {
		q := query(id)
		a := ask(t, r, q)
		if diff := cmp.Diff(answerTo(q, 0), a); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
		if got, _ := s.seen(); !bytes.Equal(q[2:], got[id][2:]) {
			t.Errorf("the resolver got % x, want % x but for the id", got[id], q)
		}
	}
	r.Close()
	if diff := cmp.Diff(Stats{Queries: 3, Answers: 3}, r.Stats(), cmpopts.IgnoreFields(Stats{}, "Latency")); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
	measured := uint64(0)
	for _, n := range r.Stats().Latency.Counts {
		measured += n
	}
	if measured != 3 {
		t.Errorf("the latency of %d queries was measured, want 3", measured)
	}
}

func TestFailover(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first func(t *testing.T) netip.AddrPort
		// patience that a test can only pass when it is not waited for
		patience time.Duration
	}{
		{"refuses", closedPort, time.Hour},
		{"silent", func(t *testing.T) netip.AddrPort { return newServer(t, silent).addr }, 500 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first := tt.first(t)
			good := newServer(t, answering)
			r := newRelay(t, Config{Patience: tt.patience, Shun: time.Hour}, first, good.addr)
			q := query(1)
			if a := ask(t, r, q); !bytes.Equal(a, answerTo(q, 0)) {
				t.Errorf("answer % x", a)
			}
			if got := r.Stats().Failovers; got != 1 {
				t.Errorf("%d failovers, want 1", got)
			}
			// The dead one is remembered: it is not asked first again.
			ask(t, r, query(2))
			if got := r.Stats().Failovers; got != 1 {
				t.Errorf("%d failovers after the second query, want 1", got)
			}
		})
	}
}

// A dead resolver gets another chance once Shun is over, and alone it is asked anyway.
func TestShunEnds(t *testing.T) {
	a, b := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")
	r := newRelay(t, Config{Shun: time.Minute}, a, b)
	order := func() []netip.AddrPort {
		t.Helper()
		got, err := r.resolvers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	same := cmp.Comparer(func(x, y netip.AddrPort) bool { return x == y })
	r.note(a, errSilent)
	if diff := cmp.Diff([]netip.AddrPort{b, a}, order(), same); diff != "" {
		t.Errorf("shunned (-want +got):\n%s", diff)
	}
	r.note(b, errSilent)
	if diff := cmp.Diff([]netip.AddrPort{a, b}, order(), same); diff != "" {
		t.Errorf("both shunned (-want +got):\n%s", diff)
	}
	r.note(b, nil)
	r.mu.Lock()
	r.failed[a] = time.Now().Add(-2 * time.Minute)
	r.mu.Unlock()
	if diff := cmp.Diff([]netip.AddrPort{a, b}, order(), same); diff != "" {
		t.Errorf("afterwards (-want +got):\n%s", diff)
	}
}

// A slow resolver is still listened to while the next one is asked.
func TestLateAnswerOfTheFirst(t *testing.T) {
	second := newServer(t, silent)
	first := newServer(t, func(c *net.UDPConn, from netip.AddrPort, q []byte) {
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if got, _ := second.seen(); len(got) > 0 {
				answering(c, from, q)
				return
			}
		}
	})
	r := newRelay(t, Config{Patience: 20 * time.Millisecond, Timeout: time.Hour}, first.addr, second.addr)
	ask(t, r, query(1))
}

func TestServerFailureIsAnAnswer(t *testing.T) {
	first := newServer(t, func(c *net.UDPConn, from netip.AddrPort, q []byte) {
		_, _ = c.WriteToUDPAddrPort(answerTo(q, 2), from)
	})
	second := newServer(t, answering)
	r := newRelay(t, Config{}, first.addr, second.addr)
	if a := ask(t, r, query(1)); a[3] != 2 {
		t.Errorf("rcode %d, want SERVFAIL", a[3])
	}
}

func TestWrongAnswersAreIgnored(t *testing.T) {
	stranger, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	s := newServer(t, func(c *net.UDPConn, from netip.AddrPort, q []byte) {
		forged := answerTo(q, 3)
		_, _ = stranger.WriteToUDPAddrPort(forged, from) // another source
		other := bytes.Clone(forged)
		other[0]++
		_, _ = c.WriteToUDPAddrPort(other, from)      // another id
		_, _ = c.WriteToUDPAddrPort(q, from)          // a query
		_, _ = c.WriteToUDPAddrPort(forged[:5], from) // no message
		answering(c, from, q)
	})
	r := newRelay(t, Config{}, s.addr)
	q := query(9)
	if a := ask(t, r, q); !bytes.Equal(a, answerTo(q, 0)) {
		t.Errorf("answer % x", a)
	}
	if got := r.Stats().Mismatches; got != 3 {
		t.Errorf("%d mismatches, want 3", got)
	}
}

func TestNobodyAnswers(t *testing.T) {
	none := errors.New("no resolv.conf")
	for name, cfg := range map[string]Config{
		"all refuse": {Resolvers: func(context.Context) ([]netip.AddrPort, error) {
			return []netip.AddrPort{closedPort(t), closedPort(t)}, nil
		}},
		"silence": {Timeout: 30 * time.Millisecond, Resolvers: func(context.Context) ([]netip.AddrPort, error) {
			return []netip.AddrPort{newServer(t, silent).addr}, nil
		}},
		"no resolvers": {Resolvers: func(context.Context) ([]netip.AddrPort, error) { return nil, nil }},
		"an error":     {Resolvers: func(context.Context) ([]netip.AddrPort, error) { return nil, none }},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, cfg)
			r.Query(client, query(1), func(a []byte) { t.Errorf("answer % x", a) })
			eventually(t, "the failure is counted", func() bool { return r.Stats().Failures == 1 })
			eventually(t, "the slot is free", func() bool { return r.Stats().InFlight == 0 })
		})
	}
}

func TestQueriesAreBounded(t *testing.T) {
	s := newServer(t, silent)
	before := openFiles(t)
	r := newRelay(t, Config{InFlight: 4, Timeout: time.Hour, Patience: time.Hour}, s.addr)
	for id := range byte(10) {
		r.Query(client, query(id), func([]byte) {})
	}
	if got := r.Stats(); got.InFlight != 4 || got.Refused != 6 {
		t.Errorf("%d in flight, %d refused, want 4 and 6", got.InFlight, got.Refused)
	}
	// Close does not wait for the hour.
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if got := r.Stats(); got.InFlight != 0 {
		t.Errorf("%d in flight after Close", got.InFlight)
	}
	if got := openFiles(t); got != before {
		t.Errorf("%d descriptors, %d before", got, before)
	}
	r.Query(client, query(11), func([]byte) { t.Error("an answer after Close") })
	if got := r.Stats().Refused; got != 7 {
		t.Errorf("%d refused after Close, want 7", got)
	}
}

func TestMalformedQueries(t *testing.T) {
	r := newRelay(t, Config{}, closedPort(t))
	for _, q := range [][]byte{nil, query(1)[:11], answerTo(query(1), 0)} {
		r.Query(client, q, func([]byte) { t.Error("an answer") })
	}
	if got := r.Stats(); got.Malformed != 3 || got.InFlight != 0 {
		t.Errorf("%d malformed, want 3", got.Malformed)
	}
}

func TestDialTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	good := l.Addr().(*net.TCPAddr).AddrPort()
	r := newRelay(t, Config{}, closedPort(t), good)
	c, err := r.DialTCP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := far.Write(query(1)); err != nil {
		t.Fatal(err)
	}
	far.Close()
	if b, err := io.ReadAll(c); err != nil || !bytes.Equal(b, query(1)) {
		t.Errorf("read % x, %v", b, err)
	}
	if got := r.Stats(); got.TCP != 1 || got.Failovers != 1 || got.TCPFailures != 0 {
		t.Errorf("stats %+v", got)
	}
}

func TestDialTCPFails(t *testing.T) {
	r := newRelay(t, Config{}, closedPort(t), closedPort(t))
	if _, err := r.DialTCP(t.Context()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("error %v, want ECONNREFUSED", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r = newRelay(t, Config{}, closedPort(t), closedPort(t))
	if _, err := r.DialTCP(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
	if got := r.Stats(); got.TCPFailures != 1 || got.Failovers != 0 || len(r.failed) != 0 {
		t.Errorf("stats %+v, %d resolvers shunned because of the caller", got, len(r.failed))
	}
}

func TestNewRefuses(t *testing.T) {
	resolvers := func(context.Context) ([]netip.AddrPort, error) { return nil, nil }
	for name, cfg := range map[string]Config{
		"no Resolvers": {},
		"in flight":    {Resolvers: resolvers, InFlight: -1},
		"patience":     {Resolvers: resolvers, Patience: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
