package wire

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"slipway/netstack/internal/frametest"
	"slipway/netstack/tap"
)

// zero is both forms of ones' complement's zero.
func zero(sum uint16) uint16 {
	if sum == 0xffff {
		return 0
	}
	return sum
}

func TestSum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 200 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
			if n%3 == 0 {
				b[i] = 0xff // every addition carries
			}
		}
		if got, want := zero(Sum(b, 0)), zero(frametest.Sum(b)); got != want {
			t.Fatalf("Sum of %d bytes is %#x, want %#x", n, got, want)
		}
		head := n / 2 &^ 1
		if got, want := zero(Sum(b[head:], Sum(b[:head], 0))), zero(frametest.Sum(b)); got != want {
			t.Fatalf("Sum of %d bytes in two parts is %#x, want %#x", n, got, want)
		}
	}
}

func TestUDPChecksumIsNeverZero(t *testing.T) {
	if got := UDPChecksum(0xfffe, []byte{0, 1}); got != 0xffff {
		t.Errorf("checksum %#x, want 0xffff", got)
	}
}

func newLink(t *testing.T, frames *[][]byte) *Link {
	t.Helper()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	l, err := NewLink(func(_ tap.Header, frame [][]byte) error {
		*frames = append(*frames, bytes.Join(frame, nil))
		return nil
	}, mac, mac, 1500)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Errors stay below the size that everybody can receive, and go to the sender of
// what they quote.
func TestError(t *testing.T) {
	for _, tt := range []struct {
		name           string
		from, src, dst netip.Addr
		max            int
	}{
		{"IPv4", netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("192.0.2.1"), 576},
		{"IPv6", netip.MustParseAddr("fd00::2"), netip.MustParseAddr("fd00::100"), netip.MustParseAddr("2001:db8::1"), 1280},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var frames [][]byte
			l := newLink(t, &frames)
			packet := make([]byte, 9000)
			if tt.src.Is4() {
				PutIPv4(packet, tt.src, tt.dst, ProtoUDP, 64, len(packet), 0, 0)
			} else {
				PutIPv6(packet, tt.src, tt.dst, ProtoUDP, 64, len(packet)-IPv6Len)
			}
			var s Scratch
			for _, e := range []Error{Prohibited(tt.from, packet), HostUnreachable(tt.from, packet), TimeExceeded(tt.from, packet)} {
				e.Info = 1400
				if err := l.Error(&s, e); err != nil {
					t.Fatal(err)
				}
				p, v := Parse(frames[len(frames)-1])
				if v != OK || p.Src != tt.from || p.Dst != tt.src || len(p.IP) != tt.max {
					t.Fatalf("verdict %d, from %v to %v, %d bytes, want %d", v, p.Src, p.Dst, len(p.IP), tt.max)
				}
				if p.Payload[0] != e.Type || p.Payload[1] != e.Code || binary.BigEndian.Uint32(p.Payload[4:]) != 1400 {
					t.Errorf("message % x, want type %d code %d", p.Payload[:8], e.Type, e.Code)
				}
				if !bytes.HasPrefix(packet, p.Payload[ICMPLen:]) {
					t.Error("the quote is not the packet")
				}
			}
			// Quotes that are none are left alone.
			for _, quote := range [][]byte{nil, packet[:19], append([]byte{0}, packet[1:]...)} {
				if err := l.Error(&s, Error{From: tt.from, Quote: quote}); err != nil {
					t.Fatal(err)
				}
			}
			if len(frames) != 3 {
				t.Errorf("%d frames, want 3", len(frames))
			}
		})
	}
}

func TestPacketOfTwoFamilies(t *testing.T) {
	var frames [][]byte
	var s Scratch
	if err := newLink(t, &frames).Packet(&s, netip.IPv6Loopback(), netip.MustParseAddr("10.0.2.1"), ProtoUDP, 1, nil, nil); err == nil || len(frames) > 0 {
		t.Errorf("error %v, %d frames", err, len(frames))
	}
}

func TestParseExtendedError(t *testing.T) {
	ee := func(origin, kind, code byte, info uint32, offender ...byte) []byte {
		b := []byte{0, 0, 0, 0, origin, kind, code, 0}
		b = binary.NativeEndian.AppendUint32(b, info)
		return append(append(b, 0, 0, 0, 0), offender...)
	}
	in4 := append(binary.NativeEndian.AppendUint16(nil, unix.AF_INET), 0, 0, 192, 0, 2, 7)
	in6 := append(binary.NativeEndian.AppendUint16(nil, unix.AF_INET6), make([]byte, 26)...)
	copy(in6[8:], []byte{0x20, 1, 0x0d, 0xb8})
	in6[23] = 7
	for _, tt := range []struct {
		name        string
		level, kind int32
		data        []byte
		want        ExtendedError
		ok          bool
	}{
		{"IPv4", unix.SOL_IP, unix.IP_RECVERR, ee(2, 3, 4, 1400, in4...), ExtendedError{false, 3, 4, 1400, netip.MustParseAddr("192.0.2.7")}, true},
		{"IPv6", unix.SOL_IPV6, unix.IPV6_RECVERR, ee(3, 1, 4, 0, in6...), ExtendedError{true, 1, 4, 0, netip.MustParseAddr("2001:db8::7")}, true},
		{"nobody", unix.SOL_IP, unix.IP_RECVERR, ee(2, 3, 3, 0), ExtendedError{Type: 3, Code: 3}, true},
		{"local", unix.SOL_IP, unix.IP_RECVERR, ee(1, 0, 0, 0), ExtendedError{}, false},
		{"short", unix.SOL_IP, unix.IP_RECVERR, ee(2, 3, 3, 0)[:15], ExtendedError{}, false},
		{"another message", unix.SOL_IP, unix.IP_TTL, ee(2, 3, 3, 0), ExtendedError{}, false},
	} {
		got, ok := ParseExtendedError(tt.level, tt.kind, tt.data)
		if ok != tt.ok || got != tt.want {
			t.Errorf("%s: %+v, %t, want %+v, %t", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}
