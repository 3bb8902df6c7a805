package link

import (
	"bytes"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
)

// TestLoans: a buffer comes round again once nobody else looks at it, and until then
// what was lent stays as it was.
func TestLoans(t *testing.T) {
	var l loans
	defer l.release()
	fill := func(v *buffer.View, b byte) *byte {
		s := v.AsSlice()
		for i := range s {
			s[i] = b
		}
		return &s[0]
	}
	var held [maxLoans]*buffer.View
	var memory [maxLoans]*byte
	for i := range held {
		v := l.next()
		if v.Size() != bigFrame {
			t.Fatalf("a buffer of %d bytes, want %d", v.Size(), bigFrame)
		}
		memory[i] = fill(v, byte(i))
		held[i] = v.Clone()
	}
	for i := range held {
		if i%2 == 0 {
			held[i].Release()
		}
	}
	for i := range held {
		at := fill(l.next(), 0xff)
		if same := at == memory[i]; same != (i%2 == 0) {
			t.Errorf("buffer %d, held %t: the same memory %t", i, i%2 != 0, same)
		}
	}
	for i, v := range held {
		if i%2 == 0 {
			continue
		}
		if want := bytes.Repeat([]byte{byte(i)}, bigFrame); !bytes.Equal(v.AsSlice(), want) {
			t.Errorf("what was lent as buffer %d was written over", i)
		}
		v.Release()
	}
}
