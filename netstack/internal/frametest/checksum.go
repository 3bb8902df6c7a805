package frametest

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// Sum of 16-bit words by the letter of RFC 1071, an odd byte at the end padded: what
// the faster ones are held against. It is 0xffff over what carries its right checksum.
func Sum(parts ...[]byte) uint16 {
	var sum uint32
	b := bytes.Join(parts, nil)
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		sum += w
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// Pseudo is the pseudo-header of n bytes of a transport protocol (RFC 768, RFC 8200
// section 8.1).
func Pseudo(src, dst netip.Addr, proto uint8, n int) []byte {
	b := append(src.AsSlice(), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return append(b, 0, 0, 0, proto)
}
