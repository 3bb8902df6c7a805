//go:build e2e

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// TestSlirp4netns runs the scripts of testdata/slirp4netns, the contract of the
// drop-in, on Slipway and on slirp4netns itself where that is installed. What they
// differ in stands in the scripts behind [upstream] and [!upstream].
//
// Beside testscript's own, a script has these commands; S4 is the program.
//
//	refused usage|plain TEXT ARGS…  S4 ARGS exits with 1, says TEXT on stderr (ARGV0: its
//	                                name, \n: a new line), and the usage on stdout or not
//	status N COMMAND…               the command exits with N
//	start ARGS…                     S4 ARGS with pipes as descriptors 3, or 10 with -r 10, (ready) and 4 (exit)
//	ready                           it has written 1, and closed the descriptor
//	not-ready                       it has closed the descriptor only
//	end                             closes the other side of descriptor 4
//	signal NAME                     TERM, INT, HUP, USR1, QUIT
//	running                         it has not ended
//	ended N                         it ends with status N; stdout and stderr are its own
//	api REQUEST REPLY               on $WORK/api.sock; in both, $HOST is a loopback address
//	                                that only scripts of the same program use
//	kill-target                     ends the process in the namespace
//	inside N COMMAND…               as status, in the target's network namespace
//
// TARGET is a process in namespaces of its own, GONE one that has ended, PID that of start.
func TestSlirp4netns(t *testing.T) {
	t.Parallel()
	scripts, err := filepath.Glob("testdata/slirp4netns/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for i, name := range []string{"slipway", "upstream"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := os.Getenv("SLIPWAY_BIN")
			if name == "upstream" {
				path = upstream(t)
			}
			for _, script := range scripts {
				t.Run(strings.TrimSuffix(filepath.Base(script), ".txtar"), func(t *testing.T) {
					t.Parallel()
					c := &contract{t: t, name: name, program: path, target: newTarget(t), host: fmt.Sprintf("127.57.0.%d", 1+i)}
					c.script(script)
				})
			}
		})
	}
}

// TestSlirp4netnsStuckEngine: the program ends also where its engine does not. In the
// sandbox not every thread of it may send the engine a signal.
func TestSlirp4netnsStuckEngine(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "slirp4netns")
	if err := os.Symlink(os.Getenv("SLIPWAY_BIN"), link); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string][]string{"free": nil, "sandboxed": {"--enable-sandbox", "--enable-seccomp"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startReady(t, exec.Command(link, append(options, "-c", "--ready-fd=3", strconv.Itoa(newTarget(t).Process.Pid), "tap0")...))
			engine := child(t, p.Process.Pid, "slipway engine")
			for _, kill := range []struct {
				pid    int
				signal syscall.Signal
			}{{engine, syscall.SIGSTOP}, {p.Process.Pid, syscall.SIGTERM}} {
				if err := syscall.Kill(kill.pid, kill.signal); err != nil {
					t.Fatal(err)
				}
			}
			if status, want := p.waitWithin(patience), 128+int(syscall.SIGTERM); status != want {
				t.Errorf("exit status %d, want %d", status, want)
			}
			if err := syscall.Kill(engine, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("the engine is still there: %v", err)
			}
		})
	}
}

// TestStuckStderr: standard error that nobody reads stops neither the replacement of an
// engine nor the end.
func TestStuckStderr(t *testing.T) {
	t.Parallel()
	unread, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "slirp4netns", "-c", "--ready-fd=3", strconv.Itoa(newTarget(t).Process.Pid), "tap0")
	cmd.Stderr = stderr
	p := startReady(t, cmd)
	stderr.Close()
	engine := child(t, p.Process.Pid, "slipway engine")
	// Opened again, that it does not block is only so here.
	fill, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", unread.Fd()), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for piece := make([]byte, 4096); err == nil; {
		_, err = syscall.Write(int(fill.Fd()), piece)
	}
	if !errors.Is(err, syscall.EAGAIN) {
		t.Fatal(err)
	}
	if err := syscall.Kill(engine, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "another engine", func() bool {
		for pid, cmdline := range descendants(t, p.Process.Pid) {
			if pid != engine && strings.HasSuffix(cmdline, "slipway engine") {
				return true
			}
		}
		return false
	})
	if err := syscall.Kill(p.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status, want := p.waitWithin(patience), 128+int(syscall.SIGTERM); status != want {
		t.Errorf("exit status %d, want %d", status, want)
	}
}

