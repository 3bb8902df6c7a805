package udp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"slipway/netstack/tap"
)

func TestRunsFromGuestLeaveAsOneMessage(t *testing.T) {
	for _, family := range []struct {
		name, server   string
		guest, gateway netip.Addr
	}{{"IPv4", "127.0.0.1:0", guest4, gateway4}, {"IPv6", "[::1]:0", guest6, gateway6}} {
		t.Run(family.name, func(t *testing.T) {
			n := newNAT(t, testConfig(newGuest()))
			server, addr := hostSocket(t, family.server)
			src, dst := at(family.guest, 4000), at(family.gateway, addr.Port())
			payload := bytes.Repeat([]byte("0123456789"), 250) // 2 x 1000 and 500
			f := udpFrame(src, dst, payload)
			h := tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: 1000}
			if !n.Input(h, f) {
				t.Fatal("not taken")
			}
			for _, want := range []int{1000, 1000, 500} {
				if b, _ := read(t, server); len(b) != want {
					t.Fatalf("%d bytes, want %d", len(b), want)
				}
			}
			// And a run that came as single frames.
			for i := range 5 {
				if !n.Input(tap.Header{}, udpFrame(src, dst, bytes.Repeat([]byte{byte(i)}, 100-50*(i/4)))) {
					t.Fatal("not taken")
				}
			}
			n.Flush()
			for i := range 5 {
				b, _ := read(t, server)
				if want := bytes.Repeat([]byte{byte(i)}, 100-50*(i/4)); !bytes.Equal(b, want) {
					t.Fatalf("datagram %d: % x", i, b)
				}
			}
			if s := n.Stats(); s.RxDatagrams != 8 || s.RxBytes != 2950 {
				t.Errorf("%d datagrams, %d bytes, want 8 and 2950", s.RxDatagrams, s.RxBytes)
			}
		})
	}
}

// Datagrams keep their order whatever makes them leave the batch.
func TestOrderIsKept(t *testing.T) {
	n := newNAT(t, testConfig(newGuest()))
	server, addr := hostSocket(t, "127.0.0.1:0")
	src, dst := at(guest4, 4000), at(gateway4, addr.Port())
	sizes := []int{100, 100, 200, 200, 150, 0, 100, 9000, 100, 100, 50, 60}
	for i, size := range sizes {
		if !n.Input(tap.Header{}, udpFrame(src, dst, bytes.Repeat([]byte{byte(i)}, size))) {
			t.Fatal("not taken")
		}
	}
	n.Flush()
	for i, size := range sizes {
		if b, _ := read(t, server); !bytes.Equal(b, bytes.Repeat([]byte{byte(i)}, size)) {
			t.Fatalf("datagram %d: %d bytes, want %d", i, len(b), size)
		}
	}
}

// A path that takes no UDP_SEGMENT message gets single datagrams.
func TestSegmentationFallsBack(t *testing.T) {
	n := newNAT(t, testConfig(newGuest()))
	server, addr := hostSocket(t, "127.0.0.1:0")
	src, dst := at(guest4, 4000), at(gateway4, addr.Port())
	in(t, n, udpFrame(src, dst, []byte("x")))
	read(t, server)
	s := n.session(src)
	// No checksum, no segmentation: udp_send_skb answers EINVAL (net/ipv4/udp.c).
	if err := unix.SetsockoptInt(s.sockets[0].fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
		t.Fatal(err)
	}
	h := tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: 100}
	for range 2 {
		if !n.Input(h, udpFrame(src, dst, make([]byte, 250))) {
			t.Fatal("not taken")
		}
		for _, want := range []int{100, 100, 50} {
			if b, _ := read(t, server); len(b) != want {
				t.Fatalf("%d bytes, want %d", len(b), want)
			}
		}
	}
	if s.out.segmentMax != 99 {
		t.Errorf("segmentMax %d, want 99", s.out.segmentMax)
	}
	if got := n.Stats(); got.RxDatagrams != 7 || got.Dropped != (Dropped{}) {
		t.Errorf("stats %+v", got)
	}
}

func TestRunsFromHostArriveAsOneFrame(t *testing.T) {
	for _, tt := range []struct {
		name    string
		offload tap.Offload
		segment int
		frames  int
	}{
		{"USO", allUSO, 1000, 1},
		{"checksums only", unix.TUN_F_CSUM, 1000, 10},
		{"plain frames", 0, 1000, 10},
		{"segments above the MTU", allUSO, 3000, 1},
		{"segments above the MTU without USO", unix.TUN_F_CSUM, 3000, 10},
		{"segments above the MTU in plain frames", 0, 3000, 30},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest()
			cfg := testConfig(g)
			cfg.Offload = tt.offload
			n := newNAT(t, cfg)
			server, addr := hostSocket(t, "127.0.0.1:0")
			src, dst := at(guest4, 4000), at(gateway4, addr.Port())
			in(t, n, udpFrame(src, dst, []byte("x")))
			_, from := read(t, server)
			raw, err := server.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, tt.segment)
			}); err != nil {
				t.Fatal(err)
			}
			if err != nil {
				t.Skipf("no UDP_SEGMENT here: %v", err)
			}
			payload := make([]byte, 10*tt.segment-7)
			for i := range payload {
				payload[i] = byte(i * 7)
			}
			writeTo(t, server, payload, from)
			var got []byte
			frames, datagrams := 0, 0
			var fragments reassembly
			for len(got) < len(payload) {
				w := g.next(t)
				frames++
				if tt.offload == unix.TUN_F_CSUM && tt.segment > 1472 {
					if w.h.GSOType != tap.GSOUDP || w.h.GSOSize != 1480 {
						t.Fatalf("header %+v of a datagram above the MTU", w.h)
					}
				} else if tt.offload == 0 && tt.segment > 1472 {
					w = fragments.add(t, w)
					if w.frame == nil {
						continue
					}
				}
				for _, d := range w.open(t) {
					datagrams++
					if d.Src != dst || d.Dst != src {
						t.Fatalf("from %v to %v", d.Src, d.Dst)
					}
					got = append(got, d.Payload...)
				}
			}
			if !bytes.Equal(got, payload) {
				t.Error("the payload changed on the way")
			}
			if frames != tt.frames || datagrams != 10 {
				t.Errorf("%d frames with %d datagrams, want %d and 10", frames, datagrams, tt.frames)
			}
		})
	}
}

