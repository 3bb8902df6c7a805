package streams

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

const patience = 20 * time.Second

// newPipe returns the two ends of a pipe.
func newPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

// blocking returns the same open file as a plain descriptor, as a caller gives it: os.Pipe
// has its own without blocking.
func blocking(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	f.Close()
	b := os.NewFile(uintptr(fd), f.Name())
	t.Cleanup(func() { b.Close() })
	return b
}

// socketPair returns the two ends of a stream.
func socketPair(t *testing.T, flags int) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

func ended(t *testing.T, r *Relay) error {
	t.Helper()
	select {
	case <-r.Done():
	case <-time.After(patience):
		t.Fatal("the relay does not end")
	}
	return r.Err()
}

// output is the workload's end of a relay to f.
func output(t *testing.T, f *os.File) (*os.File, *Relay) {
	t.Helper()
	far, w := newPipe(t)
	relay, err := Output(blocking(t, far), f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(relay.Close)
	return blocking(t, w), relay
}

// outside is a file to which a relay writes, and what came there.
type outside struct {
	file *os.File
	got  func() []byte // when the relay has ended; closes file
}

// readAll reads r until its end in the background.
func readAll(t *testing.T, file, r *os.File) outside {
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(r)
		got <- b
	}()
	return outside{file, func() []byte {
		file.Close()
		select {
		case b := <-got:
			return b
		case <-time.After(patience):
			t.Fatal("no end")
			return nil
		}
	}}
}

func regularFile(t *testing.T, flags int) outside {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return outside{f, func() []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}}
}

// outsides are the kinds of files that a caller gives.
var outsides = map[string]func(t *testing.T) outside{
	"pipe": func(t *testing.T) outside {
		r, w := newPipe(t)
		return readAll(t, blocking(t, w), r)
	},
	"pipe without blocking": func(t *testing.T) outside {
		r, w := newPipe(t)
		return readAll(t, w, r)
	},
	"pipe for appending": func(t *testing.T) outside {
		r, w := newPipe(t)
		w = blocking(t, w)
		if _, err := unix.FcntlInt(w.Fd(), unix.F_SETFL, unix.O_APPEND); err != nil {
			t.Fatal(err)
		}
		return readAll(t, w, r)
	},
	"fifo": func(t *testing.T) outside {
		path := filepath.Join(t.TempDir(), "fifo")
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		return readAll(t, blocking(t, w), r)
	},
	"socket": func(t *testing.T) outside {
		a, b := socketPair(t, 0)
		return readAll(t, a, b)
	},
	"socket without blocking": func(t *testing.T) outside {
		a, b := socketPair(t, unix.SOCK_NONBLOCK)
		return readAll(t, a, b)
	},
	"file":               func(t *testing.T) outside { return regularFile(t, 0) },
	"file for appending": func(t *testing.T) outside { return regularFile(t, os.O_APPEND) },
	"terminal": func(t *testing.T) outside {
		master, slave, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		raw(t, slave)
		t.Cleanup(func() { master.Close() })
		return readAll(t, slave, master)
	},
}

// raw has a terminal change nothing.
func raw(t *testing.T, f *os.File) {
	t.Helper()
	fd := int(f.Fd())
	settings, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	settings.Oflag, settings.Lflag, settings.Iflag = 0, 0, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, settings); err != nil {
		t.Fatal(err)
	}
}

func TestOutput(t *testing.T) {
	for name, open := range outsides {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			to := open(t)
			flags, err := unix.FcntlInt(to.file.Fd(), unix.F_GETFL, 0)
			if err != nil {
				t.Fatal(err)
			}
			w, relay := output(t, to.file)
			want := make([]byte, 3<<20+17)
			rand.New(rand.NewSource(1)).Read(want)
			for b := want; len(b) > 0; b = b[min(len(b), 10_007):] {
				if _, err := w.Write(b[:min(len(b), 10_007)]); err != nil {
					t.Fatal(err)
				}
			}
			w.Close()
			if err := ended(t, relay); err != nil {
				t.Error(err)
			}
			if after, err := unix.FcntlInt(to.file.Fd(), unix.F_GETFL, 0); err != nil || after != flags {
				t.Errorf("the file's flags were %#x and are %#x, %v", flags, after, err)
			}
			if got := to.got(); !bytes.Equal(got, want) {
				t.Errorf("%d bytes came, want %d, and are others", len(got), len(want))
			}
		})
	}
}

// TestSharedOffset: two relays write to one open file, whose offset they share, as those of
// `{ slipway run … & slipway run …; } >file` do. Nothing is overwritten.
func TestSharedOffset(t *testing.T) {
	to := regularFile(t, 0)
	line := strings.Repeat("x", 99) + "\n"
	const lines = 20_000
	var relays [2]*Relay
	wrote := make(chan error, len(relays))
	for i := range relays {
		w, relay := output(t, to.file)
		relays[i] = relay
		go func() {
			defer w.Close()
			for range lines {
				if _, err := io.WriteString(w, line); err != nil {
					wrote <- err
					return
				}
			}
			wrote <- nil
		}()
	}
	for _, r := range relays {
		if err := errors.Join(<-wrote, ended(t, r)); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := len(to.got()), 2*lines*len(line); got != want {
		t.Errorf("the file has %d bytes, want %d", got, want)
	}
}

// TestReaderHasGone: the workload hears of it at once, also while it writes nothing.
func TestReaderHasGone(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (w, r *os.File){
		"pipe": func(t *testing.T) (*os.File, *os.File) {
			r, w := newPipe(t)
			return blocking(t, w), r
		},
		"socket": func(t *testing.T) (*os.File, *os.File) { return socketPair(t, 0) },
		"terminal": func(t *testing.T) (*os.File, *os.File) {
			master, slave, err := pty.Open()
			if err != nil {
				t.Fatal(err)
			}
			return slave, master
		},
	} {
		for _, when := range []string{"idle", "full"} {
			t.Run(name+" "+when, func(t *testing.T) {
				to, reader := open(t)
				w, relay := output(t, to)
				if when == "full" {
					fill(t, w)
				}
				reader.Close()
				if err := ended(t, relay); err != nil {
					t.Errorf("a reader that has gone is no error, got %v", err)
				}
				if _, err := w.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
					t.Errorf("write: %v, want EPIPE", err)
				}
			})
		}
	}
}

