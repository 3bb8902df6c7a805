package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
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
		t.Run("", func(t *testing.T) {
			client, guest, ended := spliced(t, nil)
			go flood(guest)
			go func() {
				_, _ = io.CopyN(io.Discard, guest, 300<<10)
				Reset(guest)
			}()
			suffers(t, client)
			if o := wait(t, ended); o.err == nil {
				t.Error("no error after a reset")
			}
		})
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

// fill writes to c until nobody takes any more.
func fill(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	piece := make([]byte, 64<<10)
	for {
		if _, err := c.Write(piece); err != nil {
			if late := net.Error(nil); !errors.As(err, &late) || !late.Timeout() {
				t.Fatal(err)
			}
			return
		}
	}
}

// TestResetWhileStalled: what was sent before a reset can still be taken by a side that did
// not read, but does not keep the flow for ever.
func TestResetWhileStalled(t *testing.T) {
	for name, reset := range map[string]func(t *testing.T, f *flowTest){
		"by the guest": func(t *testing.T, f *flowTest) {
			fill(t, f.guest)
			f.resetGuest(t)
		},
		"by the host": func(t *testing.T, f *flowTest) {
			fill(t, f.host)
			Reset(f.host)
		},
	} {
		t.Run(name+", never taken", func(t *testing.T) {
			before := lingerTime
			lingerTime = 50 * time.Millisecond
			defer func() { lingerTime = before }()
			f := newFlow(t.Context(), t)
			reset(t, f)
			if err := f.end(t); !errors.Is(err, ErrReset) {
				t.Errorf("Run: %v, want %v", err, ErrReset)
			}
		})
		t.Run(name+", taken", func(t *testing.T) {
			f := newFlow(t.Context(), t)
			reset(t, f)
			reader, passed := io.Reader(f.host), &f.bytes.FromGuest
			if name == "by the host" {
				reader, passed = f.guest, &f.bytes.ToGuest
			}
			stalled := passed.Load()
			if _, err := io.Copy(io.Discard, onlyReader{reader}); err == nil {
				t.Error("an end, want a reset")
			}
			if passed.Load() == stalled {
				t.Error("nothing was passed on after the reset")
			}
			if err := f.end(t); !errors.Is(err, ErrReset) {
				t.Errorf("Run: %v, want %v", err, ErrReset)
			}
		})
	}
}
