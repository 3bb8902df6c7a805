package ndp

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/ndp"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	ft "slipway/netstack/internal/frametest"
	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

var (
	routerMAC = net.HardwareAddr{0x52, 0x55, 10, 0, 2, 2}
	router    = netip.MustParseAddr("fe80::2")
	linkLocal = netip.MustParseAddr("fe80::1")
)

// guest keeps what the router sends.
type guest struct {
	mu     sync.Mutex
	frames [][]byte
	fail   error
}

func (g *guest) write(_ tap.Header, frame [][]byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fail != nil {
		return g.fail
	}
	g.frames = append(g.frames, bytes.Join(frame, nil))
	return nil
}

func (g *guest) config() Config {
	return Config{
		Write: g.write, MAC: routerMAC, Address: router, Prefix: netip.MustParsePrefix("fd00::/64"),
		DNS: netip.MustParseAddr("fd00::3"), Resolver: func(context.Context) bool { return true },
	}
}

// advert is an advertisement and where it went.
type advert struct {
	mac []byte
	ip  netip.Addr
	m   *ndp.RouterAdvertisement
}

// take checks the headers of what was sent and returns it.
func (g *guest) take(t testing.TB) []advert {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []advert
	for _, frame := range g.frames {
		p, verdict := wire.Parse(frame)
		if verdict != wire.OK || p.Proto != wire.ProtoICMPv6 || p.TTL != 255 || p.Src != router || !bytes.Equal(frame[6:12], routerMAC) {
			t.Fatalf("no advertisement: % x", frame)
		}
		if wire.Sum(p.Payload, wire.PseudoSum(p.Src, p.Dst, p.Proto, len(p.Payload))) != 0xffff {
			t.Fatalf("wrong checksum: % x", frame)
		}
		m, err := ndp.ParseMessage(p.Payload)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, advert{frame[:6], p.Dst, m.(*ndp.RouterAdvertisement)})
	}
	g.frames = nil
	return out
}

// start runs a router in a bubble; its first advertisement is taken.
func start(t *testing.T, g *guest, cfg Config) *Router {
	t.Helper()
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Start()
	synctest.Wait()
	return r
}

func TestAdvertisement(t *testing.T) {
	for name, resolver := range map[string]bool{"with an IPv6 resolver": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := new(guest)
				cfg := g.config()
				cfg.Resolver = func(context.Context) bool { return resolver }
				defer start(t, g, cfg).Close()
				want := &ndp.RouterAdvertisement{
					CurrentHopLimit: 64, RouterLifetime: 1800 * time.Second,
					Options: []ndp.Option{
						&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: routerMAC},
						&ndp.PrefixInformation{
							PrefixLength: 64, Prefix: netip.MustParseAddr("fd00::"), OnLink: true, AutonomousAddressConfiguration: true,
							ValidLifetime: 86400 * time.Second, PreferredLifetime: 14400 * time.Second,
						},
					},
				}
				if resolver {
					want.Options = append(want.Options, &ndp.RecursiveDNSServer{
						Lifetime: 1800 * time.Second, Servers: []netip.Addr{netip.MustParseAddr("fd00::3")},
					})
				}
				got := g.take(t)
				if len(got) != 1 {
					t.Fatalf("%d advertisements at the start, want 1", len(got))
				}
				if diff := cmp.Diff(want, got[0].m, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
				if got[0].ip != allNodes.addr || !bytes.Equal(got[0].mac, []byte{0x33, 0x33, 0, 0, 0, 1}) {
					t.Errorf("to %s at % x", got[0].ip, got[0].mac)
				}
			})
		})
	}
}

func TestSolicitationIsAnsweredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guest)
		r := start(t, g, g.config())
		defer r.Close()
		g.take(t)
		for _, tt := range []struct {
			from, to netip.Addr
			mac      []byte
		}{
			{linkLocal, linkLocal, []byte(ft.GuestMAC)},
			{ft.Guest6, ft.Guest6, []byte(ft.GuestMAC)},
			{netip.IPv6Unspecified(), allNodes.addr, []byte{0x33, 0x33, 0, 0, 0, 1}},
		} {
			if !r.Input(tap.Header{}, ft.SolicitRouter(tt.from)) {
				t.Fatalf("a solicitation from %s was left to others", tt.from)
			}
			synctest.Wait() // no time goes by
			got := g.take(t)
			if len(got) != 1 || got[0].ip != tt.to || !bytes.Equal(got[0].mac, tt.mac) {
				t.Errorf("solicitation from %s: %+v; want one to %s at % x", tt.from, got, tt.to, tt.mac)
			}
		}
		if diff := cmp.Diff(Stats{Solicitations: 3, Advertisements: 4}, r.Stats()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

func TestIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guest)
		r := start(t, g, g.config())
		g.take(t)
		time.Sleep(2 * initialInterval)
		synctest.Wait()
		if n := len(g.take(t)); n != initialAdverts-1 {
			t.Errorf("%d more advertisements in the first %v, want %d", n, 2*initialInterval, initialAdverts-1)
		}
		const hours = 20
		time.Sleep(hours * time.Hour)
		synctest.Wait()
		n := len(g.take(t))
		if least, most := int(hours*time.Hour/maxInterval), int(hours*time.Hour/minInterval)+1; n < least || n > most {
			t.Errorf("%d advertisements in %d hours, want %d to %d", n, hours, least, most)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(hours * time.Hour)
		if n := len(g.take(t)); n != 0 {
			t.Errorf("%d advertisements after Close", n)
		}
	})
}

// The host's resolvers are looked at once a second at most, and a guest that solicits
// without end fills no memory.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(guest)
		cfg := g.config()
		asked := 0
		stuck := make(chan struct{})
		cfg.Resolver = func(ctx context.Context) bool {
			if asked++; asked == 2 {
				<-ctx.Done() // a host that does not answer
				close(stuck)
				return false
			}
			return true
		}
		r := start(t, g, cfg)
		defer r.Close()
		for range 100 {
			r.Input(tap.Header{}, ft.SolicitRouter(linkLocal))
			synctest.Wait()
		}
		if asked != 1 {
			t.Errorf("asked %d times within a second, want once", asked)
		}
		time.Sleep(resolverTime)
		for range 100 {
			r.Input(tap.Header{}, ft.SolicitRouter(linkLocal))
			synctest.Wait()
		}
		if got := r.Stats().Limited; got != 100-1-maxWaiting {
			t.Errorf("%d solicitations were dropped, want %d", got, 100-1-maxWaiting)
		}
		<-stuck
		synctest.Wait()
		if got := r.Stats().Advertisements; got != 1+100+1+maxWaiting {
			t.Errorf("%d advertisements, want %d", got, 1+100+1+maxWaiting)
		}
		for _, a := range g.take(t)[102:] {
			if len(a.m.Options) != 2 {
				t.Errorf("options %v, want no resolver: the host did not say that it has one", a.m.Options)
			}
		}
	})
}

// malformed are solicitations that break a rule.
func malformed() map[string][]byte {
	const ip, icmp = wire.EthernetLen, wire.EthernetLen + wire.IPv6Len
	change := func(f func(b []byte)) []byte {
		b := ft.SolicitRouter(linkLocal)
		f(b)
		return b
	}
	with := func(src netip.Addr, body ...byte) []byte {
		b := append([]byte{133, 0, 0, 0, 0, 0, 0, 0}, body...)
		sum := ^wire.Sum(b, wire.PseudoSum(src, allRouters, wire.ProtoICMPv6, len(b)))
		b[2], b[3] = byte(sum>>8), byte(sum)
		f := ft.Frame(header.ICMPv6ProtocolNumber, src, allRouters, b)
		f[ip+7] = 255
		return f
	}
	return map[string][]byte{
		"through a router":          change(func(b []byte) { b[ip+7] = 64 }),
		"wrong checksum":            change(func(b []byte) { b[icmp+5]++ }),
		"code":                      change(func(b []byte) { b[icmp+1], b[icmp+3] = 1, b[icmp+3]-1 }),
		"to one who is no router":   change(func(b []byte) { b[ip+39] = 1 }),
		"longer than the frame":     change(func(b []byte) { b[ip+5] = 9 }),
		"option of length nothing":  with(linkLocal, 1, 0, 2, 0, 0, 0, 0, 1),
		"option cut":                with(linkLocal, 1, 2, 2, 0, 0, 0, 0, 1),
		"nobody's Ethernet address": with(netip.IPv6Unspecified(), 1, 1, 2, 0, 0, 0, 0, 1),
	}
}