// upstream finds slirp4netns itself.
func upstream(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("slirp4netns")
	if err != nil {
		t.Skip("slirp4netns is not installed: no comparison")
	}
	version, err := exec.Command(path, "--version").Output()
	if err != nil || strings.Contains(string(version), "slipway") {
		t.Skipf("%s is not slirp4netns itself: no comparison", path)
	}
	return path
}

// contract is what the commands of one script share.
type contract struct {
	t       *testing.T
	name    string
	program string
	target  *agent

	host  string   // a loopback address that the other program does not use
	s4    string   // a link to program
	p     *process // of start
	ready *os.File
	exit  *os.File
}

// script runs one.
func (c *contract) script(file string) {
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		c.t.Fatal(err)
	}
	testscript.Run(c.t, testscript.Params{
		Files: []string{file},
		Setup: func(env *testscript.Env) error {
			c.s4 = filepath.Join(env.WorkDir, "bin", "slirp4netns")
			env.Setenv("S4", c.s4)
			env.Setenv("TARGET", strconv.Itoa(c.target.Process.Pid))
			env.Setenv("GONE", strconv.Itoa(gone.Process.Pid))
			env.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
			if err := os.Mkdir(filepath.Dir(c.s4), 0o755); err != nil {
				return err
			}
			return os.Symlink(c.program, c.s4)
		},
		Condition: func(cond string) (bool, error) {
			if cond == "upstream" {
				return c.name == cond, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"refused":     c.refused,
			"status":      c.status,
			"start":       c.start,
			"ready":       c.isReady,
			"not-ready":   c.notReady,
			"end":         c.end,
			"signal":      c.signal,
			"running":     c.running,
			"ended":       c.ended,
			"api":         c.api,
			"kill-target": c.killTarget,
			"inside":      c.inside,
		},
		RequireExplicitExec: true,
	})
}

// want says how a command is written when it has fewer arguments than n.
func want(ts *testscript.TestScript, args []string, n int, synopsis string) {
	if len(args) < n {
		ts.Fatalf("usage: %s", synopsis)
	}
}

