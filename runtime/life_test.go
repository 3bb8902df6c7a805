package runtime

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// running is a container whose workload has said that it is up.
type running struct {
	*launched
	lines *bufio.Reader
	ended chan struct{}
}

// up starts a script that must print "up" first.
func up(t *testing.T, cfg Config, text string) *running {
	t.Helper()
	needNamespaces(t)
	cfg.Image = "host"
	cfg.Args = []string{"/bin/sh", "-c", text}
	r := &running{launched: command(t, cfg), ended: make(chan struct{})}
	r.cmd.Stdout = nil
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.cmd.Process.Kill()
		<-r.ended
	})
	r.lines = bufio.NewReader(stdout)
	line, err := r.lines.ReadString('\n')
	if err != nil || line != "up\n" {
		r.cmd.Process.Kill()
		r.cmd.Wait()
		close(r.ended)
		t.Fatalf("got %q, %v, stderr %s", line, err, r.errOut.String())
	}
	go func() {
		r.cmd.Wait()
		close(r.ended)
	}()
	return r
}

// wait returns the launcher's exit status.
func (r *running) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(10 * time.Second):
		t.Fatalf("the launcher does not end; stderr: %s", r.errOut.String())
	}
	return r.cmd.ProcessState.ExitCode()
}

// children are the processes whose parent is pid.
func children(t *testing.T, pid int) []int {
	t.Helper()
	var found []int
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// comm may hold anything, up to the last parenthesis (proc(5)).
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if f[1] == strconv.Itoa(pid) {
			p, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			found = append(found, p)
		}
	}
	slices.Sort(found)
	return found
}

// parts are the workload and the guard of a running container.
func (r *running) parts(t *testing.T) (workload, guard int) {
	t.Helper()
	for _, pid := range children(t, r.cmd.Process.Pid) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.HasPrefix(b, []byte(roleGuard)) {
			guard = pid
		} else {
			workload = pid
		}
	}
	if workload == 0 || guard == 0 {
		t.Fatalf("workload %d, guard %d", workload, guard)
	}
	return workload, guard
}

// innerNamespaces are those a container's process is in and this one is not.
type innerNamespaces map[string]bool

func namespacesOf(t *testing.T, workload int) innerNamespaces {
	t.Helper()
	ns := innerNamespaces{}
	own := map[string]bool{}
	for _, kind := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		mine, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		own[mine] = true
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", workload, kind))
		if err != nil {
			t.Fatal(err)
		}
		if !own[link] {
			ns[link] = true
		}
	}
	return ns
}

// places are the machine's mounts, and the files where launchers like to keep
// state.
func places(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	places := strings.Split(strings.TrimSpace(string(b)), "\n")
	for _, pattern := range []string{os.TempDir() + "/*slipway*", "/run/*slipway*", "/run/user/*/*slipway*", os.Getenv("HOME") + "/.*slipway*", "/dev/shm/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, found...)
	}
	return places
}

// used are those that some process is still in.
func (ns innerNamespaces) used() []string {
	var used []string
	links, _ := filepath.Glob("/proc/[0-9]*/ns/*")
	for _, l := range links {
		if at, err := os.Readlink(l); err == nil && ns[at] {
			used = append(used, l)
		}
	}
	return used
}

// Whoever dies, nothing is left within two seconds. The workload has changed
// its user, which switches the kernel's own parent death signal off.
func TestKillLeavesNothing(t *testing.T) {
	changed := "setpriv --reuid 33 --regid 33 --clear-groups"
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("needs setpriv (util-linux)")
	}
	for name, victim := range map[string]func(r *running, workload, guard int) (pid int, status int){
		"launcher": func(r *running, _, _ int) (int, int) { return r.cmd.Process.Pid, -1 },
		"guard":    func(_ *running, _, guard int) (int, int) { return guard, 125 },
		"workload": func(_ *running, workload, _ int) (int, int) { return workload, 137 },
	} {
		for _, how := range []string{"as root", "as another user"} {
			t.Run(name+" "+how, func(t *testing.T) {
				prefix := ""
				if how == "as another user" {
					needIDs(t)
					prefix = changed
				}
				// Tests of other packages run beside this one, with files of their own.
				t.Setenv("TMPDIR", t.TempDir())
				before := places(t)
				r := up(t, Config{}, "sleep 1000 & exec "+prefix+" sh -c 'echo up; sleep 1000 & sleep 1000'")
				workload, guard := r.parts(t)
				ns := namespacesOf(t, workload)
				if len(ns) != 7 {
					t.Fatalf("namespaces %v, want 7", ns)
				}
				pid, status := victim(r, workload, guard)
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				left := func() bool { return len(ns.used()) > 0 || !gone(workload) || !gone(guard) }
				for end := time.Now().Add(2 * time.Second); left(); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("left after 2 s: namespaces %v, workload gone: %v, guard gone: %v", ns.used(), gone(workload), gone(guard))
					}
				}
				if got := r.wait(t); got != status {
					t.Errorf("status %d, want %d; %s", got, status, r.errOut.String())
				}
				for _, place := range places(t) {
					if !slices.Contains(before, place) {
						t.Errorf("left: %s", place)
					}
				}
			})
		}
	}
}