func TestMalformed(t *testing.T) {
	for name, frame := range malformed() {
		synctest.Test(t, func(t *testing.T) {
			g := new(guest)
			r := start(t, g, g.config())
			defer r.Close()
			g.take(t)
			if !r.Input(tap.Header{}, frame) {
				t.Errorf("%s: it was left to others", name)
			}
			synctest.Wait()
			if got := g.take(t); len(got) != 0 || r.Stats().Malformed != 1 {
				t.Errorf("%s: %d answers, %+v", name, len(got), r.Stats())
			}
		})
	}
}

func TestOthersFrames(t *testing.T) {
	r, err := New(new(guest).config())
	if err != nil {
		t.Fatal(err)
	}
	for name, frame := range map[string][]byte{
		"nothing":      nil,
		"half a frame": make([]byte, 60),
		"a neighbour":  ft.Solicit(ft.Guest6, ft.Gate6),
		"echo":         ft.Echo(ft.Guest6, ft.Gate6),
		"IPv4":         ft.Echo(ft.Guest4, ft.Gate4),
		"TCP":          ft.TCP(ft.Guest6, ft.World6, header.TCPFlagSyn, ""),
	} {
		if r.Input(tap.Header{}, frame) {
			t.Errorf("%s was taken", name)
		}
	}
	if err := r.Close(); err != nil {
		t.Errorf("close of a router that never started: %v", err)
	}
}

func TestWriteFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &guest{fail: errors.New("link down")}
		r := start(t, g, g.config())
		defer r.Close()
		if diff := cmp.Diff(Stats{Write: 1}, r.Stats()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

func TestNew(t *testing.T) {
	for name, f := range map[string]func(*Config){
		"no Write":               func(c *Config) { c.Write = nil },
		"no MAC":                 func(c *Config) { c.MAC = nil },
		"address not link-local": func(c *Config) { c.Address = ft.Gate6 },
		"no prefix":              func(c *Config) { c.Prefix = netip.Prefix{} },
		"prefix of a host":       func(c *Config) { c.Prefix = netip.MustParsePrefix("fd00::1/64") },
		"IPv4 prefix":            func(c *Config) { c.Prefix = netip.MustParsePrefix("10.0.2.0/24") },
	} {
		cfg := new(guest).config()
		f(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// FuzzInput gives the router a frame that the guest's kernel vouches for. What it takes
// for a solicitation obeys the rules that need no checksum.
func FuzzInput(f *testing.F) {
	f.Add(ft.SolicitRouter(linkLocal))
	f.Add(ft.SolicitRouter(netip.IPv6Unspecified()))
	f.Add(ft.Solicit(ft.Guest6, ft.Gate6))
	for _, frame := range malformed() {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		r, err := New(new(guest).config())
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		r.Input(tap.Header{Flags: tap.FlagDataValid}, frame)
		if len(r.waiting) == 0 {
			return
		}
		p, verdict := wire.Parse(frame)
		if verdict != wire.OK || p.TTL != 255 || p.Payload[0] != 133 || p.Payload[1] != 0 {
			t.Fatalf("%d: % x was taken for a solicitation", verdict, frame)
		}
		if to := <-r.waiting; to.addr.IsUnspecified() {
			t.Fatal("an advertisement to nobody")
		}
	})
}