// run executes a command for stdout and stderr of the script, and returns its status.
func (c *contract) run(ts *testscript.TestScript, args []string) int {
	err := ts.Exec(args[0], args[1:]...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	ts.Fatalf("%q: %v", args, err)
	return -1
}

func (c *contract) status(ts *testscript.TestScript, _ bool, args []string) {
	want(ts, args, 2, "status N COMMAND...")
	if got := c.run(ts, args[1:]); strconv.Itoa(got) != args[0] {
		ts.Fatalf("%q: exit status %d, want %s", args[1:], got, args[0])
	}
}

func (c *contract) refused(ts *testscript.TestScript, _ bool, args []string) {
	want(ts, args, 2, "refused usage|plain TEXT ARGS...")
	how, text, args := args[0], args[1], args[2:]
	if status := c.run(ts, append([]string{c.s4}, args...)); status != 1 {
		ts.Fatalf("%q: exit status %d, want 1", args, status)
	}
	text = strings.NewReplacer("ARGV0", c.s4, `\n`, "\n").Replace(text)
	if got := strings.TrimSuffix(ts.ReadFile("stderr"), "\n"); got != text {
		ts.Fatalf("%q: stderr %q, want %q", args, got, text)
	}
	usage := strings.Contains(ts.ReadFile("stdout"), "Usage: "+c.s4+" [OPTION]... PID|PATH")
	if usage != (how == "usage") {
		ts.Fatalf("%q: the usage is there: %v; want %s", args, usage, how)
	}
}

func (c *contract) start(ts *testscript.TestScript, _ bool, args []string) {
	c.closePipes()
	readyR, readyW, err := os.Pipe()
	ts.Check(err)
	exitR, exitW, err := os.Pipe()
	ts.Check(err)
	c.ready, c.exit = readyR, exitW
	c.t.Cleanup(c.closePipes)
	cmd := exec.Command(c.s4, args...)
	cmd.Dir = ts.MkAbs(".")
	readyAt := 3
	if i := slices.Index(args, "-r"); i >= 0 && args[i+1] == "10" {
		readyAt = 10
	}
	const first = 3 // descriptor of ExtraFiles
	cmd.ExtraFiles = make([]*os.File, 10-first+1)
	cmd.ExtraFiles[4-first], cmd.ExtraFiles[readyAt-first] = exitR, readyW
	c.p = start(c.t, cmd)
	ts.Setenv("PID", strconv.Itoa(c.p.Process.Pid))
	readyW.Close()
	exitR.Close()
}

func (c *contract) closePipes() {
	for _, f := range []*os.File{c.ready, c.exit} {
		if f != nil {
			f.Close()
		}
	}
}

func (c *contract) isReady(ts *testscript.TestScript, _ bool, _ []string)  { c.heard(ts, "1") }
func (c *contract) notReady(ts *testscript.TestScript, _ bool, _ []string) { c.heard(ts, "") }

func (c *contract) heard(ts *testscript.TestScript, text string) {
	ts.Check(c.ready.SetReadDeadline(time.Now().Add(patience)))
	b, err := io.ReadAll(c.ready) // its end: nobody else kept the descriptor
	if err != nil || string(b) != text {
		ts.Fatalf("ready descriptor: %q, %v; want %q\n%s", b, err, text, &c.p.stderr)
	}
}

func (c *contract) end(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(c.exit.Close()) }

func (c *contract) signal(ts *testscript.TestScript, _ bool, args []string) {
	want(ts, args, 1, "signal NAME")
	sig := unix.SignalNum("SIG" + args[0])
	if sig == 0 {
		ts.Fatalf("no signal %s", args[0])
	}
	ts.Check(syscall.Kill(c.p.Process.Pid, sig))
}

func (c *contract) running(ts *testscript.TestScript, _ bool, _ []string) {
	select {
	case <-c.p.done:
		ts.Fatalf("it has ended: %v\n%s", c.p.err, &c.p.stderr)
	default:
	}
}

func (c *contract) ended(ts *testscript.TestScript, _ bool, args []string) {
	want(ts, args, 1, "ended N")
	status := c.p.wait()
	io.WriteString(ts.Stdout(), c.p.stdout.String())
	io.WriteString(ts.Stderr(), c.p.stderr.String())
	if strconv.Itoa(status) != args[0] {
		ts.Fatalf("exit status %d, want %s\n%s", status, args[0], &c.p.stderr)
	}
}

func (c *contract) api(ts *testscript.TestScript, _ bool, args []string) {
	want(ts, args, 2, "api REQUEST REPLY")
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: ts.MkAbs("api.sock")})
	ts.Check(err)
	defer conn.Close()
	ts.Check(conn.SetDeadline(time.Now().Add(patience)))
	request, reply := strings.ReplaceAll(args[0], "$HOST", c.host), strings.ReplaceAll(args[1], "$HOST", c.host)
	_, err = io.WriteString(conn, request+"\n")
	ts.Check(err)
	ts.Check(conn.CloseWrite())
	b, err := io.ReadAll(conn)
	if err != nil || string(b) != reply {
		ts.Fatalf("%s:\n got %s, %v\nwant %s", request, b, err, reply)
	}
}

func (c *contract) killTarget(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(c.target.Process.Kill())
	<-c.target.done
}

func (c *contract) inside(ts *testscript.TestScript, _ bool, args []string) {
	want(ts, args, 2, "inside N COMMAND...")
	enter := []string{"nsenter", "-t", strconv.Itoa(c.target.Process.Pid), "-n"}
	// Root keeps what it may do with /dev/net/tun; a user has to become root in there.
	if os.Getuid() != 0 {
		enter = append(enter, "-U", "--preserve-credentials")
	}
	if got := c.run(ts, append(enter, args[1:]...)); strconv.Itoa(got) != args[0] {
		ts.Fatalf("%q in the target's namespace: exit status %d, want %s", args[1:], got, args[0])
	}
}
