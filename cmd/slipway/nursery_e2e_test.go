//go:build e2e

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	helpers["nursery"] = nursery
}

// grace is how soon nothing of a run may be left.
const grace = 2 * time.Second

// orphan is a process that a run has left behind.
type orphan struct {
	PID     int
	Command string
}

// nursery runs a command as its child and adopts every process that the command
// leaves behind, PR_SET_CHILD_SUBREAPER of prctl(2). It writes those that are not
// gone within the grace to the file that is its first argument, kills them, and ends
// as the command did.
func nursery(args []string) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		return err
	}
	left := []orphan{}
	for deadline := time.Now().Add(grace); ; time.Sleep(10 * time.Millisecond) {
		_, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.ECHILD) {
			break
		}
		if time.Now().Before(deadline) {
			continue
		}
		found, err := below(os.Getpid())
		if err != nil {
			return err
		}
		for _, pid := range slices.Sorted(maps.Keys(found)) {
			left = append(left, orphan{pid, found[pid]})
			_ = unix.Kill(pid, unix.SIGKILL) // it may go by itself just now
		}
		break
	}
	b, err := json.Marshal(left)
	if err != nil {
		return err
	}
	if err := os.WriteFile(args[0], b, 0o600); err != nil {
		return err
	}
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		os.Exit(128 + int(ws.Signal()))
	}
	os.Exit(ws.ExitStatus())
	return nil
}

// watched is a run of slipway in a nursery, with every place that is its own to
// write empty and new, so that what it leaves behind can be told.
type watched struct {
	*process
	report string
	places []string // HOME and the like
	before string   // what was in them
	mounts map[string]bool
	shared map[string]bool
	spaces map[string]string // the container's namespaces, after remember
	pids   map[int]string    // its processes, after remember
}

// inNursery starts `slipway args…`.
func inNursery(t *testing.T, args ...string) *watched {
	t.Helper()
	return commandInNursery(t, nil, append([]string{os.Getenv("SLIPWAY_BIN")}, args...)...)
}

// commandInNursery starts a command that becomes slipway, with more environment.
func commandInNursery(t *testing.T, env []string, args ...string) *watched {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "slw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &watched{report: filepath.Join(dir, "report")}
	cmd := exec.Command(exe, append([]string{w.report}, args...)...)
	cmd.Env = append(os.Environ(), helperEnv+"=nursery")
	for _, name := range []string{"HOME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "cwd"} {
		place := filepath.Join(dir, name)
		if err := os.Mkdir(place, 0o700); err != nil {
			t.Fatal(err)
		}
		w.places = append(w.places, place)
		cmd.Env = append(cmd.Env, name+"="+place)
		cmd.Dir = place
	}
	cmd.Env = append(cmd.Env, env...)
	w.mounts, w.shared = mounts(t), sharedFiles(t)
	w.before = w.written(t)
	w.process = start(t, cmd)
	return w
}

// launcher is the pid of the run itself, the nursery's child.
func (w *watched) launcher() int {
	w.t.Helper()
	run := os.Getenv("SLIPWAY_BIN") + " run "
	return find(w.t, w.Process.Pid, "a launcher", func(cmdline string) bool { return strings.HasPrefix(cmdline, run) })
}

func (w *watched) written(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, p := range w.places {
		out.WriteString(listing(t, p))
	}
	return out.String()
}

// mounts are the lines of the test's own mount namespace, which is slipway's.
func mounts(t *testing.T) map[string]bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]bool)
	for line := range strings.Lines(string(b)) {
		out[strings.TrimSpace(line)] = true
	}
	return out
}

// sharedFiles are the files in the directories that all users and tests share which
// can be a run's: of the caller or a sub-id, not a test's own, and for root, who
// has many others, with slipway's name.
func sharedFiles(t *testing.T) map[string]bool {
	t.Helper()
	first, last := subIDs(t)
	out := make(map[string]bool)
	for _, dir := range []string{"/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/run/user", "/var/lib", "/var/cache"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // not on every machine
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				continue // gone meanwhile
			}
			uid := int(info.Sys().(*syscall.Stat_t).Uid)
			ours := uid == os.Getuid() && os.Getuid() != 0 || uid >= first && uid <= last
			tests := slices.ContainsFunc([]string{"slw", "Test", "tmp.", "go-test-script"}, func(own string) bool { return strings.HasPrefix(e.Name(), own) })
			if (ours || strings.Contains(e.Name(), "slipway")) && !tests {
				out[filepath.Join(dir, e.Name())] = true
			}
		}
	}
	return out
}

