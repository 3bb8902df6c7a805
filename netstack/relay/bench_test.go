package relay

import (
	"context"
	"io"
	"testing"
	"time"
)

// stream moves pieces from one end of a flow to the other, and returns a function that
// moves one.
func stream(tb testing.TB, from io.Writer, to io.Reader, size int) func() {
	piece, got := make([]byte, size), make([]byte, size)
	return func() {
		if _, err := from.Write(piece); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.ReadFull(to, got); err != nil {
			tb.Fatal(err)
		}
	}
}

// flows runs f for each direction of a relay: a guest's stack, ours, and a socket.
func flows(tb testing.TB, size int, f func(name string, run func())) {
	flow := newFlow(context.Background(), tb)
	if err := flow.guest.SetDeadline(time.Time{}); err != nil {
		tb.Fatal(err)
	}
	if err := flow.host.SetDeadline(time.Time{}); err != nil {
		tb.Fatal(err)
	}
	f("from the guest", stream(tb, flow.guest, flow.host, size))
	f("to the guest", stream(tb, flow.host, flow.guest, size))
}

func BenchmarkRelay(b *testing.B) {
	const size = 64 << 10
	flows(b, size, func(name string, run func()) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				run()
			}
		})
	})
}
