package udp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"slipway/netstack/internal/frametest"
	"slipway/netstack/tap"
)

// sample is a frame with what parse must make of it.
type sample struct {
	name  string
	h     tap.Header
	frame []byte
	want  verdict
}

// edit copies a frame and changes it.
func edit(f []byte, change func(f []byte) []byte) []byte { return change(bytes.Clone(f)) }

// put16 sets 16 bits of a copy, and makes the IPv4 header checksum right.
func put16(f []byte, at int, v uint16) []byte {
	return edit(f, func(f []byte) []byte {
		binary.BigEndian.PutUint16(f[at:], v)
		if f[12] == 0x08 && len(f) >= 34 {
			fixIPv4(f)
		}
		return f
	})
}

func samples() []sample {
	trusted := tap.Header{Flags: tap.FlagNeedsCsum}
	uso := func(segment uint16) tap.Header {
		return tap.Header{Flags: tap.FlagNeedsCsum, GSOType: tap.GSOUDPL4, GSOSize: segment}
	}
	f4 := udpFrame(at(guest4, 4000), netip.MustParseAddrPort("192.0.2.1:53"), []byte("hello!"))
	f6 := udpFrame(at(guest6, 4000), netip.MustParseAddrPort("[2001:db8::1]:53"), []byte("hello!"))
	tcp := ipFrame(guest4, gateway4, 6, make([]byte, 20))
	cut := func(f []byte, n int) []byte { return f[:n:n] }
	return []sample{
		{"IPv4", tap.Header{}, f4, accepted},
		{"IPv6", tap.Header{}, f6, accepted},
		{"IPv4, no payload", tap.Header{}, udpFrame(at(guest4, 1), at(gateway4, 2), nil), accepted},
		{"padding behind IP", tap.Header{}, append(bytes.Clone(f4), 1, 2, 3), accepted},
		{"padding behind UDP", tap.Header{}, put16(put16(f4, 38, 8+5), 40, 0), accepted},
		{"IPv4 without a checksum", tap.Header{}, put16(f4, 40, 0), accepted},
		{"partial checksum", trusted, put16(f4, 40, 0x1234), accepted},
		{"verified checksum", tap.Header{Flags: tap.FlagDataValid}, put16(f6, 60, 0x1234), accepted},
		{"run", uso(2), f4, accepted},
		{"run of one", uso(6), f4, accepted},
		{"run of 128", uso(10), udpFrame(at(guest4, 1), at(gateway4, 2), make([]byte, 1280)), accepted},

		{"empty", tap.Header{}, nil, notOurs},
		{"short Ethernet", tap.Header{}, cut(f4, 13), notOurs},
		{"ARP", tap.Header{}, put16(f4, 12, 0x0806), notOurs},
		{"TCP", tap.Header{}, tcp, notOurs},
		{"broken TCP", tap.Header{}, cut(tcp, len(tcp)-1), notOurs},
		{"short IPv4", tap.Header{}, cut(f4, 33), notOurs},
		{"short IPv6", tap.Header{}, cut(f6, 53), notOurs},
		{"IPv4 that is version 6", tap.Header{}, edit(f4, func(f []byte) []byte { f[14] = 0x65; return f }), notOurs},
		{"IPv6 that is version 4", tap.Header{}, edit(f6, func(f []byte) []byte { f[14] = 0x45; return f }), notOurs},
		{"options", tap.Header{}, edit(f4, func(f []byte) []byte { f[14] = 0x46; return f }), notOurs},
		{"first fragment", tap.Header{}, put16(f4, 20, 0x2000), notOurs},
		{"last fragment", tap.Header{}, put16(f4, 20, 0x0001), notOurs},
		{"IPv6 fragment", tap.Header{}, edit(f6, func(f []byte) []byte { f[20] = 44; return f }), notOurs},

		{"IPv4 length above the frame", tap.Header{}, cut(f4, len(f4)-1), malformed},
		{"IPv4 length below the header", tap.Header{}, put16(f4, 16, 19), malformed},
		{"IPv4 header checksum", tap.Header{}, edit(f4, func(f []byte) []byte { f[24]++; return f }), malformed},
		{"IPv6 length above the frame", tap.Header{}, cut(f6, len(f6)-1), malformed},
		{"no room for UDP", tap.Header{}, put16(f4, 16, 27), malformed},
		{"UDP length below the header", tap.Header{}, put16(f4, 38, 7), malformed},
		{"UDP length above IP", tap.Header{}, put16(f4, 38, 15), malformed},
		{"source port 0", tap.Header{}, put16(f4, 34, 0), malformed},
		{"destination port 0", tap.Header{}, put16(f4, 36, 0), malformed},
		{"run without a partial checksum", tap.Header{GSOType: tap.GSOUDPL4, GSOSize: 2}, f4, malformed},
		{"run of segments of 0 bytes", uso(0), f4, malformed},
		{"run of 129", uso(10), udpFrame(at(guest4, 1), at(gateway4, 2), make([]byte, 1281)), malformed},
		{"TCP segmentation", tap.Header{Flags: 1, GSOType: tap.GSOTCPv4, GSOSize: 2}, f4, malformed},

		{"multicast", tap.Header{}, udpFrame(at(guest4, 5353), netip.MustParseAddrPort("224.0.0.251:5353"), nil), multicast},
		{"IPv6 multicast", tap.Header{}, udpFrame(at(guest6, 5353), netip.MustParseAddrPort("[ff02::fb]:5353"), nil), multicast},
		{"broadcast", tap.Header{}, udpFrame(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), nil), multicast},
		{"Ethernet broadcast", tap.Header{}, edit(f4, func(f []byte) []byte { f[0] = 0xff; return f }), multicast},

		{"IPv4 checksum", tap.Header{}, edit(f4, func(f []byte) []byte { f[len(f)-1]++; return f }), corrupt},
		{"IPv6 checksum", tap.Header{}, edit(f6, func(f []byte) []byte { f[len(f)-1]++; return f }), corrupt},
		{"IPv6 without a checksum", tap.Header{}, put16(f6, 60, 0), corrupt},
	}
}

