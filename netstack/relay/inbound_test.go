package relay

import (
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUrgentByte: a host's urgent byte is one of the stream.
func TestUrgentByte(t *testing.T) {
	f := newFlow(t.Context(), t)
	raw, err := f.host.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { _, sent = unix.SendmsgN(int(fd), []byte("a"), nil, nil, unix.MSG_OOB) }); err != nil || sent != nil {
		t.Fatal(err, sent)
	}
	if _, err := f.host.Write([]byte("b")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2)
	if _, err := io.ReadFull(f.guest, got); err != nil || string(got) != "ab" {
		t.Errorf("the guest got %q, %v", got, err)
	}
}

// TestSmallMessagesWaitOutside: what gVisor keeps of a host's small messages is bounded by
// what they cost, and not by what they carry.
func TestSmallMessagesWaitOutside(t *testing.T) {
	f := newFlow(t.Context(), t)
	ep := <-f.ep
	buffer := func() int64 { return ep.SocketOptions().GetSendBufferSize() }
	for range 2 * manySmalls {
		if _, err := f.host.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(f.guest, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if got := buffer(); got > smallBuffer {
		t.Errorf("after small messages the send buffer is %d, want %d at most", got, smallBuffer)
	}
	if _, err := f.host.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(f.guest, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if got := buffer(); got <= smallBuffer {
		t.Errorf("after a large one the send buffer is %d, want more than %d", got, smallBuffer)
	}
}
