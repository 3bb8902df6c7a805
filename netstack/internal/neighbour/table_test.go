package neighbour

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

var (
	expected = [6]byte{2, 0, 0, 0, 0, 1}
	other    = [6]byte{2, 0, 0, 0, 0, 2}
	third    = [6]byte{2, 0, 0, 0, 0, 3}
)

func TestLearn(t *testing.T) {
	a4, a6, b4 := netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("fd00::64"), netip.MustParseAddr("10.0.2.15")
	table := New(expected)
	want := func(a netip.Addr, mac [6]byte) {
		t.Helper()
		if got := table.At(a); got != mac {
			t.Errorf("%s is at % x, want % x", a, got, mac)
		}
	}
	want(a4, expected)
	table.Learn(a4, expected)
	if n := table.Known(); n != 0 {
		t.Errorf("%d addresses are remembered that are where they were expected", n)
	}
	table.Learn(b4, other)
	want(b4, other)
	want(a4, expected)
	want(a6, expected)
	table.Learn(a6, third)
	want(a6, third)
	table.Learn(b4, third)
	want(b4, third)
	table.Learn(b4, expected) // back again
	want(b4, expected)
	if n := table.Known(); n != 2 {
		t.Errorf("%d addresses are remembered, want 2", n)
	}
}

func TestTableIsBounded(t *testing.T) {
	table := New(expected)
	const addresses = 10000
	a := netip.MustParseAddr("fd00::1")
	for range addresses {
		table.Learn(a, other)
		if got := table.At(a); got != other {
			t.Fatalf("%s is at % x, and was seen at % x a moment ago", a, got, other)
		}
		a = a.Next()
	}
	known := table.Known()
	if known > sets*ways {
		t.Errorf("%d addresses are remembered, want %d at most", known, sets*ways)
	}
	if got, want := table.Forgotten(), addresses-known; got != want {
		t.Errorf("%d were forgotten, want %d", got, want)
	}
}

func TestNoAllocation(t *testing.T) {
	table := New(expected)
	a, b := netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("fd00::64")
	table.Learn(a, other)
	if n := testing.AllocsPerRun(100, func() {
		table.Learn(a, other)
		table.Learn(a, third)
		table.Learn(b, expected)
		table.At(a)
		table.At(b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestMadeUpSender: frames with another sender lead nobody astray while the address is
// heard of where it is; once it is silent there, it has moved.
func TestMadeUpSender(t *testing.T) {
	a4 := netip.MustParseAddr("10.0.2.100")
	for _, at := range [][6]byte{expected, other} {
		synctest.Test(t, func(t *testing.T) {
			table := New(expected)
			table.Learn(a4, at)
			table.Learn(a4, at)
			for range 100 {
				time.Sleep(locked / 2)
				table.Learn(a4, third)
				if got := table.At(a4); got != at {
					t.Fatalf("it is at % x, want % x", got, at)
				}
				table.Learn(a4, at)
			}
			if n := table.Doubted(); n != 100 {
				t.Errorf("%d doubts, want 100", n)
			}
			table.Learn(a4, third)
			time.Sleep(locked)
			table.Learn(a4, third)
			if got := table.At(a4); got != third {
				t.Errorf("after it was silent it is at % x, want % x", got, third)
			}
		})
	}
}