// fill writes until a pipe takes no more, for as long that all on its way is full, too.
func fill(t *testing.T, w *os.File) {
	t.Helper()
	fd := int(w.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	defer unix.SetNonblock(fd, false)
	b := make([]byte, 4096)
	for idle := 0; idle < 20; {
		if _, err := unix.Write(fd, b); errors.Is(err, unix.EAGAIN) {
			idle++
			time.Sleep(5 * time.Millisecond) // for the relay to move some of it
		} else if err != nil {
			t.Fatal(err)
		} else {
			idle = 0
		}
	}
}

// TestAnotherReader: a pipe with a name may get another reader, so that one has gone is
// no end while nothing is written.
func TestAnotherReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	to, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	w, relay := output(t, to)
	if _, err := io.WriteString(w, "1"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1)
	if err := first.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(first, got); err != nil {
		t.Fatal(err)
	}
	first.Close()
	second, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := io.WriteString(w, "2"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := ended(t, relay); err != nil {
		t.Error(err)
	}
	if n, err := unix.Read(int(second.Fd()), got); n != 1 || got[0] != '2' {
		t.Errorf("the second reader got %q, %v", got[:max(n, 0)], err)
	}
}

// TestFinish: of a workload that has ended, what is in the pipe still comes, and somebody
// who keeps the pipe open is not waited for.
func TestFinish(t *testing.T) {
	for name, open := range outsides {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			to := open(t)
			w, relay := output(t, to.file)
			want := strings.Repeat("the last words ", 2000)
			if _, err := io.WriteString(w, want); err != nil {
				t.Fatal(err)
			}
			relay.Finish()
			if err := ended(t, relay); err != nil {
				t.Error(err)
			}
			if got := string(to.got()); got != want {
				t.Errorf("%d bytes came, want %d", len(got), len(want))
			}
		})
	}
}

// TestFinishWhileOthersWrite: who keeps the pipe and goes on writing is not waited for.
func TestFinishWhileOthersWrite(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	w, relay := output(t, null)
	wrote := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, zeros{})
		wrote <- err
	}()
	relay.Finish()
	if err := ended(t, relay); err != nil {
		t.Error(err)
	}
	if err := <-wrote; !errors.Is(err, unix.EPIPE) {
		t.Errorf("the writer ended with %v, want EPIPE", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// TestBlocked: where the outside takes nothing the workload waits, and the relay still ends
// when it shall. A terminal is the exception: it blocks a write for as long as it is there.
func TestBlocked(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (w, r *os.File){
		"pipe": func(t *testing.T) (*os.File, *os.File) {
			r, w := newPipe(t)
			return blocking(t, w), r
		},
		"socket": func(t *testing.T) (*os.File, *os.File) { return socketPair(t, 0) },
		"terminal": func(t *testing.T) (*os.File, *os.File) {
			master, slave, err := pty.Open()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				master.Close()
				slave.Close()
			})
			return slave, master
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			to, reader := open(t)
			w, relay := output(t, to)
			fill(t, w)
			select {
			case <-relay.Done():
				t.Fatalf("it has ended: %v", relay.Err())
			default:
			}
			relay.Finish()
			relay.Close()
			if name == "terminal" {
				reader.Close()
			}
			if err := ended(t, relay); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	w, relay := output(t, full)
	if _, err := io.WriteString(w, "x"); err != nil {
		t.Fatal(err)
	}
	if err := ended(t, relay); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if _, err := io.WriteString(w, "x"); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write: %v, want EPIPE", err)
	}
}

func TestWrongDirection(t *testing.T) {
	r, w := newPipe(t)
	far, inner := newPipe(t)
	if _, err := Output(far, r); !errors.Is(err, unix.EBADF) {
		t.Errorf("output to the reading end: %v", err)
	}
	if _, err := Input(w, inner); !errors.Is(err, unix.EBADF) {
		t.Errorf("input from the writing end: %v", err)
	}
}

// TestIntegrity sends a lot through two relays.
func TestIntegrity(t *testing.T) {
	size := int64(64 << 20)
	if testing.Short() {
		size = 4 << 20
	}
	r, w := newPipe(t)
	w = blocking(t, w)
	in, first := output(t, w)
	out, second := input(t, blocking(t, r))
	want, got := sha256.New(), sha256.New()
	wrote := make(chan error, 1)
	go func() {
		defer in.Close()
		_, err := io.Copy(in, io.TeeReader(io.LimitReader(rand.New(rand.NewSource(2)), size), want))
		wrote <- err
	}()
	go func() {
		<-first.Done()
		w.Close() // it is the caller's, not the relay's
	}()
	n, err := io.Copy(got, out)
	if err := errors.Join(err, <-wrote); err != nil || n != size {
		t.Fatalf("%d bytes came, want %d, %v", n, size, err)
	}
	if err := errors.Join(ended(t, first), ended(t, second)); err != nil {
		t.Error(err)
	}
	if g, w := fmt.Sprintf("%x", got.Sum(nil)), fmt.Sprintf("%x", want.Sum(nil)); g != w {
		t.Errorf("other bytes came: %s, want %s", g, w)
	}
}
