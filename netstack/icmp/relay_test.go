package icmp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"slipway/netstack/internal/frametest"
	"slipway/netstack/tap"
)

const patience = 10 * time.Second

var (
	gatewayMAC = net.HardwareAddr{0x52, 0x55, 0x0a, 0, 2, 2}
	guestMAC   = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}

	guest4   = netip.MustParseAddr("10.0.2.100")
	guest6   = netip.MustParseAddr("fd00::100")
	gateway4 = netip.MustParseAddr("10.0.2.2")
	gateway6 = netip.MustParseAddr("fd00::2")
	// What the tests' policy maps to the loopback of their namespace.
	world4 = netip.MustParseAddr("192.0.2.1")
	world6 = netip.MustParseAddr("2001:db8::1")
	// What it leaves as it is: the far end of a TUN device in the namespace.
	far = netip.MustParseAddr("198.51.100.2")

	errDenied = errors.New("denied by the test's policy")
)

func route(dst netip.AddrPort) (netip.AddrPort, error) {
	switch dst.Addr() {
	case world4:
		return netip.MustParseAddrPort("127.0.0.1:0"), nil
	case world6:
		return netip.MustParseAddrPort("[::1]:0"), nil
	case far:
		return dst, nil
	case netip.MustParseAddr("192.0.2.66"):
		return netip.AddrPort{}, unix.EHOSTUNREACH
	}
	return netip.AddrPort{}, errDenied
}