func TestParse(t *testing.T) {
	for _, tt := range samples() {
		t.Run(tt.name, func(t *testing.T) {
			d, got := parse(tt.h, tt.frame)
			if got != tt.want {
				t.Fatalf("verdict %d, want %d", got, tt.want)
			}
			if got == accepted {
				check(t, tt.h, tt.frame, &d)
			}
		})
	}
	d, _ := parse(tap.Header{Flags: 1, GSOType: tap.GSOUDPL4, GSOSize: 2}, samples()[0].frame)
	if d.segment != 2 || d.count() != 3 || string(d.payload) != "hello!" {
		t.Errorf("a run of %d datagrams of %d bytes: %q", d.count(), d.segment, d.payload)
	}
	if d, _ := parse(tap.Header{}, samples()[4].frame); string(d.payload) != "hello" {
		t.Errorf("payload %q with padding cut off, want %q", d.payload, "hello")
	}
}

// check holds an accepted datagram against the bytes of its frame, read on their own.
func check(t *testing.T, h tap.Header, f []byte, d *datagram) {
	t.Helper()
	head := 34
	if f[12] == 0x86 {
		head = 54
	}
	if len(d.payload) > len(f)-head-8 || !bytes.Equal(d.payload, f[head+8:head+8+len(d.payload)]) {
		t.Fatalf("payload of %d bytes in a frame of %d", len(d.payload), len(f))
	}
	if d.src.Port() != binary.BigEndian.Uint16(f[head:]) || d.dst.Port() != binary.BigEndian.Uint16(f[head+2:]) {
		t.Fatalf("ports of %v and %v", d.src, d.dst)
	}
	alen := 4
	if head == 54 {
		alen = 16
	}
	if !bytes.Equal(d.src.Addr().AsSlice(), f[head-2*alen:head-alen]) || !bytes.Equal(d.dst.Addr().AsSlice(), f[head-alen:head]) {
		t.Fatalf("addresses %v and %v", d.src, d.dst)
	}
	if n := d.count(); n < 1 || n > maxSegmentsFrom || d.segment > 0 && (n-1)*d.segment >= len(d.payload) {
		t.Fatalf("%d datagrams of %d bytes in %d", n, d.segment, len(d.payload))
	}
	if d.dst.Addr().IsMulticast() {
		t.Fatalf("multicast to %v", d.dst)
	}
	if !h.Trusted() && binary.BigEndian.Uint16(f[head+6:]) != 0 {
		n := 8 + len(d.payload)
		if s := frametest.Sum(frametest.Pseudo(d.src.Addr(), d.dst.Addr(), 17, n), f[head:head+n]); s != 0xffff {
			t.Fatalf("accepted with sum %#x", s)
		}
	}
}

