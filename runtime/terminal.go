package runtime

import (
	"errors"
	"fmt"
	"os"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

func isTerminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }

// terminalSize is the size of the first terminal among files, or 24 lines of 80.
func terminalSize(files ...*os.File) size {
	for _, f := range files {
		if isTerminal(f) {
			if w, err := pty.GetsizeFull(f); err == nil && w.Rows > 0 && w.Cols > 0 {
				return size{w.Rows, w.Cols}
			}
		}
	}
	return size{24, 80}
}

// terminal joins the master side of the workload's terminal to the caller's.
type terminal struct {
	master  *os.File
	in, out *os.File // in is nil without -i
	saved   *term.State
	stop    *os.File // closing it ends the input
	input   chan struct{}
	output  chan struct{}
}

// newTerminal starts copying. The caller's terminal is in raw mode until Close.
func newTerminal(master, in, out *os.File) (*terminal, error) {
	t := &terminal{master: master, in: in, out: out, input: make(chan struct{}), output: make(chan struct{})}
	if in == nil {
		close(t.input)
	} else {
		saved, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return nil, fmt.Errorf("raw mode of the terminal: %w", err)
		}
		t.saved = saved
		r, w, err := os.Pipe()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("pipe: %w", err), t.restore())
		}
		t.stop = w
		go t.copyIn(r)
	}
	go t.copyOut()
	return t, nil
}

// copyOut copies what the workload prints until the last slave is closed, which a master
// says by EIO. Where nobody takes it any more the workload's terminal is hung up.
func (t *terminal) copyOut() {
	defer close(t.output)
	buf := make([]byte, 32<<10)
	for {
		n, err := t.master.Read(buf)
		if err != nil {
			return
		}
		if _, err := t.out.Write(buf[:n]); err != nil {
			t.master.Close()
			return
		}
	}
}

// copyIn copies the caller's keys until stop closes.
func (t *terminal) copyIn(stop *os.File) {
	defer close(t.input)
	defer stop.Close()
	buf := make([]byte, 4096)
	fds := []unix.PollFd{{Fd: int32(t.in.Fd()), Events: unix.POLLIN}, {Fd: int32(stop.Fd())}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		n, err := t.in.Read(buf)
		if err != nil {
			return
		}
		if _, err := t.master.Write(buf[:n]); err != nil {
			return
		}
	}
}

// resize gives the workload the size of the caller's terminal.
func (t *terminal) resize() {
	s := terminalSize(t.in, t.out)
	// A workload that is gone has no size to set.
	_ = pty.Setsize(t.master, &pty.Winsize{Rows: s.Rows, Cols: s.Cols})
}

func (t *terminal) restore() error {
	if t.saved == nil {
		return nil
	}
	saved := t.saved
	t.saved = nil
	return term.Restore(int(t.in.Fd()), saved)
}

// Close ends both copies, and gives the caller's terminal back. Where nobody takes the
// output, its copy ends later.
func (t *terminal) Close() error {
	if t.stop != nil {
		t.stop.Close()
	}
	err := t.master.Close()
	<-t.input
	if errors.Is(err, os.ErrClosed) {
		err = nil // by copyOut
	}
	return errors.Join(t.restore(), err)
}
