package relay

import (
	"bytes"
	"io"
	"math/rand"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"slipway/netstack/netns/nstest"
)

// TestSpliceWithoutPipes: where no pipe is to be had the same bytes are copied.
func TestSpliceWithoutPipes(t *testing.T) {
	client, guest, ended := spliced(t, nil)
	pipesMade.Add(maxPipes)
	t.Cleanup(func() { pipesMade.Add(-maxPipes) })
	data := make([]byte, 4<<20)
	rand.New(rand.NewSource(1)).Read(data)
	go func() {
		client.Write(data)
		client.Close()
	}()
	got, err := io.ReadAll(guest)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v, want %d", len(got), err, len(data))
	}
	guest.Close()
	if o := wait(t, ended); o.err != nil || o.counts.Spliced != 0 || o.counts.ToGuest != uint64(len(data)) {
		t.Errorf("ended with %+v, %v", o.counts, o.err)
	}
}

// TestSpliceWithTinyPipes: where the user has so many pipes that a new one holds a page or
// two (pipe-user-pages-soft in pipe(7)), bytes are copied.
func TestSpliceWithTinyPipes(t *testing.T) {
	if os.Getuid() == 0 {
		nstest.RunAsOrdinaryUser(t, "TestSpliceWithTinyPipes") // root is not bound by that limit
		return
	}
	for {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			t.Skipf("this user may not have enough pipes: %v", err)
		}
		t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
		if _, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeBytes); err != nil {
			if n, err := unix.FcntlInt(uintptr(fds[1]), unix.F_GETPIPE_SZ, 0); err != nil || n < leastPipe {
				break
			}
		}
	}
	client, guest, ended := spliced(t, nil)
	data := make([]byte, 4<<20)
	rand.New(rand.NewSource(1)).Read(data)
	go func() {
		client.Write(data)
		client.Close()
	}()
	if got, err := io.ReadAll(guest); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v, want %d", len(got), err, len(data))
	}
	guest.Close()
	if o := wait(t, ended); o.err != nil || o.counts.Spliced != 0 || o.counts.ToGuest != uint64(len(data)) {
		t.Errorf("ended with %+v, %v", o.counts, o.err)
	}
}