func newRelay(t *testing.T, limits Limits) (*Relay, chan []byte) {
	t.Helper()
	frames := make(chan []byte, 1024)
	r, err := New(Config{
		Write: func(_ tap.Header, frame [][]byte) error {
			frames <- bytes.Join(frame, nil)
			return nil
		},
		Route: route, Own: []netip.Addr{gateway4, gateway6}, GatewayMAC: gatewayMAC, GuestMAC: guestMAC, Limits: limits,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, frames
}

func next(t *testing.T, frames chan []byte) []byte {
	t.Helper()
	select {
	case f := <-frames:
		return f
	case <-time.After(patience):
		t.Fatal("no frame came to the guest")
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

var same = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestEcho(t *testing.T) {
	for _, tt := range []struct {
		name       string
		guest, dst netip.Addr
		reply      uint8
		ttl        string
	}{
		{"IPv4", guest4, world4, 0, "/proc/sys/net/ipv4/ip_default_ttl"},
		{"IPv6", guest6, world6, 129, "/proc/sys/net/ipv6/conf/lo/hop_limit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			namespace(t, everybody)
			// The reply's TTL is the remote's, not ours.
			if err := os.WriteFile(tt.ttl, []byte("77"), 0); errors.Is(err, os.ErrNotExist) {
				t.Skipf("no IPv6 here: %v", err)
			} else if err != nil {
				t.Fatal(err)
			}
			r, frames := newRelay(t, Limits{})
			if err := r.Unavailable(); err != nil {
				t.Fatal(err)
			}
			for i, data := range []string{"", "abc", strings.Repeat("x", 1400)} {
				id, seq := uint16(7+i/2), uint16(300+i)
				if !r.Input(tap.Header{}, echo(tt.guest, tt.dst, 64, id, seq, data)) {
					t.Fatal("the request was not taken")
				}
				got := open(t, next(t, frames))
				want := message{tt.dst, tt.guest, 77, tt.reply, 0, id, seq, data}
				if diff := cmp.Diff(want, got, same); diff != "" {
					t.Errorf("reply (-want +got):\n%s", diff)
				}
			}
			eventually(t, "three replies are counted", func() bool { return r.Stats().Replies == 3 })
			want := Stats{Sessions: 2, SessionsTotal: 2, Requests: 3, Replies: 3}
			if diff := cmp.Diff(want, r.Stats()); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if got := r.Stats().Sessions; got != 0 {
				t.Errorf("%d sessions after Close", got)
			}
		})
	}
}

// What comes back from the network goes through a TUN device that the test reads.
func TestWayThere(t *testing.T) {
	namespace(t, everybody)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no /dev/net/tun here: %v", err)
	}
	r, err := unix.NewIfreq("far0")
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
		unix.Close(fd)
		t.Skipf("no TUN device for the test: %v", err)
	}
	tun := os.NewFile(uintptr(fd), "tun")
	defer tun.Close()
	ifreq(t, "far0", unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{198, 51, 100, 1}) })
	ifreq(t, "far0", unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 255, 0}) })
	flags(t, "far0")
	if err := tun.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}

	relay, frames := newRelay(t, Limits{})
	// request sends one and returns the packet on its way.
	request := func(seq uint16) []byte {
		t.Helper()
		if !relay.Input(tap.Header{}, echo(guest4, far, 9, 7, seq, "data")) {
			t.Fatal("the request was not taken")
		}
		b := make([]byte, 2000)
		for {
			n, err := tun.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			if n > 28 && b[0] == 0x45 && b[9] == 1 && b[20] == 8 {
				return b[:n]
			}
		}
	}
	inject := func(src netip.Addr, ttl uint8, m []byte, to []byte) {
		t.Helper()
		p := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, ttl, 1, 0, 0}
		p = append(append(p, src.AsSlice()...), to...)
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(m)))
		binary.BigEndian.PutUint16(p[10:], ^frametest.Sum(p))
		m[2], m[3] = 0, 0
		binary.BigEndian.PutUint16(m[2:], ^frametest.Sum(m))
		if _, err := tun.Write(append(p, m...)); err != nil {
			t.Fatal(err)
		}
	}

	p := request(1)
	if p[8] != 8 {
		t.Errorf("TTL %d on the way, want 8", p[8])
	}
	answer := bytes.Clone(p[20:])
	answer[0] = 0
	other := netip.MustParseAddr("198.51.100.66")
	inject(other, 50, bytes.Clone(answer), p[12:16]) // a forged reply
	inject(far, 51, answer, p[12:16])
	want := message{far, guest4, 51, 0, 0, 7, 1, "data"}
	if diff := cmp.Diff(want, open(t, next(t, frames)), same); diff != "" {
		t.Errorf("reply (-want +got):\n%s", diff)
	}
	eventually(t, "the reply is counted", func() bool { return relay.Stats().Replies == 1 })
	if got := relay.Stats().Stray; got != 1 {
		t.Errorf("%d stray, want 1", got)
	}

	// A router on the way: its address is shown, and the quote has the guest's addresses and id.
	p = request(2)
	inject(other, 60, append([]byte{11, 0, 0, 0, 0, 0, 0, 0}, p[:28]...), p[12:16])
	got := open(t, next(t, frames))
	quote := []byte(got.Data)
	if got.Src != other || got.Type != 11 || len(quote) != 28 {
		t.Fatalf("%+v, want time exceeded from %v", got, other)
	}
	orig := echo(guest4, far, 9, 7, 2, "data")[14:]
	if !bytes.Equal(quote[12:20], orig[12:20]) || quote[9] != 1 || quote[20] != 8 || !bytes.Equal(quote[24:28], orig[24:28]) {
		t.Errorf("quote % x, want % x", quote, orig[:28])
	}

	// The destination itself, and "fragmentation needed" with its MTU. A second request shows that an error leaves
	// the session usable.
	p = request(3)
	inject(far, 60, append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, p[:28]...), p[12:16])
	got = open(t, next(t, frames))
	if got.Src != far || got.Type != 3 || got.Code != 4 || got.Seq != 1280 {
		t.Errorf("%+v, want fragmentation needed, 1280", got)
	}
	eventually(t, "both errors are counted", func() bool { return relay.Stats().Errors == 2 })
	if s := relay.Stats(); s.Requests != 3 || s.Failed != 0 || s.Sessions != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestNotTaken(t *testing.T) {
	r, frames := newRelay(t, Limits{})
	good := echo(guest4, world4, 64, 1, 1, "x")
	change := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	for name, f := range map[string][]byte{
		"own":            echo(guest4, gateway4, 64, 1, 1, "x"),
		"own, IPv6":      echo(guest6, gateway6, 64, 1, 1, "x"),
		"multicast":      echo(guest4, netip.MustParseAddr("224.0.0.1"), 64, 1, 1, "x"),
		"IPv6 multicast": echo(guest6, netip.MustParseAddr("ff02::1"), 64, 1, 1, "x"),
		"broadcast":      echo(guest4, broadcast, 64, 1, 1, "x"),
		"echo reply":     change(func(b []byte) { b[34] = 0 }),
		"UDP": change(func(b []byte) {
			b[23] = 17
			b[24], b[25] = 0, 0
			binary.BigEndian.PutUint16(b[24:], ^frametest.Sum(b[14:34]))
		}),
		"truncated": good[:len(good)-1],
		"short":     good[:37],
		"empty":     nil,
	} {
		if r.Input(tap.Header{}, f) {
			t.Errorf("%s: taken", name)
		}
	}
	if len(frames) != 0 || r.Stats() != (Stats{}) {
		t.Errorf("%d frames, stats %+v", len(frames), r.Stats())
	}
}

