package streams

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// input is the workload's end of a relay from f.
func input(t *testing.T, f *os.File) (*os.File, *Relay) {
	t.Helper()
	r, far := newPipe(t)
	relay, err := Input(f, blocking(t, far))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(relay.Close)
	return r, relay
}

func TestInput(t *testing.T) {
	text := bytes.Repeat([]byte("a line of the caller\n"), 50_000)
	writeAll := func(t *testing.T, w *os.File) {
		go func() {
			defer w.Close()
			if _, err := w.Write(text); err != nil {
				t.Error(err)
			}
		}()
	}
	for name, open := range map[string]func(t *testing.T) *os.File{
		"pipe": func(t *testing.T) *os.File {
			r, w := newPipe(t)
			writeAll(t, w)
			return blocking(t, r)
		},
		"pipe without blocking": func(t *testing.T) *os.File {
			r, w := newPipe(t)
			writeAll(t, w)
			return r
		},
		"socket": func(t *testing.T) *os.File {
			a, b := socketPair(t, 0)
			writeAll(t, b)
			return a
		},
		"socket without blocking": func(t *testing.T) *os.File {
			a, b := socketPair(t, unix.SOCK_NONBLOCK)
			writeAll(t, b)
			return a
		},
		"file": func(t *testing.T) *os.File {
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, relay := input(t, open(t))
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, text) {
				t.Errorf("%d bytes came, want %d, %v", len(got), len(text), err)
			}
			if err := ended(t, relay); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestInputOfATerminal ends by Ctrl-D.
func TestInputOfATerminal(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	r, relay := input(t, slave)
	if _, err := io.WriteString(master, "typed\n\x04"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "typed\n" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := ended(t, relay); err != nil {
		t.Error(err)
	}
}

// TestInputThatNobodyReads: of what the caller has, no more is taken than the pipe holds,
// and nothing more when the workload has closed its input.
func TestInputThatNobodyReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	const size = 4 << 20
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, relay := input(t, f)
	r.Close()
	if err := ended(t, relay); err != nil {
		t.Error(err)
	}
	if taken, err := f.Seek(0, io.SeekCurrent); err != nil || taken > pipeSize+bufferSize {
		t.Errorf("%d bytes were taken, %v", taken, err)
	}
}

func TestCloseOfAnIdleInput(t *testing.T) {
	from, _ := newPipe(t)
	r, relay := input(t, blocking(t, from))
	relay.Close()
	if err := ended(t, relay); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(r); err != nil || len(got) != 0 {
		t.Errorf("got %q, %v, want the end", got, err)
	}
}

func TestCheckInput(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := CheckInput(dir); !errors.Is(err, ErrDirectory) {
		t.Errorf("a directory: %v", err)
	}
	r, _ := newPipe(t)
	if err := CheckInput(r); err != nil {
		t.Errorf("a pipe: %v", err)
	}
}
