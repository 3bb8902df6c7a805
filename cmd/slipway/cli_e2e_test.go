//go:build e2e

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// TestBadInput wants one clear line with what to do, the right exit status, and
// nothing left behind.
func TestBadInput(t *testing.T) {
	t.Parallel()
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	dead := strconv.Itoa(gone.Process.Pid)
	run := func(args ...string) []string { return append([]string{"run", "--rm"}, args...) }

	for _, tt := range []struct {
		name   string
		args   []string
		status int
		words  []string
	}{
		{"unknown command", []string{"rum"}, 1, []string{"rum", "slipway --help"}},
		{"unknown option", run("--nosuch", "host", "true"), 125, []string{"--nosuch", "slipway run --help"}},
		{"unknown short option", run("-X", "host", "true"), 125, []string{"-X", "slipway run --help"}},
		{"an option of Docker's that we lack", run("--device", "/dev/fuse", "host", "true"), 125, []string{"--device", "slipway run --help"}},
		{"option without its value", run("--mtu"), 125, []string{"--mtu", "slipway run --help"}},
		{"option of attach", []string{"attach", "--nosuch"}, 1, []string{"--nosuch", "slipway attach --help"}},
		{"a role of slirp4netns'", []string{"sandbox"}, 1, []string{"slirp4netns --enable-sandbox"}},
		{"option of no command", []string{"--nosuch"}, 1, []string{"--nosuch", "slipway --help"}},
		{"no image", run(), 125, []string{"no image", "slipway run --rm host"}},
		{"unknown image", run("debian:12", "true"), 125, []string{`"debian:12"`, "host, dir:PATH or oci:PATH"}},
		{"missing directory image", run("dir:/nosuch", "true"), 125, []string{"dir:/nosuch", "no such file"}},
		{"missing OCI image", run("oci:/nosuch", "true"), 125, []string{"oci:/nosuch", "no such file"}},
		{"directory that is no OCI image", run("oci:/usr", "true"), 125, []string{"oci:/usr"}},
		{"unknown user", run("-u", "nosuchuser", "host", "true"), 125, []string{`"nosuchuser"`, "/etc/passwd"}},
		{"unknown group", run("-u", "0:nosuchgroup", "host", "true"), 125, []string{"nosuchgroup", "/etc/group"}},
		{"user id that is not mapped", run("-u", "4000000", "host", "true"), 125, []string{"4000000", "/etc/subuid"}},
		{"unknown capability", run("--cap-add", "fly", "host", "true"), 125, []string{"fly", "capabilities(7)"}},
		{"unknown network", run("--network", "bridge", "host", "true"), 125, []string{`"bridge"`, "private, none or host"}},
		{"port syntax", run("-p", "80:http", "host", "true"), 125, []string{`"80:http"`, "8080:80"}},
		{"port too large", run("-p", "8080:70000", "host", "true"), 125, []string{"70000", "1-65535"}},
		{"port twice", run("-p", "8080:80", "-p", "8080:81", "host", "true"), 125, []string{"8080", "another host port"}},
		{"port protocol", run("-p", "80/sctp", "host", "true"), 125, []string{"sctp", "tcp and udp"}},
		{"port ranges of two lengths", run("-p", "8000-8002:80-81", "host", "true"), 125, []string{"8000-8002:80-81", "8000-8010:80-90"}},
		{"address of another machine", run("-p", "192.0.2.77:8080:80", "host", "true"), 125, []string{"192.0.2.77:8080", "no interface", "ip address"}},
		{"volume that is not there", run("-v", "/nosuch:/x", "host", "true"), 125, []string{"/nosuch", "mkdir -p"}},
		{"volume by name", run("-v", "data:/x", "host", "true"), 125, []string{`"data"`, "./"}},
		{"volume without a target", run("-v", "/tmp", "host", "true"), 125, []string{"SOURCE:TARGET"}},
		{"volume option", run("-v", "/tmp:/x:rx", "host", "true"), 125, []string{`"rx"`, "ro"}},
		{"working directory", run("-w", "relative", "host", "true"), 125, []string{`"relative"`, "absolute"}},
		{"working directory that is a file", run("-w", "/etc/hostname", "host", "true"), 125, []string{"/etc/hostname", "not a directory"}},
		{"environment", run("-e", "=x", "host", "true"), 125, []string{"NAME=VALUE"}},
		{"host name", run("--hostname", "a b", "host", "true"), 125, []string{`"a b"`}},
		{"MTU", run("--mtu", "70000", "host", "true"), 125, []string{"70000", "1280", "65520"}},
		{"MTU that is no number", run("--mtu", "big", "host", "true"), 125, []string{"big", "--mtu"}},
		{"network's address", run("--cidr", "10.0.2.0/31", "host", "true"), 125, []string{"10.0.2.0/31"}},
		{"offload", run("--offload", "some", "host", "true"), 125, []string{`"some"`, "auto or off"}},
		{"publish path", run("--publish-path", "some", "host", "true"), 125, []string{`"some"`, "auto, kernel or tap"}},
		{"host access", run("--host-access", "some", "host", "true"), 125, []string{`"some"`, "loopback"}},
		{"sandbox", run("--sandbox", "some", "host", "true"), 125, []string{`"some"`, "on or off"}},
		{"metrics", run("--metrics", "some", "host", "true"), 125, []string{"some", "unix:PATH"}},
		{"metrics in a directory that is not there", run("--metrics", "unix:/nosuch/m", "host", "true"), 125, []string{"/nosuch/m", "no such file"}},
		{"option without its network", run("--network", "none", "-p", "8080:80", "host", "true"), 125, []string{"--publish", "--network none"}},
		{"sandbox without its network", run("--network", "none", "--sandbox", "off", "host", "true"), 125, []string{"--sandbox", "--network none"}},
		{"to stay in the end", []string{"run", "--rm=false", "host", "true"}, 125, []string{"--rm=false"}},
		{"terminal without one", run("-it", "host", "true"), 125, []string{"-t", "not a terminal"}},
		{"unknown program", run("host", "nosuchprogram"), 127, []string{`"nosuchprogram"`, "not found", "PATH="}},
		{"missing program", run("host", "/nosuch"), 127, []string{"/nosuch", "no such file"}},
		{"program that is none", run("host", "/etc/hostname"), 126, []string{"/etc/hostname", "permission denied"}},
		{"attach to nothing", []string{"attach"}, 1, []string{"pid", "netns"}},
		{"attach to a dead process", []string{"attach", "--pid", dead}, 1, []string{dead, "no such process"}},
		{"attach to pid 0", []string{"attach", "--pid", "0"}, 1, []string{"pid 0", "positive"}},
		{"attach to a missing file", []string{"attach", "--netns", "/nosuch"}, 1, []string{"/nosuch", "no such file"}},
		{"attach to what is no namespace", []string{"attach", "--netns", "/etc/passwd"}, 1, []string{"/etc/passwd", "no network namespace"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := inNursery(t, tt.args...)
			if status := p.wait(); status != tt.status {
				t.Errorf("exit status %d, want %d", status, tt.status)
			}
			oneLine(t, p.stderr.String(), tt.words...)
			if out := p.stdout.String(); out != "" {
				t.Errorf("standard output has %q", out)
			}
			p.leftNothing()
		})
	}
}

