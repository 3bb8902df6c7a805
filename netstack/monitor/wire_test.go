package monitor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns two connected ends; b takes messages of at most body bytes and files
// descriptors.
func pair(t *testing.T, body, files int) (a, b *conn) {
	t.Helper()
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	if a, err = newConn(ours, 1<<10, 0); err != nil {
		t.Fatal(err)
	}
	if b, err = newConn(theirs, body, files); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.close(); b.close() })
	if err := b.unix.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// pipes makes n descriptors that can be told apart.
func pipes(t *testing.T, n int) (files []*os.File, fds []int) {
	t.Helper()
	for range n {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		files, fds = append(files, r), append(fds, int(r.Fd()))
	}
	t.Cleanup(func() {
		for _, f := range files {
			f.Close()
		}
	})
	return files, fds
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestMessages(t *testing.T) {
	tests := []struct {
		name        string
		body, files int
	}{
		{"empty", 0, 0},
		{"short", 10, 0},
		{"one descriptor", 10, 1},
		{"a full packet", maxChunk - 2, maxFiles},
		{"one byte more", maxChunk - 1, 0},
		{"one descriptor more", 10, maxFiles + 1},
		{"long", 1 << 20, 0},
		{"both", 3 * maxChunk, 5*maxFiles + 7},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := pair(t, 2<<20, 2000)
			_, fds := pipes(t, tt.files)
			var body any
			if tt.body > 0 {
				body = strings.Repeat("x", tt.body)
			}
			sent := make(chan error, 1)
			go func() { sent <- a.send("test", 7, body, fds) }()
			msg, err := b.recv()
			if err != nil {
				t.Fatal(err)
			}
			defer msg.closeFiles()
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			if msg.kind != "test" || msg.id != 7 {
				t.Errorf("kind %q, id %d", msg.kind, msg.id)
			}
			if tt.body > 0 {
				var got string
				if err := msg.decode(&got); err != nil || got != body {
					t.Errorf("body of %d bytes (%v), want %d", len(got), err, tt.body)
				}
			}
			var got, want []uint64
			for i := range msg.fds {
				got = append(got, inode(t, msg.fds[i]))
				if fl, err := unix.FcntlInt(uintptr(msg.fds[i]), unix.F_GETFD, 0); err != nil || fl&unix.FD_CLOEXEC == 0 {
					t.Errorf("descriptor %d is not close-on-exec", i)
				}
			}
			for _, fd := range fds {
				want = append(want, inode(t, fd))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d descriptors, not the %d that were sent", len(got), len(want))
			}
		})
	}
}

// What a hostile peer may send ends in an error and leaves no descriptor.
func TestBadMessages(t *testing.T) {
	_, fds := pipes(t, 3)
	oneFile := unix.UnixRights(fds[0])
	tests := []struct {
		name string
		send func(a *conn)
		want error
	}{
		{"nothing", func(a *conn) { a.close() }, io.EOF},
		{"no json", func(a *conn) { a.unix.WriteMsgUnix([]byte("{"), oneFile, nil) }, errProtocol},
		{"no kind", func(a *conn) { a.unix.WriteMsgUnix([]byte("{}"), nil, nil) }, errProtocol},
		{"too long a packet", func(a *conn) { a.unix.WriteMsgUnix([]byte(strings.Repeat(" ", maxPacket+1)), oneFile, nil) }, errProtocol},
		{"too long a message", func(a *conn) { a.send("x", 0, strings.Repeat("x", 2000), nil) }, errProtocol},
		{"too many descriptors", func(a *conn) { a.send("x", 0, nil, fds) }, errProtocol},
		{"unannounced descriptor", func(a *conn) { a.unix.WriteMsgUnix([]byte(`{"kind":"x"}`), oneFile, nil) }, errProtocol},
		{"missing descriptor", func(a *conn) { a.unix.WriteMsgUnix([]byte(`{"kind":"x","files":1}`), nil, nil) }, errProtocol},
		{"negative count", func(a *conn) { a.unix.WriteMsgUnix([]byte(`{"kind":"x","files":-1}`), nil, nil) }, errProtocol},
		{"another message inside", func(a *conn) {
			a.unix.WriteMsgUnix([]byte(`{"kind":"x","body":"AAAA","files":1,"more":true}`), oneFile, nil)
			a.unix.WriteMsgUnix([]byte(`{"kind":"y"}`), nil, nil)
		}, errProtocol},
		{"endless", func(a *conn) { a.unix.WriteMsgUnix([]byte(`{"kind":"x","more":true}`), nil, nil) }, errProtocol},
		{"end inside", func(a *conn) {
			a.unix.WriteMsgUnix([]byte(`{"kind":"x","body":"AAAA","files":1,"more":true}`), oneFile, nil)
			a.close()
		}, io.EOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := pair(t, 1000, 2)
			before := openFDs(t)
			tt.send(a)
			a.close()
			msg, err := b.recv()
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v; want %v", msg, err, tt.want)
			}
			if after := openFDs(t); after != before-1 { // a has gone
				t.Errorf("%d descriptors, before %d", after, before)
			}
		})
	}
}

