//go:build e2e

package main

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// sink is a file that a caller gives as standard output, and what came there.
type sink struct {
	file *os.File
	got  func() string // waits for the end; the caller's own end is closed by then
}

// reading reads r until its end.
func reading(t *testing.T, file, r *os.File) sink {
	t.Helper()
	got := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(r) // EIO is the end of a terminal
		got <- string(b)
	}()
	t.Cleanup(func() { r.Close() })
	return sink{file, func() string {
		select {
		case s := <-got:
			return s
		case <-time.After(patience):
			t.Fatal("the output has no end")
			return ""
		}
	}}
}

// fileSink is a file that only its owner may open.
func fileSink(t *testing.T, flags int) sink {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return sink{f, func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}}
}

func osPipe(t *testing.T) (r, w *os.File) {
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

// socketPair is what systemd gives a service as its output.
func socketPair(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
}

var sinks = map[string]func(t *testing.T) sink{
	"pipe": func(t *testing.T) sink {
		r, w := osPipe(t)
		return reading(t, w, r)
	},
	"socket": func(t *testing.T) sink {
		ours, theirs := socketPair(t)
		return reading(t, theirs, ours)
	},
	"file":               func(t *testing.T) sink { return fileSink(t, 0) },
	"file for appending": func(t *testing.T) sink { return fileSink(t, os.O_APPEND) },
	"terminal": func(t *testing.T) sink {
		master, slave, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		s := reading(t, slave, master)
		return sink{slave, func() string { return strings.ReplaceAll(s.got(), "\r\n", "\n") }}
	},
	"/dev/null": func(t *testing.T) sink {
		f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		return sink{f, func() string { return "" }}
	},
}

// sources are the files that a caller gives as standard input, all with the same text.
const sourceText = "a line of the caller\n"

var sources = map[string]func(t *testing.T) *os.File{
	"pipe": func(t *testing.T) *os.File {
		r, w := osPipe(t)
		if _, err := io.WriteString(w, sourceText); err != nil {
			t.Fatal(err)
		}
		w.Close()
		return r
	},
	"socket": func(t *testing.T) *os.File {
		ours, theirs := socketPair(t)
		if _, err := io.WriteString(ours, sourceText); err != nil {
			t.Fatal(err)
		}
		ours.Close()
		return theirs
	},
	"file": func(t *testing.T) *os.File {
		path := filepath.Join(t.TempDir(), "in")
		if err := os.WriteFile(path, []byte(sourceText), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		return f
	},
	"terminal": func(t *testing.T) *os.File {
		master, slave, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { master.Close() })
		if _, err := io.WriteString(master, sourceText+"\x04"); err != nil {
			t.Fatal(err)
		}
		return slave
	},
}

// streamUsers are the users of the table. An ordinary caller without sub-ids has one user.
func streamUsers(t *testing.T) []string {
	t.Helper()
	if first, _ := subIDs(t); first < 0 {
		return []string{"0"}
	}
	return []string{"0", "1000"}
}

// TestStreamsByName: a workload opens /dev/stdout and /dev/stderr, whatever they lead to
// and whoever it is, and what it writes comes in its order.
func TestStreamsByName(t *testing.T) {
	t.Parallel()
	const script = `echo one >/dev/stdout && echo two >/dev/stderr && echo three >>/proc/self/fd/1 && echo four >&2 && echo five && exit 7`
	for kind, open := range sinks {
		for _, user := range streamUsers(t) {
			t.Run(kind+" of user "+user, func(t *testing.T) {
				t.Parallel()
				to := open(t)
				cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "--network", "none", "-u", user, "host", "sh", "-c", script)
				cmd.Stdout, cmd.Stderr = to.file, to.file
				p := start(t, cmd)
				to.file.Close()
				status := p.wait()
				got, want := to.got(), "one\ntwo\nthree\nfour\nfive\n"
				if kind == "/dev/null" {
					want = ""
				}
				if got != want || status != 7 {
					t.Errorf("exit status %d, printed %q, want 7 and %q", status, got, want)
				}
			})
		}
	}
	t.Run("two pipes", func(t *testing.T) {
		t.Parallel()
		p := slipway(t, "run", "--rm", "--network", "none", "host", "sh", "-c", script)
		if status := p.wait(); status != 7 || p.stdout.String() != "one\nthree\nfive\n" || p.stderr.String() != "two\nfour\n" {
			t.Errorf("exit status %d, printed %q and %q", status, &p.stdout, &p.stderr)
		}
	})
	t.Run("one id only", func(t *testing.T) {
		t.Parallel()
		p := start(t, exec.Command("env", "PATH=/nosuch", os.Getenv("SLIPWAY_BIN"), "run", "--rm", "--network", "none", "host", "sh", "-c", script))
		if status := p.wait(); status != 7 || p.stdout.String() != "one\nthree\nfive\n" || !strings.HasSuffix(p.stderr.String(), "two\nfour\n") {
			t.Errorf("exit status %d, printed %q and %q", status, &p.stdout, &p.stderr)
		}
	})
}