// inOtherNamespaces is a command that changes its own mounts by a shell script, and
// becomes slipway, in a network namespace of its own. For an ordinary user that takes
// a user namespace.
func inOtherNamespaces(script string, args ...string) []string {
	options := "-mn"
	if os.Getuid() != 0 {
		options = "-Urmn"
	}
	return append([]string{"unshare", options, "--propagation", "private", "sh", "-c", script + ` && exec "$0" "$@"`, os.Getenv("SLIPWAY_BIN")}, args...)
}

// TestTAPThatCannotBeOpened hides the device in several ways.
func TestTAPThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, script string
		words        []string
	}{
		{"missing", "mount -t tmpfs none /dev/net", []string{"/dev/net/tun", "no such file", "sudo modprobe tun"}},
		{"another device", "mount --bind /dev/null /dev/net/tun", []string{"/dev/net/tun"}},
		// Another user's file of mode 0640 is as closed as a node of mode 0600.
		{"closed", "mount --bind /etc/shadow /dev/net/tun", []string{"/dev/net/tun", "permission denied", "sudo chmod 0666"}},
	} {
		for _, command := range []struct {
			name   string
			args   []string
			status int
		}{
			{"run", []string{"run", "--rm", "host", "echo", "ran"}, 125},
			{"run without offload", []string{"run", "--rm", "--offload", "off", "host", "echo", "ran"}, 125},
			{"attach", []string{"attach", "--netns", "/proc/self/ns/net"}, 1},
		} {
			t.Run(tt.name+" "+command.name, func(t *testing.T) {
				if tt.name == "closed" && os.Getuid() == 0 {
					t.Skip("nothing is closed to root")
				}
				t.Parallel()
				p := commandInNursery(t, nil, inOtherNamespaces(tt.script, command.args...)...)
				if status := p.wait(); status != command.status {
					t.Errorf("exit status %d, want %d", status, command.status)
				}
				stderr := p.stderr.String()
				if os.Getuid() != 0 && command.status == 125 {
					// In a user namespace there is one id to give, which is said first.
					_, stderr, _ = strings.Cut(stderr, "\n")
				}
				oneLine(t, stderr, tt.words...)
				if out := p.stdout.String(); out != "" {
					t.Errorf("the workload printed %q", out)
				}
				p.leftNothing()
			})
		}
	}
}

