package tap

import "testing"

// headers are of a plain frame, a checksum to fill in, and a segment to cut.
var headers = []Header{
	{},
	{Flags: FlagNeedsCsum, CsumStart: 34, CsumOffset: 16},
	{Flags: FlagNeedsCsum, GSOType: GSOTCPv6, HdrLen: 86, GSOSize: 1428, CsumStart: 54, CsumOffset: 16},
}

// codec writes a header and reads it again.
func codec(tb testing.TB, b *[HeaderLen]byte, want Header) {
	want.Put(b[:])
	if got, err := ParseHeader(b[:], 1514); err != nil || got != want {
		tb.Fatalf("read %+v, %v; wrote %+v", got, err, want)
	}
}

func TestHeaderDoesNotAllocate(t *testing.T) {
	var b [HeaderLen]byte
	for _, h := range headers {
		if n := testing.AllocsPerRun(100, func() { codec(t, &b, h) }); n != 0 {
			t.Errorf("%+v: %v allocations", h, n)
		}
	}
}

func BenchmarkHeader(b *testing.B) {
	var raw [HeaderLen]byte
	b.ReportAllocs()
	for b.Loop() {
		codec(b, &raw, headers[2])
	}
}