// TestStandardInputByName: so does /dev/stdin, which is empty without -i and then leaves the
// caller's alone.
func TestStandardInputByName(t *testing.T) {
	t.Parallel()
	for kind, open := range sources {
		for _, user := range streamUsers(t) {
			for _, flag := range []string{"-i", "-i=false"} {
				t.Run(fmt.Sprintf("%s of user %s with %s", kind, user, flag), func(t *testing.T) {
					t.Parallel()
					in := open(t)
					defer in.Close()
					cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "--network", "none", flag, "-u", user, "host", "sh", "-c", "cat /dev/stdin; cat; exit 7")
					cmd.Stdin = in
					p := start(t, cmd)
					want := sourceText
					if flag != "-i" {
						want = ""
					}
					if status := p.wait(); status != 7 || p.stdout.String() != want {
						t.Errorf("exit status %d, the workload read %q, want 7 and %q", status, &p.stdout, want)
					}
					if flag == "-i" {
						return
					}
					left := make([]byte, 100)
					if n, err := in.Read(left); err != nil || string(left[:n]) != sourceText {
						t.Errorf("of the caller's input %q is left, %v, want %q", left[:n], err, sourceText)
					}
				})
			}
		}
	}
}

// TestTerminalByName is -t.
func TestTerminalByName(t *testing.T) {
	t.Parallel()
	for _, user := range streamUsers(t) {
		t.Run("user "+user, func(t *testing.T) {
			t.Parallel()
			s := atTerminal(t, pty.Winsize{Rows: 33, Cols: 111}, "run", "--rm", "-it", "--network", "none", "-u", user, "host", "sh", "-c",
				"for f in stdout stderr tty; do echo by $f >/dev/$f; done; stty -echo </dev/stdin; echo ready; read line </dev/stdin; echo got $line; exit 7")
			s.says("ready")
			s.types("a line\r")
			if status := s.wait(); status != 7 {
				t.Errorf("exit status %d, want 7", status)
			}
			if got, want := s.stdout.String(), "by stdout\r\nby stderr\r\nby tty\r\nready\r\ngot a line\r\n"; got != want {
				t.Errorf("the terminal shows %q, want %q", got, want)
			}
		})
	}
}