func TestAttachWithABadDescriptor(t *testing.T) {
	t.Parallel()
	for _, option := range []string{"--ready-fd", "--exit-fd"} {
		p := commandInNursery(t, nil, inOtherNamespaces("true", "attach", "--netns", "/proc/self/ns/net", option, "77")...)
		if status := p.wait(); status != 1 {
			t.Errorf("exit status %d, want 1", status)
		}
		oneLine(t, p.stderr.String(), option+" 77", "bad file descriptor")
		p.leftNothing()
	}
}

// TestNoNewuidmap: without the helper one id is left, which is said with the fix.
func TestNoNewuidmap(t *testing.T) {
	t.Parallel()
	if os.Getuid() == 0 {
		t.Skip("root writes its id maps itself")
	}
	needsSubIDs(t)
	p := commandInNursery(t, []string{"PATH=/nosuch"}, os.Getenv("SLIPWAY_BIN"), "run", "--rm", "host", "sh", "-c", "id -u; cat /proc/self/uid_map")
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	lines := strings.SplitAfter(p.stderr.String(), "\n")
	if !strings.Contains(lines[0], "only user id 0") || !strings.Contains(lines[0], "newuidmap is not installed") || !strings.Contains(lines[0], "uidmap") {
		t.Errorf("standard error: %q", &p.stderr)
	}
	if got, want := strings.Join(strings.Fields(p.stdout.String()), " "), fmt.Sprintf("0 0 %d 1", os.Getuid()); got != want {
		t.Errorf("id and uid_map are %q, want %q", got, want)
	}
	p.leftNothing()

	// Who needs another id is told what to do.
	p = commandInNursery(t, []string{"PATH=/nosuch"}, os.Getenv("SLIPWAY_BIN"), "run", "--rm", "-u", "1", "host", "id")
	if status := p.wait(); status != 125 {
		t.Errorf("exit status %d with -u 1, want 125", status)
	}
	if got := p.stderr.String(); !strings.Contains(got, "id 1 does not exist in the container") {
		t.Errorf("standard error with -u 1: %q", got)
	}
	p.leftNothing()
}

// trapped prints the names of the signals that it gets, ends with the number of those
// that end a program politely, and shows its terminal's size when it changes.
const trapped = `for s in HUP QUIT USR1; do trap "echo got $s" $s; done
trap 'echo got TERM; exit 15' TERM
trap 'echo got INT; exit 2' INT
trap 'stty size' WINCH
echo ready
while :; do sleep 1000 & wait $!; done`

func TestSignalsReachTheWorkload(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"private", "none"} {
		for _, tt := range []struct {
			signal syscall.Signal
			name   string
			status int // -1: it goes on
		}{
			{unix.SIGINT, "INT", 2},
			{unix.SIGTERM, "TERM", 15},
			{unix.SIGHUP, "HUP", -1},
			{unix.SIGQUIT, "QUIT", -1},
			{unix.SIGUSR1, "USR1", -1},
		} {
			t.Run(network+" "+tt.name, func(t *testing.T) {
				t.Parallel()
				p := slipway(t, "run", "--rm", "--network", network, "host", "sh", "-c", trapped)
				p.says("ready")
				if err := p.Process.Signal(tt.signal); err != nil {
					t.Fatal(err)
				}
				p.says("got " + tt.name)
				want := tt.status
				if want < 0 {
					want = 15
					if err := p.Process.Signal(unix.SIGTERM); err != nil {
						t.Fatal(err)
					}
				}
				if status := p.wait(); status != want {
					t.Errorf("exit status %d, want %d", status, want)
				}
			})
		}
	}
}

