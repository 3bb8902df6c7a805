package relay

import (
	"io"
	"testing"
	"time"
)

// closeUnread has both sides close while the guest has not read what the host sent.
func closeUnread(t *testing.T, f *flowTest, size int) {
	t.Helper()
	if _, err := f.host.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := f.host.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := f.guest.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := f.end(t); err != nil {
		t.Fatalf("Run returned %v, want nil", err)
	}
	select {
	case <-f.gone:
		t.Fatal("it is gone before the guest has taken everything")
	default:
	}
}

func (f *flowTest) awaitGone(t *testing.T) {
	t.Helper()
	select {
	case <-f.gone:
	case <-time.After(10 * time.Second):
		t.Fatal("what is left of the flow stays")
	}
}

// widen lets gVisor queue size bytes for the guest at once.
func (f *flowTest) widen(t *testing.T, size int64) {
	t.Helper()
	if _, err := f.host.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(f.guest, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// The relay has begun, and sets another size only when one was earned.
	(<-f.ep).SocketOptions().SetSendBufferSize(size, true)
}

// TestLinger: what a guest has not taken yet counts as its flow, and not for ever.
func TestLinger(t *testing.T) {
	const size = 3 << 20 // more than the guest's receive buffer
	t.Run("taken", func(t *testing.T) {
		f := newFlow(t.Context(), t)
		f.widen(t, size+1<<20)
		closeUnread(t, f, size)
		if n, err := io.Copy(io.Discard, f.guest); n != size || err != nil {
			t.Errorf("the guest got %d bytes, %v; want %d", n, err, size)
		}
		f.awaitGone(t)
	})
	t.Run("never taken", func(t *testing.T) {
		before := lingerTime
		lingerTime = 50 * time.Millisecond
		defer func() { lingerTime = before }()
		f := newFlow(t.Context(), t)
		f.widen(t, size+1<<20)
		if _, err := f.host.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		f.host.CloseWrite()
		f.guest.CloseWrite()
		if err := f.end(t); err != nil {
			t.Fatalf("Run returned %v, want nil", err)
		}
		f.awaitGone(t)
		if n, err := io.Copy(io.Discard, f.guest); err == nil {
			t.Errorf("the guest got %d of %d bytes and their end, want a reset", n, size)
		}
	})
}
