package tap

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// HeaderLen is the size in bytes of the header in front of every frame of a
// device opened with IFF_VNET_HDR: struct virtio_net_hdr in
// include/uapi/linux/virtio_net.h, without num_buffers.
const HeaderLen = 10

// Flags of Header, VIRTIO_NET_HDR_F_* in include/uapi/linux/virtio_net.h.
const (
	FlagNeedsCsum = 1 // the checksum at CsumStart+CsumOffset holds only the pseudo-header's sum
	FlagDataValid = 2 // the checksum was verified by whoever handed the frame over
)

// Values of Header.GSOType, VIRTIO_NET_HDR_GSO_* in include/uapi/linux/virtio_net.h.
const (
	GSONone  = 0
	GSOTCPv4 = 1
	GSOUDP   = 3 // UFO: a datagram to be cut into fragments of GSOSize bytes; never asked for, taken by Linux 4.15
	GSOTCPv6 = 4
	GSOUDPL4 = 5 // USO: one header, many datagrams of GSOSize bytes
	GSOECN   = 0x80
)

// ErrHeader is wrapped by every error of ParseHeader.
var ErrHeader = errors.New("bad virtio-net header")

// Header says what the kernel left undone in a frame that it hands over, or what
// it shall finish in one that it is given: checksum and segmentation. Lengths and
// offsets are in bytes; CsumStart counts from the Ethernet header, CsumOffset
// from CsumStart. TAP devices use the host's byte order, which is little endian
// on every architecture that Slipway is built for.
type Header struct {
	Flags, GSOType                         uint8
	HdrLen, GSOSize, CsumStart, CsumOffset uint16
}

// ParseHeader reads the header in front of a frame. frame is everything that
// follows it: a header that points outside of the frame is an error, as is a
// segment size of zero or a segmentation kind that was never asked for.
func ParseHeader(b []byte, frameLen int) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, fmt.Errorf("%w: %d bytes, want %d", ErrHeader, len(b), HeaderLen)
	}
	h := Header{
		Flags:      b[0],
		GSOType:    b[1],
		HdrLen:     binary.LittleEndian.Uint16(b[2:]),
		GSOSize:    binary.LittleEndian.Uint16(b[4:]),
		CsumStart:  binary.LittleEndian.Uint16(b[6:]),
		CsumOffset: binary.LittleEndian.Uint16(b[8:]),
	}
	if h.Flags&FlagNeedsCsum != 0 && int(h.CsumStart)+int(h.CsumOffset)+2 > frameLen {
		return h, fmt.Errorf("%w: checksum at %d+%d, frame of %d bytes", ErrHeader, h.CsumStart, h.CsumOffset, frameLen)
	}
	switch h.GSOType &^ GSOECN {
	case GSONone:
	case GSOTCPv4, GSOTCPv6, GSOUDPL4:
		if h.GSOSize == 0 {
			return h, fmt.Errorf("%w: segment size 0 with segmentation %d", ErrHeader, h.GSOType)
		}
	default:
		return h, fmt.Errorf("%w: segmentation %d", ErrHeader, h.GSOType)
	}
	return h, nil
}

// Put writes the header into the first HeaderLen bytes of b.
func (h Header) Put(b []byte) {
	_ = b[HeaderLen-1]
	b[0] = h.Flags
	b[1] = h.GSOType
	binary.LittleEndian.PutUint16(b[2:], h.HdrLen)
	binary.LittleEndian.PutUint16(b[4:], h.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], h.CsumStart)
	binary.LittleEndian.PutUint16(b[8:], h.CsumOffset)
}

// Trusted reports whether the transport checksum of the frame needs no check in
// software: the kernel of the guest's side made it up to the link (NEEDS_CSUM) or
// verified it (DATA_VALID).
func (h Header) Trusted() bool { return h.Flags&(FlagNeedsCsum|FlagDataValid) != 0 }
