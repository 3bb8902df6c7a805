package relay

import (
	"io"
	"testing"
)

// TestSmallMessagesWaitOutside: what gVisor keeps of a host's small messages is bounded by
// what they cost, and not by what they carry.
func TestSmallMessagesWaitOutside(t *testing.T) {
	f := newFlow(t.Context(), t)
	ep := <-f.ep
	full := ep.SocketOptions().GetSendBufferSize()
	buffer := func(want int64, when string) {
		t.Helper()
		if got := ep.SocketOptions().GetSendBufferSize(); got != want {
			t.Errorf("%s the send buffer is %d, want %d", when, got, want)
		}
	}
	for range 2 * manySmalls {
		if _, err := f.host.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(f.guest, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	buffer(smallBuffer, "after small messages")
	if _, err := f.host.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(f.guest, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	buffer(full, "after a large one")
}