func TestDropped(t *testing.T) {
	namespace(t, everybody)
	for _, tt := range []struct {
		name    string
		frame   []byte
		message message // what the guest hears; zero: nothing
		want    Stats
	}{
		{"checksum", func() []byte { f := echo(guest4, world4, 64, 1, 1, "x"); f[len(f)-1]++; return f }(), message{}, Stats{Malformed: 1}},
		{"code", func() []byte { f := echo(guest4, world4, 64, 1, 1, "x"); f[35] = 1; f[36]--; return f }(), message{}, Stats{Malformed: 1}},
		{"IPv6 checksum", func() []byte { f := echo(guest6, world6, 64, 1, 1, "x"); f[len(f)-1]++; return f }(), message{}, Stats{Malformed: 1}},
		{"denied", echo(guest4, netip.MustParseAddr("192.0.2.9"), 64, 1, 1, "x"),
			message{Src: gateway4, Dst: guest4, TTL: 64, Type: 3, Code: 13}, Stats{Denied: 1, Errors: 1}},
		{"denied, IPv6", echo(guest6, netip.MustParseAddr("2001:db8::9"), 64, 1, 1, "x"),
			message{Src: gateway6, Dst: guest6, TTL: 64, Type: 1, Code: 1}, Stats{Denied: 1, Errors: 1}},
		{"no route by policy", echo(guest4, netip.MustParseAddr("192.0.2.66"), 64, 1, 1, "x"),
			message{Src: gateway4, Dst: guest4, TTL: 64, Type: 3, Code: 1}, Stats{Unreachable: 1, Errors: 1}},
		{"no route on the host", echo(guest4, far, 64, 1, 1, "x"),
			message{Src: gateway4, Dst: guest4, TTL: 64, Type: 3, Code: 1},
			Stats{Unreachable: 1, Errors: 1, Sessions: 1, SessionsTotal: 1}},
		{"TTL", echo(guest4, world4, 1, 1, 1, "x"),
			message{Src: gateway4, Dst: guest4, TTL: 64, Type: 11}, Stats{Errors: 1}},
		{"hop limit", echo(guest6, world6, 1, 1, 1, "x"),
			message{Src: gateway6, Dst: guest6, TTL: 64, Type: 3}, Stats{Errors: 1}},
	} {
		r, frames := newRelay(t, Limits{})
		if !r.Input(tap.Header{}, tt.frame) {
			t.Errorf("%s: not taken", tt.name)
			continue
		}
		if diff := cmp.Diff(tt.want, r.Stats()); diff != "" {
			t.Errorf("%s: stats (-want +got):\n%s", tt.name, diff)
		}
		var got message
		if len(frames) > 0 {
			got = open(t, <-frames)
			if !bytes.HasPrefix(tt.frame[14:], []byte(got.Data)) || len(got.Data) < 28 {
				t.Errorf("%s: the quote is not the packet", tt.name)
			}
			got.Data = ""
		}
		if diff := cmp.Diff(tt.message, got, same); diff != "" {
			t.Errorf("%s: message (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestUnavailable(t *testing.T) {
	namespace(t, nobody)
	r, frames := newRelay(t, Limits{})
	err := r.Unavailable()
	if !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), `sudo sysctl -w net.ipv4.ping_group_range="0 2147483647"`) {
		t.Errorf("Unavailable() = %v", err)
	}
	if !r.Input(tap.Header{}, echo(guest4, world4, 64, 1, 1, "x")) {
		t.Error("not taken")
	}
	if got := r.Stats(); got.Unavailable != 1 || got.Sessions != 0 || len(frames) != 0 {
		t.Errorf("stats %+v, %d frames", got, len(frames))
	}
	// The fix works while we run.
	allow(t, everybody)
	if !r.Input(tap.Header{}, echo(guest4, world4, 64, 1, 2, "x")) {
		t.Error("not taken")
	}
	if got := open(t, next(t, frames)); got.Seq != 2 || got.Type != 0 {
		t.Errorf("got %+v, want the reply", got)
	}
	if err := r.Unavailable(); err != nil {
		t.Errorf("Unavailable() = %v after the fix", err)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	namespace(t, everybody)
	r, frames := newRelay(t, Limits{Sessions: 2})
	for id := range uint16(5) {
		if !r.Input(tap.Header{}, echo(guest4, world4, 64, id, 1, "x")) {
			t.Fatal("not taken")
		}
		if got := open(t, next(t, frames)); got.ID != id {
			t.Errorf("id %d, want %d", got.ID, id)
		}
	}
	if s := r.Stats(); s.Sessions != 2 || s.SessionsTotal != 5 || s.SessionsEvicted != 3 {
		t.Errorf("%d open, %d total, %d evicted, want 2, 5, 3", s.Sessions, s.SessionsTotal, s.SessionsEvicted)
	}
}

func TestIdleSessionsEnd(t *testing.T) {
	namespace(t, everybody)
	r, frames := newRelay(t, Limits{Idle: 20 * time.Millisecond})
	if !r.Input(tap.Header{}, echo(guest4, world4, 64, 1, 1, "x")) {
		t.Fatal("not taken")
	}
	next(t, frames)
	eventually(t, "the session ends", func() bool { return r.Stats().Sessions == 0 })
}

func TestRequestsAreLimited(t *testing.T) {
	namespace(t, everybody)
	r, _ := newRelay(t, Limits{Rate: 3})
	for range 100 {
		r.Input(tap.Header{}, echo(guest4, world4, 64, 1, 1, "x"))
	}
	if s := r.Stats(); s.Requests+s.Limited != 100 || s.Requests < 3 || s.Requests > 50 {
		t.Errorf("%d sent, %d held back", s.Requests, s.Limited)
	}
}

func TestAfterClose(t *testing.T) {
	namespace(t, everybody)
	r, _ := newRelay(t, Limits{})
	r.Close()
	if !r.Input(tap.Header{}, echo(guest4, world4, 64, 1, 1, "x")) {
		t.Error("not taken")
	}
	if s := r.Stats(); s.Unavailable != 1 || s.Sessions != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{
		Write: func(tap.Header, [][]byte) error { return nil }, Route: route,
		GatewayMAC: gatewayMAC, GuestMAC: guestMAC,
	}
	for name, change := range map[string]func(*Config){
		"no Write": func(c *Config) { c.Write = nil },
		"no Route": func(c *Config) { c.Route = nil },
		"MAC":      func(c *Config) { c.GatewayMAC = nil },
		"MTU":      func(c *Config) { c.MTU = 67 },
		"limit":    func(c *Config) { c.Limits.Rate = -1 },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzInput(f *testing.F) {
	for _, b := range [][]byte{
		echo(guest4, world4, 64, 1, 1, "x"), echo(guest6, world6, 64, 1, 1, "x"),
		echo(guest4, gateway4, 64, 1, 1, "x"), echo(guest4, world4, 1, 1, 1, ""), nil,
	} {
		f.Add(append(make([]byte, tap.HeaderLen), b...))
	}
	r, err := New(Config{
		Write:      func(tap.Header, [][]byte) error { return nil },
		Route:      func(netip.AddrPort) (netip.AddrPort, error) { return netip.AddrPort{}, errDenied },
		Own:        []netip.Addr{gateway4, gateway6},
		GatewayMAC: gatewayMAC, GuestMAC: guestMAC,
		Limits: Limits{Rate: 1 << 30},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { r.Close() })
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < tap.HeaderLen {
			return
		}
		h, _ := tap.ParseHeader(b, len(b)-tap.HeaderLen)
		before := r.Stats()
		took := r.Input(h, b[tap.HeaderLen:])
		if after := r.Stats(); took == (before == after) {
			t.Fatalf("taken: %t, stats %+v", took, after)
		}
	})
}