// remember notes the processes of the run and the namespaces of its workload, whose
// command line is name, and returns the workload's pid.
func (w *watched) remember(name string) int {
	w.t.Helper()
	pid := find(w.t, w.Process.Pid, "a workload", func(cmdline string) bool { return cmdline == name })
	w.pids = descendants(w.t, w.Process.Pid)
	w.spaces = make(map[string]string)
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		path := fmt.Sprintf("/proc/%d/ns/%s", pid, kind)
		// Held, so that no new namespace gets the number of one that has gone.
		f, err := os.Open(path)
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { f.Close() })
		link, err := os.Readlink(path)
		if err != nil {
			w.t.Fatal(err)
		}
		own, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			w.t.Fatal(err)
		}
		if link == own {
			w.t.Errorf("the container has no %s namespace of its own", kind)
			continue
		}
		w.spaces[link] = kind
	}
	return pid
}

// left lists what there is of the run now, each with its kind first. Processes and
// namespaces are those remembered; the nursery sees the rest.
func (w *watched) left() []string {
	w.t.Helper()
	var out []string
	for pid, cmdline := range w.pids {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(b) > 0 && strings.HasPrefix(strings.ReplaceAll(string(b), "\x00", " "), cmdline) {
			out = append(out, fmt.Sprintf("process %d %q", pid, cmdline))
		}
	}
	out = append(out, w.namespacesLeft()...)
	for line := range mounts(w.t) {
		if !w.mounts[line] {
			out = append(out, "mount "+line)
		}
	}
	unixSockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(unixSockets)) {
		for _, p := range w.places {
			if strings.Contains(line, p) {
				out = append(out, "socket "+strings.TrimSpace(line))
			}
		}
	}
	if now := w.written(w.t); now != w.before {
		out = append(out, "state file in:\n"+now)
	}
	for f := range sharedFiles(w.t) {
		if !w.shared[f] {
			out = append(out, "state file or upper directory "+f)
		}
	}
	slices.Sort(out)
	return out
}

// leftWithin waits for nothing to be left, and returns what still is at the deadline.
func (w *watched) leftWithin(deadline time.Time) []string {
	w.t.Helper()
	for {
		left := w.left()
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
}

// namespacesLeft looks for the remembered namespaces in every process that can be
// seen but this one, which holds them: a namespace lives while a process is in it,
// has a descriptor of it, or has it mounted, which mounts would show.
func (w *watched) namespacesLeft() []string {
	var out []string
	own := fmt.Sprintf("/proc/%d/", os.Getpid())
	for _, pattern := range []string{"/proc/[0-9]*/ns/*", "/proc/[0-9]*/fd/*"} {
		links, err := filepath.Glob(pattern)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, l := range links {
			target, err := os.Readlink(l)
			if err != nil {
				continue // gone, or not ours to see
			}
			if kind, ok := w.spaces[target]; ok && !strings.HasPrefix(l, own) {
				out = append(out, fmt.Sprintf("%s namespace: %s is %s", kind, l, target))
			}
		}
	}
	return out
}

// leftNothing waits for the end of the run and for nothing to be left of it.
func (w *watched) leftNothing() {
	w.t.Helper()
	w.wait()
	b, err := os.ReadFile(w.report)
	if err != nil {
		w.t.Fatal(err)
	}
	var orphans []orphan
	if err := json.Unmarshal(b, &orphans); err != nil {
		w.t.Fatal(err)
	}
	for _, o := range orphans {
		w.t.Errorf("left behind: process %d %q", o.PID, o.Command)
	}
	for _, l := range w.leftWithin(time.Now().Add(grace)) {
		w.t.Errorf("left behind: %s", l)
	}
}

// oneLine checks what a person reads: one line of slipway's that has all the words.
func oneLine(t *testing.T, stderr string, words ...string) {
	t.Helper()
	if !strings.HasPrefix(stderr, "slipway: ") || strings.Count(stderr, "\n") != 1 || !strings.HasSuffix(stderr, "\n") {
		t.Errorf("standard error is not one line of slipway's:\n%s", stderr)
	}
	for _, word := range words {
		if !strings.Contains(stderr, word) {
			t.Errorf("standard error does not say %q:\n%s", word, stderr)
		}
	}
}