// gone reports whether a process has ended. Its parent's parent may take its
// time to collect the status: that is init's.
func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.HasPrefix(string(b[bytes.LastIndexByte(b, ')')+1:]), " Z")
}

func TestSignals(t *testing.T) {
	for _, s := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGWINCH} {
		t.Run(unix.SignalName(s), func(t *testing.T) {
			name := strings.TrimPrefix(unix.SignalName(s), "SIG")
			r := up(t, Config{}, "trap 'exit 42' "+name+"; echo up; while :; do sleep 0.05; done")
			if err := r.cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			if got := r.wait(t); got != 42 {
				t.Errorf("status %d, want 42; %s", got, r.errOut.String())
			}
		})
	}
}

// Asking three times in a row is heeded, whatever the workload does.
func TestThirdSignalKills(t *testing.T) {
	r := up(t, Config{}, "trap 'echo no' TERM; echo up; while :; do sleep 0.05; done")
	for i := range forceAfter {
		if err := r.cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if i == forceAfter-1 {
			break
		}
		if line, err := r.lines.ReadString('\n'); err != nil || line != "no\n" {
			t.Fatalf("signal %d: got %q, %v", i+1, line, err)
		}
	}
	if got := r.wait(t); got != 137 {
		t.Errorf("status %d, want 137; %s", got, r.errOut.String())
	}
}

func TestInput(t *testing.T) {
	needNamespaces(t)
	for name, test := range map[string]struct {
		cfg  Config
		want string
	}{
		"with -i": {Config{Interactive: true}, "from outside"}, "without": {Config{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := test.cfg
			cfg.Image, cfg.Args = "host", []string{"cat"}
			r := command(t, cfg)
			r.cmd.Stdin = strings.NewReader("from outside")
			if err := r.cmd.Run(); err != nil || r.out.String() != test.want {
				t.Errorf("got %q, %v, %s", r.out.String(), err, r.errOut.String())
			}
		})
	}
}

func TestTerminal(t *testing.T) {
	needNamespaces(t)
	r := command(t, Config{Image: "host", TTY: true, Interactive: true, Args: []string{"/bin/sh", "-c", `
trap 'stty size; exit 7' WINCH
tty; stty size; [ -c /dev/console ] && echo console; read line; echo "got $line"; echo ready; while :; do sleep 0.05; done`}})
	r.cmd.Stdout, r.cmd.Stderr = nil, nil
	master, err := pty.StartWithSize(r.cmd, &pty.Winsize{Rows: 33, Cols: 99})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	context.AfterFunc(ctx, func() { r.cmd.Process.Kill() })

	var seen strings.Builder
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, 1024)
		for !strings.Contains(seen.String(), want) {
			n, err := master.Read(buf)
			seen.Write(buf[:n])
			if err != nil {
				t.Fatalf("%q not seen: %v in %q", want, err, seen.String())
			}
		}
	}
	expect("/dev/pts/0")
	expect("33 99")
	expect("console")
	if _, err := io.WriteString(master, "hello\r"); err != nil {
		t.Fatal(err)
	}
	expect("got hello")
	expect("ready")
	if err := pty.Setsize(master, &pty.Winsize{Rows: 12, Cols: 34}); err != nil {
		t.Fatal(err)
	}
	expect("12 34")
	r.cmd.Wait()
	if got := r.cmd.ProcessState.ExitCode(); got != 7 {
		t.Errorf("status %d, want 7", got)
	}
}