// TestCtrlCForTheWholeGroup is Ctrl-C at a terminal without -t: the terminal signals
// every process of the foreground group.
func TestCtrlCForTheWholeGroup(t *testing.T) {
	t.Parallel()
	p := slipway(t, "run", "--rm", "host", "sh", "-c", trapped)
	p.says("ready")
	if err := syscall.Kill(-p.Process.Pid, unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if status := p.wait(); status != 2 {
		t.Errorf("exit status %d, want the workload's 2: monitor and engine must not take the signal", status)
	}
	if got := p.stdout.String(); got != "ready\ngot INT\n" {
		t.Errorf("the workload printed %q, want one signal", got)
	}
	if got := p.stderr.String(); got != "" {
		t.Errorf("standard error: %q", got)
	}
}

func TestSignalOfTheWorkloadIsTheStatus(t *testing.T) {
	t.Parallel()
	p := slipway(t, "run", "--rm", "host", "sh", "-c", "echo up; exec sleep 613")
	p.says("up")
	// pid 1 of a namespace has no default actions but for SIGKILL, pid_namespaces(7).
	if err := syscall.Kill(child(t, p.Process.Pid, "sleep 613"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := p.wait(); status != 137 {
		t.Errorf("exit status %d, want 137", status)
	}
}

// TestThreeTimesIsHeeded: who does not listen to SIGINT is killed by the third.
func TestThreeTimesIsHeeded(t *testing.T) {
	t.Parallel()
	p := slipway(t, "run", "--rm", "host", "sh", "-c", "echo up; exec sleep 614")
	p.says("up")
	child(t, p.Process.Pid, "sleep 614")
	p.insist(unix.SIGINT)
	if got := p.stderr.String(); !strings.Contains(got, "killing the container") {
		t.Errorf("standard error: %q", got)
	}
}

// insist sends a signal until the process has ended. That is with the status of a killed
// workload, or by the signal when one more comes after all is done.
func (p *process) insist(n syscall.Signal) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if err := p.Process.Signal(n); err != nil && !errors.Is(err, os.ErrProcessDone) {
			p.t.Fatal(err)
		}
		select {
		case <-p.done:
			if status := p.wait(); status != 137 && status != 128+int(n) {
				p.t.Errorf("exit status %d, want 137 or %d", status, 128+int(n))
			}
			return
		case <-time.After(20 * time.Millisecond): // signals that are pending together are one signal
		}
	}
	p.t.Fatal("still there")
}

// terminalSession is a slipway whose terminal the test holds the other end of.
type terminalSession struct {
	*process
	master *os.File
}

// atTerminal starts `slipway args…` in a session of its own with a terminal of
// rows × cols, which is its standard input, output and error.
func atTerminal(t *testing.T, size pty.Winsize, args ...string) *terminalSession {
	t.Helper()
	return commandAtTerminal(t, size, append([]string{os.Getenv("SLIPWAY_BIN")}, args...)...)
}

func commandAtTerminal(t *testing.T, size pty.Winsize, args ...string) *terminalSession {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	p := &process{Cmd: cmd, t: t, done: make(chan struct{})}
	master, err := pty.StartWithSize(cmd, &size)
	if err != nil {
		t.Fatal(err)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(&p.stdout, master) // EIO when the last slave closes
	}()
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
		<-copied
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
		master.Close()
		if t.Failed() {
			t.Logf("%s\nterminal:\n%s", cmd, &p.stdout)
		}
	})
	return &terminalSession{p, master}
}

