//go:build e2e

// The end-to-end tests drive the built binary as a user does. make test-e2e runs
// them as whoever calls it, and for root once more as an ordinary user.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait: far above what anything takes on a slow machine.
const patience = 20 * time.Second

// helpers are programs that the test binary becomes inside a container or a
// namespace: `e2e NAME ARGS…`, see asHelper.
var helpers = map[string]func(args []string) error{}

const helperEnv = "SLIPWAY_E2E_HELPER"

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		os.Unsetenv(helperEnv)
		if err := helpers[name](os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv("SLIPWAY_BIN") == "" {
		fmt.Fprintln(os.Stderr, "SLIPWAY_BIN is not set: run make test-e2e")
		os.Exit(1)
	}
	// What nohup(1) or a shell's background job has us ignore, the programs under test, which
	// heed that, shall not: what a process catches it does not hand on (execve(2)).
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	os.Exit(m.Run())
}

// sandboxOff tells whether containers run with --sandbox off (SLIPWAY_E2E_SANDBOX=off): a
// binary that was built with cgo, as the race detector needs, cannot lock itself down.
func sandboxOff() bool { return os.Getenv("SLIPWAY_E2E_SANDBOX") == "off" }

// withHelper are the options of run that put the test binary into a container, and
// inContainer the command that becomes a helper there.
func withHelper(t *testing.T, name string) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{"-v", exe + ":/e2e:ro", "-e", helperEnv + "=" + name}
}

// output collects what a process writes, for waiting and for a failed test's log.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// process is a started slipway, or a client of it.
type process struct {
	*exec.Cmd
	t      *testing.T
	stdout output
	stderr output
	done   chan struct{}
	err    error // valid once done is closed
}

// slipway starts `slipway args…`; it is gone when the test ends.
func slipway(t *testing.T, args ...string) *process {
	t.Helper()
	return start(t, exec.Command(os.Getenv("SLIPWAY_BIN"), args...))
}

// start starts cmd in a process group of its own, without standard input.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, t: t, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.stderr
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	// A descendant that keeps the pipes open must not hold Wait up.
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", cmd, err)
	}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
		// What the race detector of a binary built with it has found.
		if strings.Contains(p.stderr.String(), "WARNING: DATA RACE") {
			t.Errorf("%s has a data race", cmd)
		}
		if t.Failed() {
			t.Logf("%s\nstdout:\n%s\nstderr:\n%s", cmd, &p.stdout, &p.stderr)
		}
	})
	return p
}

// wait waits for the end of p and returns its exit status, 128+n for a signal.
func (p *process) wait() int {
	p.t.Helper()
	return p.waitWithin(3 * patience)
}

// waitWithin is wait for what takes longer.
func (p *process) waitWithin(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		p.t.Fatalf("%s did not end", p.Cmd)
	}
	var exit *exec.ExitError
	switch {
	case p.err == nil || errors.Is(p.err, exec.ErrWaitDelay):
		return 0
	case errors.As(p.err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal())
		}
		return exit.ExitCode()
	}
	p.t.Fatalf("wait for %s: %v", p.Cmd, p.err)
	return -1
}

// eventually polls until ok, which is for conditions that nothing announces.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, within)
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
}

// says waits until p has written text.
func (p *process) says(text string) {
	p.t.Helper()
	eventually(p.t, patience, fmt.Sprintf("%q from %s", text, p.Cmd), func() bool {
		select {
		case <-p.done:
			if !strings.Contains(p.stdout.String()+p.stderr.String(), text) {
				p.t.Fatalf("%s ended (%v) without saying %q", p.Cmd, p.err, text)
			}
		default:
		}
		return strings.Contains(p.stdout.String()+p.stderr.String(), text)
	})
}

// freeTCP is a TCP port of the host on which nobody listens, and that the kernel gives
// to nobody else who asks for any: until the end of the test a socket is bound to it
// with SO_REUSEADDR (socket(7)), beside which a listener with that option can be.
func freeTCP(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
	); err != nil {
		t.Fatal(err)
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return addr.(*unix.SockaddrInet4).Port
}

// freePort is freeTCP in words.
func freePort(t *testing.T) string {
	t.Helper()
	return strconv.Itoa(freeTCP(t))
}

// scrape reads metrics from a unix socket and returns the value of each line by
// its name with labels.
func scrape(t *testing.T, socket string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		if i := strings.LastIndexByte(strings.TrimSpace(line), ' '); i > 0 && line[0] != '#' {
			out[line[:i]] = strings.TrimSpace(line[i+1:])
		}
	}
	return out
}

// metricsSocket is a path short enough for a unix socket.
func metricsSocket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "slw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "m.sock")
}

// descendants are the pids below pid, itself not among them, with their command
// lines.
func descendants(t *testing.T, pid int) map[int]string {
	t.Helper()
	found, err := below(pid)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// below is descendants for a helper.
func below(pid int) (map[int]string, error) {
	parent, name := make(map[int]int), make(map[int]string)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		var p, pp int
		if _, err := fmt.Sscan(e.Name(), &p); err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // gone meanwhile
		}
		// comm is in parentheses and may hold anything: proc_pid_stat(5).
		rest := string(b[bytes.LastIndexByte(b, ')')+1:])
		var state string
		if _, err := fmt.Sscan(rest, &state, &pp); err != nil || state == "Z" {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		parent[p] = pp
		name[p] = strings.TrimRight(strings.ReplaceAll(string(cmdline), "\x00", " "), " ")
	}
	out := make(map[int]string)
	for p := range parent {
		for q := parent[p]; q > 1; q = parent[q] {
			if q == pid {
				out[p] = name[p]
				break
			}
		}
	}
	return out, nil
}

// startReady is start for a network with --ready-fd=3, and returns once that says it is
// ready. The files begin at descriptor 4.
func startReady(t *testing.T, cmd *exec.Cmd, files ...*os.File) *process {
	t.Helper()
	ready, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	cmd.ExtraFiles = append([]*os.File{w}, files...)
	p := start(t, cmd)
	w.Close()
	if err := ready.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	// The end of the file says that nobody else kept the descriptor.
	if b, err := io.ReadAll(ready); err != nil || string(b) != "1" {
		t.Fatalf("ready descriptor: %q, %v; want one byte\n%s", b, err, &p.stderr)
	}
	return p
}

// child is the descendant of pid whose command line ends in name; it waits for one.
func child(t *testing.T, pid int, name string) int {
	t.Helper()
	return find(t, pid, "a process "+name, func(cmdline string) bool { return strings.HasSuffix(cmdline, name) })
}

// find is child with a condition; what it looks for is for a failed test's log.
func find(t *testing.T, pid int, what string, is func(cmdline string) bool) int {
	t.Helper()
	found := 0
	eventually(t, patience, what, func() bool {
		// A child that was forked and does not execute anything else, or not yet, looks
		// like its parent: there are two for a moment.
		matches := 0
		for p, cmdline := range descendants(t, pid) {
			if is(cmdline) {
				found = p
				matches++
			}
		}
		return matches == 1
	})
	return found
}

// median is that of an odd number of measurements.
func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}