// TestNginxLogs: nginx opens its logs by name.
func TestNginxLogs(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("nginx"); err != nil {
		t.Skip("needs nginx")
	}
	for _, kind := range []string{"pipe", "socket", "file for appending"} {
		for _, user := range streamUsers(t) {
			t.Run(kind+" of user "+user, func(t *testing.T) {
				t.Parallel()
				dir := openDir(t)
				config := `daemon off; pid /tmp/nginx.pid; error_log /dev/stderr notice; events {}
http { access_log /dev/stdout; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
server { listen 8080; location / { return 200 "served\n"; } } }`
				if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(config), 0o644); err != nil {
					t.Fatal(err)
				}
				to := sinks[kind](t)
				addr := "127.0.0.1:" + freePort(t)
				cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "-u", user, "-p", addr+":8080", "-v", dir+":/conf:ro", "host", "nginx", "-c", "/conf/nginx.conf")
				cmd.Stdout = to.file
				p := start(t, cmd)
				to.file.Close()
				client := http.Client{Timeout: patience}
				eventually(t, patience, "an answer of nginx", func() bool {
					select {
					case <-p.done:
						t.Fatalf("nginx ended: %v", p.err)
					default:
					}
					resp, err := client.Get("http://" + addr + "/probe")
					if err != nil {
						return false
					}
					resp.Body.Close()
					return resp.StatusCode == http.StatusOK
				})
				client.CloseIdleConnections()
				if err := p.Process.Signal(unix.SIGQUIT); err != nil { // ends in order
					t.Fatal(err)
				}
				if status := p.wait(); status != 0 {
					t.Errorf("exit status %d", status)
				}
				if got := to.got(); !strings.Contains(got, `"GET /probe HTTP/1.1" 200`) {
					t.Errorf("the access log is %q", got)
				}
				if got := p.stderr.String(); !strings.Contains(got, "start worker process") {
					t.Errorf("the error log is %q", got)
				}
			})
		}
	}
}

// TestNobodyReadsOutput: SIGPIPE and EPIPE reach the workload.
func TestNobodyReadsOutput(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ script, want string }{
		"SIGPIPE": {`sh -c 'while echo x; do :; done'; echo status $? >&2`, "status 141\n"},
		"EPIPE":   {`trap "" PIPE; while head -c 9 /dev/zero 2>/tmp/e; do :; done; grep -o "Broken pipe" /tmp/e >&2`, "Broken pipe\n"},
		// One that writes nothing for a while is not to lose its next words.
		"before the first byte": {`trap "" PIPE; read line; sleep 0.3; echo x 2>/tmp/e || echo refused >&2`, "refused\n"},
	} {
		for _, kind := range []string{"pipe", "socket"} {
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				r, w := osPipe(t)
				if kind == "socket" {
					r, w = socketPair(t)
				}
				in, theirs := osPipe(t)
				cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "-i", "--network", "none", "host", "sh", "-c", tt.script)
				cmd.Stdin, cmd.Stdout = in, w
				p := start(t, cmd)
				w.Close()
				if name != "before the first byte" {
					if _, err := r.Read(make([]byte, 1)); err != nil {
						t.Fatal(err)
					}
				}
				r.Close()
				if _, err := io.WriteString(theirs, "go on\n"); err != nil {
					t.Fatal(err)
				}
				if status := p.wait(); status != 0 || p.stderr.String() != tt.want {
					t.Errorf("exit status %d, printed %q, want %q", status, &p.stderr, tt.want)
				}
			})
		}
	}
}

// TestLastWords: what a workload has left in its pipe when it ended comes, when somebody
// reads it. Its status comes with it.
func TestLastWords(t *testing.T) {
	t.Parallel()
	r, w := osPipe(t)
	cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "--network", "none", "host", "sh", "-c", "head -c 100000 /dev/zero; exit 9")
	cmd.Stdout = w
	p := start(t, cmd)
	w.Close()
	guard := child(t, p.Process.Pid, "slipway-guard stage")
	eventually(t, patience, "the end of the workload", func() bool {
		all := descendants(t, p.Process.Pid)
		delete(all, guard)
		return len(all) == 0
	})
	if n, err := io.Copy(io.Discard, r); n != 100_000 || err != nil {
		t.Errorf("%d bytes came, want 100000, %v", n, err)
	}
	if status := p.wait(); status != 9 {
		t.Errorf("exit status %d, want 9", status)
	}
}

