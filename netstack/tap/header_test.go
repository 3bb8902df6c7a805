package tap

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// headerCases reach every branch of ParseHeader.
var headerCases = []struct {
	name  string
	b     []byte
	frame int // length
	want  Header
	ok    bool
}{
	{"nothing", nil, 0, Header{}, false},
	{"one byte short", make([]byte, HeaderLen-1), 60, Header{}, false},
	{"zero", make([]byte, HeaderLen), 0, Header{}, true},
	{"more than a header", append(make([]byte, HeaderLen), 0xff, 0xff), 60, Header{}, true},
	{"byte order", []byte{0, 0, 1, 2, 3, 4, 5, 6, 7, 8}, 60, Header{HdrLen: 0x201, GSOSize: 0x403, CsumStart: 0x605, CsumOffset: 0x807}, true},
	{"verified", []byte{FlagDataValid, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, 0, Header{Flags: FlagDataValid, CsumStart: 0xffff, CsumOffset: 0xffff}, true},
	{"checksum at the very end", []byte{FlagNeedsCsum, 0, 0, 0, 0, 0, 34, 0, 16, 0}, 52, Header{Flags: FlagNeedsCsum, CsumStart: 34, CsumOffset: 16}, true},
	{"checksum half outside", []byte{FlagNeedsCsum, 0, 0, 0, 0, 0, 34, 0, 16, 0}, 51, Header{}, false},
	{"checksum offsets that overflow 16 bits", []byte{FlagNeedsCsum, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 0}, 60, Header{}, false},
	{"TCPv4", []byte{FlagNeedsCsum, GSOTCPv4, 54, 0, 0xb4, 5, 34, 0, 16, 0}, 9000, Header{Flags: FlagNeedsCsum, GSOType: GSOTCPv4, HdrLen: 54, GSOSize: 1460, CsumStart: 34, CsumOffset: 16}, true},
	{"TCPv4 with ECN", []byte{0, GSOTCPv4 | GSOECN, 0, 0, 1, 0, 0, 0, 0, 0}, 0, Header{GSOType: GSOTCPv4 | GSOECN, GSOSize: 1}, true},
	{"TCPv6", []byte{0, GSOTCPv6, 0, 0, 1, 0, 0, 0, 0, 0}, 0, Header{GSOType: GSOTCPv6, GSOSize: 1}, true},
	{"UDP", []byte{0, GSOUDPL4, 0, 0, 1, 0, 0, 0, 0, 0}, 0, Header{GSOType: GSOUDPL4, GSOSize: 1}, true},
	{"ECN alone", []byte{0, GSOECN, 0, 0, 0, 0, 0, 0, 0, 0}, 0, Header{GSOType: GSOECN}, true},
	{"segments of nothing", []byte{0, GSOTCPv4, 0, 0, 0, 0, 0, 0, 0, 0}, 60, Header{}, false},
	{"segments of nothing, UDP", []byte{0, GSOUDPL4, 0, 0, 0, 0, 0, 0, 0, 0}, 60, Header{}, false},
	{"UFO", []byte{0, GSOUDP, 0, 0, 1, 0, 0, 0, 0, 0}, 60, Header{}, false},
	{"no such segmentation", []byte{0, 2, 0, 0, 1, 0, 0, 0, 0, 0}, 60, Header{}, false},
	{"no such segmentation with ECN", []byte{0, 0x7f | GSOECN, 0, 0, 1, 0, 0, 0, 0, 0}, 60, Header{}, false},
}

func TestParseHeader(t *testing.T) {
	for _, tt := range headerCases {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseHeader(tt.b, tt.frame)
			if !tt.ok {
				if !errors.Is(err, ErrHeader) {
					t.Errorf("error %v, want ErrHeader", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestHeaderPut(t *testing.T) {
	for _, tt := range headerCases {
		if !tt.ok {
			continue
		}
		got := bytes.Repeat([]byte{0xaa}, HeaderLen+1)
		tt.want.Put(got)
		if want := append(bytes.Clone(tt.b[:HeaderLen]), 0xaa); !bytes.Equal(got, want) {
			t.Errorf("%s: wrote % x, want % x", tt.name, got, want)
		}
	}
}

func TestHeaderTrusted(t *testing.T) {
	for flags, want := range map[uint8]bool{0: false, FlagNeedsCsum: true, FlagDataValid: true, FlagNeedsCsum | FlagDataValid: true, 4: false, 0xfc: false} {
		if got := (Header{Flags: flags}).Trusted(); got != want {
			t.Errorf("flags %#x: trusted %v, want %v", flags, got, want)
		}
	}
}

// What ParseHeader accepts is safe to act upon, and written back as it was.
func FuzzHeader(f *testing.F) {
	for _, tt := range headerCases {
		f.Add(tt.b, tt.frame)
	}
	f.Fuzz(func(t *testing.T, b []byte, frameLen int) {
		if frameLen < 0 || frameLen > 1<<17 {
			return // no frame is of that length
		}
		h, err := ParseHeader(b, frameLen)
		if err != nil {
			if !errors.Is(err, ErrHeader) {
				t.Fatalf("error %v, want ErrHeader", err)
			}
			return
		}
		var back [HeaderLen]byte
		h.Put(back[:])
		if !bytes.Equal(back[:], b[:HeaderLen]) {
			t.Fatalf("% x became %+v, and that % x", b[:HeaderLen], h, back)
		}
		if h.Flags&FlagNeedsCsum != 0 {
			frame := make([]byte, frameLen)
			sum := frame[int(h.CsumStart)+int(h.CsumOffset):] // where the sum goes
			sum[0], sum[1] = 0, 0
		}
		switch kind := h.GSOType &^ GSOECN; kind {
		case GSONone:
		case GSOTCPv4, GSOTCPv6, GSOUDPL4:
			if h.GSOSize == 0 {
				t.Fatalf("%+v has segments of no size", h)
			}
		default:
			t.Fatalf("%+v is of a segmentation that was never asked for", h)
		}
	})
}
