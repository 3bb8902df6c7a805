package icmp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"slipway/netstack/internal/frametest"
)

// echo builds an echo request of the guest.
func echo(src, dst netip.Addr, ttl uint8, id, seq uint16, data string) []byte {
	m := []byte{8, 0, 0, 0}
	m = binary.BigEndian.AppendUint16(m, id)
	m = binary.BigEndian.AppendUint16(m, seq)
	m = append(m, data...)
	f := append(append([]byte{}, gatewayMAC...), guestMAC...)
	if src.Is4() {
		binary.BigEndian.PutUint16(m[2:], ^frametest.Sum(m))
		f = append(f, 0x08, 0, 0x45, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(20+len(m)))
		f = append(f, 0, 0, 0x40, 0, ttl, 1, 0, 0)
		f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(f[24:], ^frametest.Sum(f[14:34]))
	} else {
		m[0] = 128
		binary.BigEndian.PutUint16(m[2:], ^frametest.Sum(frametest.Pseudo(src, dst, 58, len(m)), m))
		f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(len(m)))
		f = append(f, 58, ttl)
		f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	}
	return append(f, m...)
}

// message is an ICMP message that came to the guest.
type message struct {
	Src, Dst   netip.Addr
	TTL        uint8
	Type, Code uint8
	ID, Seq    uint16
	Data       string
}

func open(t *testing.T, f []byte) message {
	t.Helper()
	if !bytes.Equal(f[:6], guestMAC) || !bytes.Equal(f[6:12], gatewayMAC) {
		t.Fatalf("frame from % x to % x", f[6:12], f[:6])
	}
	var m message
	var b []byte
	if f[12] == 0x08 {
		m.Src, m.Dst, m.TTL, b = netip.AddrFrom4([4]byte(f[26:30])), netip.AddrFrom4([4]byte(f[30:34])), f[22], f[34:]
		if s := frametest.Sum(b); s != 0xffff || f[23] != 1 {
			t.Fatalf("protocol %d sums to %#x", f[23], s)
		}
	} else {
		m.Src, m.Dst, m.TTL, b = netip.AddrFrom16([16]byte(f[22:38])), netip.AddrFrom16([16]byte(f[38:54])), f[21], f[54:]
		if s := frametest.Sum(frametest.Pseudo(m.Src, m.Dst, 58, len(b)), b); s != 0xffff || f[20] != 58 {
			t.Fatalf("protocol %d sums to %#x", f[20], s)
		}
	}
	m.Type, m.Code = b[0], b[1]
	m.ID, m.Seq = binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	m.Data = string(b[8:])
	return m
}