// TestBlockedOutput: output that nobody takes holds up neither signals nor the end.
func TestBlockedOutput(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"pipe", "socket", "terminal"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			var r, w *os.File
			var err error
			switch kind {
			case "pipe":
				r, w = osPipe(t)
			case "socket":
				r, w = socketPair(t)
			case "terminal":
				r, w, err = pty.Open()
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "--network", "none", "host", "sh", "-c",
				`trap 'echo trapped >&2; exit 5' TERM; yes & echo up >&2; wait`)
			cmd.Stdout = w
			p := start(t, cmd)
			w.Close()
			p.says("up")
			yes := child(t, p.Process.Pid, "yes")
			eventually(t, patience, "output that is full", func() bool {
				b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", yes))
				return bytes.Contains(b, []byte(") S "))
			})
			if err := p.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			p.says("trapped")
			if status := p.wait(); status != 5 {
				t.Errorf("exit status %d, want 5", status)
			}
			if got := p.stderr.String(); !strings.Contains(got, "not waiting for the rest") {
				t.Errorf("it does not say that output was lost: %q", got)
			}
		})
	}
}

// TestInputFromTheBackground: who reads a terminal from the background is stopped, as by
// other programs.
func TestInputFromTheBackground(t *testing.T) {
	t.Parallel()
	s := commandAtTerminal(t, pty.Winsize{Rows: 33, Cols: 111}, "bash", "--norc", "-ic", os.Getenv("SLIPWAY_BIN")+` run --rm -i --network none host cat & pid=$!
until grep -q '^State:.T' /proc/$pid/status; do sleep 0.05; done; echo stop''ped; fg >/dev/null; echo status $?`)
	s.says("stopped")
	s.types("a line\r")
	s.says("a line\r\na line\r\n")
	s.types("\x04")
	s.says("status 0")
	s.wait()
}

// TestStreamIntegrity sends 1 GiB through both relays.
func TestStreamIntegrity(t *testing.T) {
	t.Parallel()
	const size = 1 << 30
	for _, kind := range []string{"pipe", "socket"} {
		t.Run(kind, func(t *testing.T) {
			inR, inW := osPipe(t)
			outR, outW := osPipe(t)
			if kind == "socket" {
				inR, inW = socketPair(t)
				outR, outW = socketPair(t)
			}
			cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "-i", "--network", "none", "host", "cat")
			cmd.Stdin, cmd.Stdout = inR, outW
			p := start(t, cmd)
			inR.Close()
			outW.Close()
			wrote := make(chan hash.Hash, 1)
			go func() {
				defer inW.Close()
				h := sha256.New()
				if _, err := io.Copy(inW, io.TeeReader(io.LimitReader(noise(t), size), h)); err != nil {
					t.Error(err)
				}
				wrote <- h
			}()
			h := sha256.New()
			n, err := io.Copy(h, bufio.NewReaderSize(outR, 1<<20))
			if err != nil || n != size {
				t.Fatalf("%d bytes came, want %d, %v", n, size, err)
			}
			if want := <-wrote; !slices.Equal(h.Sum(nil), want.Sum(nil)) {
				t.Error("other bytes came")
			}
			if status := p.wait(); status != 0 {
				t.Errorf("exit status %d", status)
			}
		})
	}
}

// noise is what no error in its order or its length leaves as it is.
func noise(t *testing.T) io.Reader {
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		t.Error(err)
		return strings.NewReader("")
	}
	return cipher.StreamReader{S: cipher.NewCTR(block, make([]byte, 16)), R: zeros{}}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// TestOutputThatOthersHold: the workload passes its output to a process outside of the
// container. The launcher ends with the container, though that process still holds the output.
func TestOutputThatOthersHold(t *testing.T) {
	t.Parallel()
	p := slipway(t, "run", "--rm", "--network", "none", "host", "sh", "-c", "echo up; exec sleep 635")
	p.says("up")
	workload := child(t, p.Process.Pid, "sleep 635")
	held, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", workload), os.O_WRONLY, 0) // as SCM_RIGHTS would, unix(7)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := syscall.Kill(workload, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := p.waitWithin(patience); status != 137 {
		t.Errorf("exit status %d, want 137", status)
	}
	if _, err := held.WriteString("x"); !errors.Is(err, unix.EPIPE) {
		t.Errorf("a write of who holds it: %v, want EPIPE", err)
	}
}