func TestFailure(t *testing.T) {
	if newFailure(nil).err() != nil {
		t.Error("no failure became an error")
	}
	err := newFailure(fmt.Errorf("bind: %w", unix.EADDRINUSE)).err()
	if err == nil || !errors.Is(err, unix.EADDRINUSE) || !strings.HasPrefix(err.Error(), "bind: ") {
		t.Errorf("got %v", err)
	}
	if err := newFailure(io.EOF).err(); err == nil || errors.Is(err, unix.EADDRINUSE) || err.Error() != "EOF" {
		t.Errorf("got %v", err)
	}
}

func TestLastWords(t *testing.T) {
	long := strings.Repeat("noise\n", maxWords)
	tests := []struct {
		name, want string
		said       []string
	}{
		{"silence", "", nil},
		{"last line", "two", []string{"one\n", "two\n\n"}},
		{"panic", "panic: boom", []string{"panic: boom\n\ngoroutine 1 [running]:\n", long}},
		{"fatal error", "fatal error: newosproc", []string{"runtime: x\nfatal error: newosproc\n", long, "exit status 2\n"}},
		{"after noise", "the end", []string{long, long, "the end\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := lastWords{to: io.Discard}
			for _, s := range tt.said {
				if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
					t.Errorf("wrote %d, %v", n, err)
				}
			}
			if got := w.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if len(w.head) > maxWords || len(w.tail) > maxWords {
				t.Errorf("keeps %d and %d bytes", len(w.head), len(w.tail))
			}
		})
	}
}

func TestNextDelay(t *testing.T) {
	var got []time.Duration
	for d := time.Duration(0); len(got) < 7; {
		d = nextDelay(d)
		got = append(got, d)
	}
	ms := time.Millisecond
	if want := []time.Duration{50 * ms, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1000 * ms, 1000 * ms}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestTooManyInFlight: another program of the user, a container's too, can keep as many
// descriptors in flight as a user may have. A message that cannot be sent for that leaves
// the connection as it was.
func TestTooManyInFlight(t *testing.T) {
	before := sendTimeout
	sendTimeout = 50 * time.Millisecond
	defer func() { sendTimeout = before }()
	a, b := pair(t, 100, 1)
	files, fds := pipes(t, 1)
	var files0 unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files0); err != nil {
		t.Fatal(err)
	}
	hoard, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	const limit = 400 // more than this process has open
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: files0.Max}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// CAP_SYS_RESOURCE and CAP_SYS_ADMIN lift the bound. The thread ends with the goroutine.
		runtime.LockOSThread()
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&hdr, &none[0]); err != nil {
			t.Error(err)
			return
		}
		rights := unix.UnixRights(slices.Repeat(fds, 200)...)
		for sent := 0; sent <= limit; sent += 200 {
			if err := unix.Sendmsg(hoard[0], []byte("x"), rights, nil, 0); err != nil {
				t.Error(err)
				return
			}
		}
		if err := a.send("kind", 1, "one", fds); !errors.Is(err, errUnsent) || !errors.Is(err, unix.ETOOMANYREFS) {
			t.Errorf("send: %v, want %v and %v", err, errUnsent, unix.ETOOMANYREFS)
		}
		if err := a.send("kind", 2, "two", nil); err != nil {
			t.Error(err)
		}
	}()
	<-ended
	if err := errors.Join(unix.Setrlimit(unix.RLIMIT_NOFILE, &files0), unix.Close(hoard[0]), unix.Close(hoard[1])); err != nil {
		t.Fatal(err)
	}
	msg, err := b.recv()
	if err != nil {
		t.Fatal(err)
	}
	if msg.id != 2 || string(msg.body) != `"two"` {
		t.Errorf("got message %d, %s; want the second", msg.id, msg.body)
	}
	runtime.KeepAlive(files)
}