// types writes to the terminal as a person would.
func (s *terminalSession) types(keys string) {
	s.t.Helper()
	if _, err := s.master.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	const ctrlC, ctrlD = "\x03", "\x04"
	size := pty.Winsize{Rows: 33, Cols: 111}

	t.Run("Ctrl-C with -it", func(t *testing.T) {
		t.Parallel()
		s := atTerminal(t, size, "run", "--rm", "-it", "host", "sh", "-c", "tty; stty size; "+trapped)
		s.says("ready")
		for _, want := range []string{"/dev/pts/0", "33 111"} {
			if !strings.Contains(s.stdout.String(), want) {
				t.Errorf("the terminal does not show %q", want)
			}
		}
		if err := pty.Setsize(s.master, &pty.Winsize{Rows: 44, Cols: 99}); err != nil {
			t.Fatal(err)
		}
		s.says("44 99")
		s.types(ctrlC)
		if status := s.wait(); status != 2 {
			t.Errorf("exit status %d, want 2", status)
		}
		if !strings.Contains(s.stdout.String(), "got INT") {
			t.Error("the workload got no SIGINT")
		}
	})
	t.Run("Ctrl-C with -t", func(t *testing.T) {
		t.Parallel()
		s := atTerminal(t, size, "run", "--rm", "-t", "host", "sh", "-c", trapped)
		s.says("ready")
		s.types(ctrlC)
		if status := s.wait(); status != 2 || !strings.Contains(s.stdout.String(), "got INT") {
			t.Errorf("exit status %d, want 2 and a SIGINT", status)
		}
	})
	t.Run("no terminal without -t", func(t *testing.T) {
		t.Parallel()
		s := atTerminal(t, size, "run", "--rm", "host", "sh", "-c", "test -t 1 || test -t 2 || echo none; echo one >&2; echo two")
		if status := s.wait(); status != 0 {
			t.Errorf("exit status %d", status)
		}
		if got, want := s.stdout.String(), "none\r\none\r\ntwo\r\n"; got != want {
			t.Errorf("the terminal shows %q, want %q", got, want)
		}
	})
	t.Run("nobody reads", func(t *testing.T) {
		t.Parallel()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "-t", "host", "yes")
		cmd.Stdout = w
		p := start(t, cmd)
		w.Close()
		if _, err := r.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		r.Close()
		p.wait() // the workload's terminal is hung up
	})
	for name, flags := range map[string][]string{"a terminal": {"-t"}, "a terminal and its input": {"-it"}} {
		t.Run(name+" that others hold", func(t *testing.T) {
			t.Parallel()
			s := atTerminal(t, size, slices.Concat([]string{"run", "--rm"}, flags, []string{"host", "sh", "-c", "echo up; exec sleep 615"})...)
			s.says("up")
			workload := child(t, s.Process.Pid, "sleep 615")
			// As somebody would to whom the workload has passed it, SCM_RIGHTS in unix(7).
			held, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", workload), os.O_WRONLY|unix.O_NOCTTY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer held.Close()
			if err := syscall.Kill(workload, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			s.insist(unix.SIGTERM)
			if !strings.Contains(s.stdout.String(), "not waiting for the rest of") {
				t.Error("it does not say that it gives the output up")
			}
		})
	}
	t.Run("in the background", func(t *testing.T) {
		t.Parallel()
		// A shell with job control, whose job turns to the terminal and is stopped until it gets it.
		s := commandAtTerminal(t, size, "bash", "--norc", "-ic", os.Getenv("SLIPWAY_BIN")+` run --rm -it host sh -c 'echo in''side' & pid=$!
until grep -q '^State:.T' /proc/$pid/status; do sleep 0.05; done; echo stop''ped; fg >/dev/null; echo status $?`)
		s.says("stopped")
		s.says("inside")
		s.says("status 0")
		s.wait()
	})
	t.Run("shell", func(t *testing.T) {
		t.Parallel()
		s := atTerminal(t, size, "run", "--rm", "-it", "host", "sh")
		s.types("echo $((6*7)) in $TERM\r")
		s.says("42 in xterm")
		// The foreground job, not the shell, gets it.
		s.types("sh -c 'trap \"echo caught; exit 5\" INT; echo wait''ing; while :; do sleep 0.05; done'\r")
		s.says("waiting")
		s.types(ctrlC)
		s.says("caught")
		s.types("echo status $?\r")
		s.says("status 5")
		s.types(ctrlD)
		if status := s.wait(); status != 0 {
			t.Errorf("exit status %d, want the last command's 0", status)
		}
	})
	t.Run("the caller's terminal comes back as it was", func(t *testing.T) {
		t.Parallel()
		master, slave, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		defer slave.Close()
		before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "-it", "host", "sh", "-c", "exit 3")
		cmd.Stdin, cmd.Stdout = slave, &bytes.Buffer{}
		if status := start(t, cmd).wait(); status != 3 {
			t.Errorf("exit status %d, want 3", status)
		}
		after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if *before != *after {
			t.Errorf("the terminal's settings were %+v and are %+v", before, after)
		}
	})
}
