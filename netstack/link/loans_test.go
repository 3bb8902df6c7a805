package link

import (
	"bytes"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
)

// TestLoans: a buffer is used again once nobody else looks at it, and until then what was
// lent stays as it was.
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
		if i%2 != 0 {
			continue
		}
		v := l.next()
		if fill(v, byte(i)) != memory[i] {
			t.Errorf("buffer %d was free, and another one was taken", i)
		}
		held[i] = v.Clone()
	}
	if at := fill(l.next(), 0xff); slices.Contains(memory[:], at) {
		t.Error("all buffers were held, and one of them was taken")
	}
	if len(l.views) > maxLoans {
		t.Errorf("%d buffers are kept, want %d at the most", len(l.views), maxLoans)
	}
	for i, v := range held {
		if want := bytes.Repeat([]byte{byte(i)}, bigFrame); !bytes.Equal(v.AsSlice(), want) {
			t.Errorf("what was lent as buffer %d was written over", i)
		}
		v.Release()
	}
}

// TestLoansHeldForLong: where as many as there can be are held for long, those that come
// back soon are used again all the same.
func TestLoansHeldForLong(t *testing.T) {
	var l loans
	defer l.release()
	for range maxLoans {
		defer l.next().Clone().Release()
	}
	const held = 4 // at a time
	var soon []*buffer.View
	made := 0
	for range 10 * maxLoans {
		v := l.next()
		if first := &v.AsSlice()[0]; *first == 0 { // it was cleared
			*first = 1
			made++
		}
		soon = append(soon, v.Clone())
		if len(soon) == held {
			soon[0].Release()
			soon = soon[1:]
		}
	}
	for _, v := range soon {
		v.Release()
	}
	if made > held {
		t.Errorf("%d buffers were cleared, want %d", made, held)
	}
}
