package wire

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Sum adds b to a sum of 16-bit words in ones' complement (RFC 1071). The result
// is folded and not inverted; it can start the sum of what follows b when b has an
// even length.
func Sum(b []byte, start uint16) uint16 {
	// The sum of 64-bit words with end-around carry folds to the same 16 bits, and the order of the
	// bytes makes no difference but to the result's own: RFC 1071 section 2(B) and (C).
	acc, carry := uint64(bits.ReverseBytes16(start)), uint64(0)
	for len(b) >= 64 {
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[16:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[24:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[32:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[40:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[48:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[56:]), carry)
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b), carry)
		b = b[8:]
	}
	var tail [8]byte
	copy(tail[:], b)
	acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(tail[:]), carry)
	acc, carry = bits.Add64(acc, 0, carry)
	acc += carry
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return bits.ReverseBytes16(uint16(acc))
}

// PseudoSum is the sum of the pseudo-header that UDP and ICMPv6 put in front of
// their own bytes: RFC 768 for IPv4, RFC 8200 section 8.1 for IPv6. length is that
// of the transport header and its payload.
func PseudoSum(src, dst netip.Addr, proto uint8, length int) uint16 {
	var b [36]byte
	if src.Is4() {
		s, d := src.As4(), dst.As4()
		copy(b[0:], s[:])
		copy(b[4:], d[:])
	} else {
		s, d := src.As16(), dst.As16()
		copy(b[0:], s[:])
		copy(b[16:], d[:])
	}
	// Zeros in between add nothing, so one layout serves both families.
	binary.BigEndian.PutUint16(b[32:], uint16(length))
	b[35] = proto
	return Sum(b[:], 0)
}

// UDPChecksum is the finished checksum of a datagram whose header, with a zero in
// the checksum's place, sums to head together with the pseudo-header. A result of
// zero would mean "none" and is sent as its other form (RFC 768).
func UDPChecksum(head uint16, payload []byte) uint16 {
	if c := ^Sum(payload, head); c != 0 {
		return c
	}
	return 0xffff
}