// reassembly puts the fragments of one packet at a time together.
type reassembly struct{ frame []byte }

func (r *reassembly) add(t *testing.T, w written) written {
	t.Helper()
	f := w.frame
	if len(f)-14 > 1500 {
		t.Fatalf("a packet of %d bytes with an MTU of 1500", len(f)-14)
	}
	if w.h != (tap.Header{}) {
		t.Fatalf("a fragment with header %+v", w.h)
	}
	var off, head int
	var more bool
	if f[12] == 0x08 {
		head = 34
		v := binary.BigEndian.Uint16(f[20:])
		off, more = int(v&0x1fff)*8, v&0x2000 != 0
	} else {
		if f[20] != 44 {
			t.Fatalf("next header %d, want a fragment", f[20])
		}
		head = 62
		v := binary.BigEndian.Uint16(f[56:])
		off, more = int(v&^7), v&1 != 0
	}
	if off == 0 {
		r.frame = append([]byte{}, f[:head]...)
	}
	if have := len(r.frame) - head; have != off {
		t.Fatalf("fragment at %d, have %d bytes", off, have)
	}
	r.frame = append(r.frame, f[head:]...)
	if more {
		return written{}
	}
	whole := r.frame
	r.frame = nil
	if head == 34 {
		binary.BigEndian.PutUint16(whole[16:], uint16(len(whole)-14))
		whole[20], whole[21] = 0, 0
		fixIPv4(whole)
	} else {
		proto := whole[54]
		whole = append(whole[:54:54], whole[62:]...)
		whole[20] = proto
		binary.BigEndian.PutUint16(whole[18:], uint16(len(whole)-54))
	}
	return written{w.h, whole}
}

// A datagram above the MTU is one frame where the kernel takes that, with the size of the fragments
// that it shall become behind the guest, and fragments everywhere else.
func TestLargeDatagrams(t *testing.T) {
	for _, family := range []struct {
		name, server   string
		guest, gateway netip.Addr
		max            int
		segment        uint16
	}{{"IPv4", "127.0.0.1:0", guest4, gateway4, 65507, 1480}, {"IPv6", "[::1]:0", guest6, gateway6, 65487, 1448}} {
		for _, device := range []struct {
			name    string
			offload tap.Offload
			refuses bool
			whole   bool
		}{{"offloads", allUSO, false, true}, {"plain frames", 0, false, false}, {"an old kernel", unix.TUN_F_CSUM, true, false}} {
			t.Run(family.name+" "+device.name, func(t *testing.T) {
				g := newGuest()
				cfg := testConfig(g)
				cfg.Offload = device.offload
				var refused atomic.Int32
				cfg.Write = func(h tap.Header, frame [][]byte) error {
					if device.refuses && h.GSOType == tap.GSOUDP {
						refused.Add(1)
						return unix.EINVAL
					}
					return g.write(h, frame)
				}
				n := newNAT(t, cfg)
				server, addr := hostSocket(t, family.server)
				src, dst := at(family.guest, 4000), at(family.gateway, addr.Port())
				in(t, n, udpFrame(src, dst, []byte("x")))
				_, from := read(t, server)
				for _, size := range []int{1473, 2952, 8192, family.max} {
					payload := make([]byte, size)
					for i := range payload {
						payload[i] = byte(i * 13)
					}
					writeTo(t, server, payload, from)
					var r reassembly
					w := g.next(t)
					if w.h.GSOType == tap.GSOUDP && w.h.GSOSize == family.segment && device.whole {
						w.h.GSOType = tap.GSONone
					} else {
						for w = r.add(t, w); w.frame == nil; {
							w = r.add(t, g.next(t))
						}
					}
					want := []delivered{{dst, src, payload}}
					if diff := cmp.Diff(want, w.open(t), sameAddr); diff != "" {
						t.Errorf("%d bytes (-want +got):\n%s", size, diff)
					}
				}
				if device.refuses && refused.Load() != 1 {
					t.Errorf("the kernel was asked %d times", refused.Load())
				}
				eventually(t, "4 datagrams are counted", func() bool { return n.Stats().TxDatagrams == 4 })
				if s := n.Stats(); s.Dropped != (Dropped{}) {
					t.Errorf("stats %+v", s)
				}
			})
		}
	}
}