// seed adds every sample as a device would hand it over.
func seed(f *testing.F) {
	for _, s := range samples() {
		b := make([]byte, tap.HeaderLen)
		s.h.Put(b)
		f.Add(append(b, s.frame...))
	}
	for _, whole := range [][]byte{datagramTo(gateway4, 100), datagramTo(gateway6, 100)} {
		for _, piece := range split(whole, 48) {
			f.Add(append(make([]byte, tap.HeaderLen), piece...))
		}
	}
}

func FuzzPacket(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < tap.HeaderLen {
			return
		}
		h, _ := tap.ParseHeader(b, len(b)-tap.HeaderLen) // what it refuses must do no harm either
		frame := b[tap.HeaderLen:]
		was := bytes.Clone(frame)
		d, v := parse(h, frame)
		if v == accepted {
			check(t, h, frame, &d)
		}
		if !bytes.Equal(frame, was) {
			t.Fatal("the frame was changed")
		}
	})
}

// FuzzInput has a whole NAT behind it; what it lets out goes to a socket that nobody
// reads, whatever its destination.
func FuzzInput(f *testing.F) {
	seed(f)
	sink4, addr4 := hostSocket(f, "127.0.0.1:0")
	if err := sink4.SetReadBuffer(1); err != nil {
		f.Fatal(err)
	}
	cfg := testConfig(newGuest())
	cfg.Write = func(h tap.Header, frame [][]byte) error {
		n := 0
		for _, b := range frame {
			n += len(b)
		}
		if n > 14+cfg.MTU && h.GSOType == 0 {
			panic("a frame above the MTU")
		}
		return nil
	}
	cfg.Route = func(dst netip.AddrPort) (netip.AddrPort, error) {
		if dst.Port()&1 == 0 {
			return netip.AddrPort{}, errDenied
		}
		return addr4, nil
	}
	cfg.Local = func(src, dst netip.AddrPort, payload []byte, reply func([]byte)) bool {
		if dst.Port() != 53 {
			return false
		}
		reply(payload)
		return true
	}
	cfg.Limits.Sessions = 16
	n := newNAT(f, cfg)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < tap.HeaderLen {
			return
		}
		h, _ := tap.ParseHeader(b, len(b)-tap.HeaderLen)
		before := n.Stats()
		_, v := parse(h, b[tap.HeaderLen:])
		if v == notOurs {
			_, v = parseFragment(b[tap.HeaderLen:])
		}
		took := n.Input(h, b[tap.HeaderLen:])
		n.Flush()
		if took != (v != notOurs) {
			t.Fatalf("taken: %t, verdict %d", took, v)
		}
		after := n.Stats()
		if took && before == after {
			t.Fatal("a datagram was taken and not counted")
		}
		if after.Sessions > 16 {
			t.Fatalf("%d sessions", after.Sessions)
		}
		if k := n.reassembler.waiting.Load(); k > maxPartial {
			t.Fatalf("%d datagrams in pieces", k)
		}
	})
}
