package udp

import (
	"fmt"
	"net/netip"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"slipway/netstack/tap"
)

// Nothing is allocated for a datagram of a session that exists.
func TestAllocations(t *testing.T) {
	var to int
	cfg := testConfig(newGuest())
	cfg.Write = func(_ tap.Header, frame [][]byte) error { to += len(frame); return nil }
	server, addr := hostSocket(t, "127.0.0.1:0")
	n := newNAT(t, cfg)
	f := udpFrame(at(guest4, 4000), at(gateway4, addr.Port()), make([]byte, 1200))
	in(t, n, f)
	_, from := read(t, server)
	h := tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: 100}
	fragments := split(udpFrame(at(guest4, 4000), at(gateway4, addr.Port()), make([]byte, 8192)), 1480)
	for name, run := range map[string]func(){
		"one datagram": func() { n.Input(tap.Header{}, f); n.Flush() },
		"a run":        func() { n.Input(h, f) },
		"a batch": func() {
			for range 10 {
				n.Input(tap.Header{}, f)
			}
			n.Flush()
		},
		"fragments": func() {
			for _, f := range fragments {
				n.Input(tap.Header{}, f)
			}
			n.Flush()
		},
	} {
		if got := testing.AllocsPerRun(200, run); got != 0 {
			t.Errorf("%s from the guest: %v allocations", name, got)
		}
	}

	s, raw := stopPoller(t, n)
	reply := make([]byte, 1200)
	name := sockaddrOf(netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", from.Port())))
	to = 0
	if got := testing.AllocsPerRun(200, func() {
		for range 3 {
			if err := raw.send(&name, &control{}, reply, 0); err != nil {
				panic(err)
			}
		}
		n.drain(s)
	}); got != 0 {
		t.Errorf("to the guest: %v allocations", got)
	}
	if to == 0 {
		t.Error("no frame was written")
	}
}

// A round is as many frames as the RX loop gives at most before it flushes. Nobody reads what
// arrives, so its sender drops most of it early.
func BenchmarkFromGuest(b *testing.B) {
	n := newNAT(b, testConfig(newGuest()))
	sink, addr := hostSocket(b, "127.0.0.1:0")
	if err := sink.SetReadBuffer(1); err != nil {
		b.Fatal(err)
	}
	src, dst := at(guest4, 4000), at(gateway4, addr.Port())
	for _, bench := range []struct {
		name    string
		h       tap.Header
		frames  [][]byte
		payload int
	}{
		{"1400", tap.Header{Flags: tap.FlagNeedsCsum}, [][]byte{udpFrame(src, dst, make([]byte, 1400))}, 1400},
		{"run", tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: 1400}, [][]byte{udpFrame(src, dst, make([]byte, 46*1400))}, 46 * 1400},
		{"8192", tap.Header{Flags: tap.FlagNeedsCsum}, [][]byte{udpFrame(src, dst, make([]byte, 8192))}, 8192},
		{"8192 in fragments", tap.Header{}, split(udpFrame(src, dst, make([]byte, 8192)), 1480), 8192},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.SetBytes(int64(bench.payload))
			b.ReportAllocs()
			frames := 0
			for b.Loop() {
				for _, f := range bench.frames {
					n.Input(bench.h, f)
					if frames++; frames%64 == 0 {
						n.Flush()
					}
				}
			}
			n.Flush()
		})
	}
}

func BenchmarkToGuest(b *testing.B) {
	for _, size := range []int{1400, 8192} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			cfg := testConfig(newGuest())
			cfg.Write = func(tap.Header, [][]byte) error { return nil }
			server, addr := hostSocket(b, "127.0.0.1:0")
			n := newNAT(b, cfg)
			in(b, n, udpFrame(at(guest4, 4000), at(gateway4, addr.Port()), []byte("x")))
			_, from := read(b, server)
			s, host := stopPoller(b, n)
			payload := make([]byte, size)
			name := sockaddrOf(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), from.Port()))
			b.SetBytes(int64(size) * budget)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				for range budget {
					if err := host.send(&name, &control{}, payload, 0); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				n.drain(s)
			}
		})
	}
}

// stopPoller ends the poller's goroutine, so that what it does can be done here, and returns the
// first session's socket, with another that writes to it.
func stopPoller(t testing.TB, n *NAT) (s, host *socket) {
	t.Helper()
	n.closed.Store(true)
	n.poller.signal()
	<-n.done
	t.Cleanup(func() { n.closed.Store(false) }) // so that Close does all of its work
	out, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(out) })
	return n.session(at(guest4, 4000)).sockets[0], &socket{fd: out}
}
