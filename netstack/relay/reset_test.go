package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
)

// suffers checks that c, which reads and writes at once, meets a reset and not an end. The
// kernel tells of it once, the reader or the writer.
func suffers(t *testing.T, c *net.TCPConn) {
	t.Helper()
	wrote := make(chan error, 1)
	go func() {
		piece := make([]byte, 64<<10)
		for {
			if _, err := c.Write(piece); err != nil {
				wrote <- err
				return
			}
		}
	}()
	_, read := io.Copy(io.Discard, onlyReader{c})
	c.Close()
	if write := <-wrote; !errors.Is(read, syscall.ECONNRESET) && !errors.Is(write, syscall.ECONNRESET) {
		t.Errorf("read: %v, write: %v, want ECONNRESET of one of them", read, write)
	}
}

type onlyReader struct{ io.Reader }

// flood writes to c until that fails.
func flood(c io.Writer) {
	piece := make([]byte, 64<<10)
	for {
		if _, err := c.Write(piece); err != nil {
			return
		}
	}
}

// resetRounds: whether who writes or who reads is told of the reset is a matter of chance.
const resetRounds = 30

func TestSpliceResetInMidTransfer(t *testing.T) {
	for range resetRounds {
		client, guest, ended := spliced(t, nil)
		go flood(guest)
		go func() {
			_, _ = io.CopyN(io.Discard, guest, 300<<10)
			Reset(guest)
		}()
		suffers(t, client)
		if o := wait(t, ended); o.err == nil {
			t.Error("Splice: no error after a reset")
		}
	}
}

func TestResetInMidTransfer(t *testing.T) {
	for range resetRounds {
		f := newFlow(context.Background(), t)
		go flood(f.guest)
		go func() {
			_, _ = io.CopyN(io.Discard, f.guest, 300<<10)
			_, _ = f.guest.Read(make([]byte, 1)) // and the rest of its segment stays unread
			f.guest.Close()
		}()
		suffers(t, f.host)
		if err := f.end(t); !errors.Is(err, ErrReset) {
			t.Errorf("Run: %v, want %v", err, ErrReset)
		}
	}
}
