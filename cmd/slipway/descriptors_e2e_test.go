//go:build e2e

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// leaked are the numbers at which a caller has its own file open.
var leaked = []int{5, 7, 300}

// leak opens a file of the caller's at those numbers for cmd.
func leak(t *testing.T, cmd *exec.Cmd) (path string) {
	t.Helper()
	path = secret(t, openDir(t), 0o600)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for len(cmd.ExtraFiles) <= slices.Max(leaked)-3 {
		cmd.ExtraFiles = append(cmd.ExtraFiles, nil) // closed
	}
	for _, fd := range leaked {
		cmd.ExtraFiles[fd-3] = f
	}
	return path
}

// holders are the descriptors below a process that are the file, and the command lines of the
// processes that were looked at. It leaves out the process itself and what it has forked
// and has not executed anything yet. Only root can look at those that are not dumpable.
func holders(t *testing.T, of *process, path string) (holders []string, looked map[string]bool) {
	t.Helper()
	looked = map[string]bool{}
	for p, cmdline := range descendants(t, of.Process.Pid) {
		if cmdline == strings.Join(of.Args, " ") {
			continue
		}
		dir := fmt.Sprintf("/proc/%d/fd", p)
		fds, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrPermission) && os.Getuid() != 0 || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		looked[cmdline] = true
		for _, fd := range fds {
			if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && to == path {
				holders = append(holders, fmt.Sprintf("descriptor %s of process %d, %s", fd.Name(), p, cmdline))
			}
		}
	}
	return holders, looked
}

// wantLooked wants a process to have been looked at whose command line ends in name.
func wantLooked(t *testing.T, looked map[string]bool, name string) {
	t.Helper()
	for cmdline := range looked {
		if strings.HasSuffix(cmdline, name) {
			return
		}
	}
	t.Errorf("no process %q among %q", name, slices.Collect(maps.Keys(looked)))
}

// TestCallersDescriptors: what a caller has open is in none of the processes that are
// started for it, whatever its number.
func TestCallersDescriptors(t *testing.T) {
	t.Parallel()
	bin := os.Getenv("SLIPWAY_BIN")
	link := filepath.Join(t.TempDir(), "slirp4netns")
	if err := os.Symlink(bin, link); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args  []string
		ready string   // what the workload prints; "": the network says it at descriptor 3
		seen  []string // processes that an ordinary user can look at
		root  []string // and those that only root can
	}{
		"run":                        {[]string{bin, "run", "--rm", "host", "sh", "-c", "echo up; exec sleep 631"}, "up", []string{"sleep 631"}, []string{" monitor", " engine"}},
		"run -t":                     {[]string{bin, "run", "--rm", "-t", "host", "sh", "-c", "echo up; exec sleep 632"}, "up", []string{"sleep 632"}, []string{" monitor", " engine"}},
		"run, no net":                {[]string{bin, "run", "--rm", "--network", "none", "host", "sh", "-c", "echo up; exec sleep 633"}, "up", []string{"sleep 633"}, []string{"slipway-guard stage"}},
		"run, host":                  {[]string{bin, "run", "--rm", "--network", "host", "host", "sh", "-c", "echo up; exec sleep 634"}, "up", []string{"sleep 634"}, []string{"slipway-guard stage"}},
		"attach":                     {[]string{bin, "attach", "--ready-fd", "3", "--pid", "PID"}, "", nil, []string{" engine"}},
		"slirp4netns":                {[]string{link, "-c", "-r", "3", "PID", "tap0"}, "", nil, []string{" engine"}},
		"sandboxed":                  {[]string{link, "--enable-sandbox", "--enable-seccomp", "-c", "-r", "3", "PID", "tap0"}, "", nil, []string{" engine"}},
		"sandboxed, exit descriptor": {[]string{link, "--enable-sandbox", "-c", "-r", "3", "-e", "6", "PID", "tap0"}, "", nil, []string{" engine"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := slices.Clone(tt.args)
			if i := slices.Index(args, "PID"); i >= 0 {
				args[i] = strconv.Itoa(newTarget(t).Process.Pid)
			}
			cmd := exec.Command(args[0], args[1:]...)
			path := leak(t, cmd)
			var p *process
			if tt.ready != "" {
				p = start(t, cmd)
				p.says(tt.ready)
			} else {
				// startReady has the ready descriptor first.
				exit, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				cmd.ExtraFiles[6-3] = exit
				p = startReady(t, cmd, cmd.ExtraFiles[1:]...)
				exit.Close()
			}
			want := tt.seen
			if os.Getuid() == 0 {
				want = append(want, tt.root...)
			}
			for _, name := range want {
				if strings.HasPrefix(name, "sleep") {
					child(t, p.Process.Pid, name) // it is the workload by now
				}
			}
			found, looked := holders(t, p, path)
			for _, h := range found {
				t.Errorf("the caller's file: %s", h)
			}
			for _, name := range want {
				wantLooked(t, looked, name)
			}
			if strings.HasPrefix(name, "sandboxed") && os.Getuid() == 0 {
				// The process itself was executed again.
				for _, fd := range leaked {
					if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.Process.Pid, fd)); err == nil && to == path {
						t.Errorf("the caller's file: descriptor %d of the sandboxed process itself", fd)
					}
				}
			}
		})
	}
}

// TestCallersDescriptorsInBench is the same for all that a benchmark starts.
func TestCallersDescriptorsInBench(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skip("needs iperf3")
	}
	cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "bench", "--only", "slipway/stream", "--repetitions", "1", "--seconds", "1", "--omit", "0")
	path := leak(t, cmd)
	p := start(t, cmd)
	looked := map[string]bool{}
	for done := false; !done; {
		select {
		case <-p.done:
			done = true
		case <-time.After(5 * time.Millisecond): // between two looks
		}
		found, now := holders(t, p, path)
		for _, h := range found {
			t.Errorf("the caller's file: %s", h)
		}
		if t.Failed() {
			return
		}
		for cmdline := range now {
			looked[cmdline] = true
		}
	}
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	wantLooked(t, looked, "bench inside")
	if os.Getuid() == 0 {
		wantLooked(t, looked, " engine")
	}
}

// TestClosedStreams: a caller that has closed its standard streams gets none of the
// program's own files in their place.
func TestClosedStreams(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	p := start(t, exec.Command("sh", "-c", `exec "$0" run --rm -i -v "$1:/w" host sh -c 'ls -l /proc/self/fd >/w/fds; cat >/w/in; echo out; echo err >&2; echo $? >/w/status; exit 3' <&- >&- 2>&-`, os.Getenv("SLIPWAY_BIN"), dir))
	if status := p.wait(); status != 3 {
		t.Errorf("exit status %d, want 3", status)
	}
	for name, want := range map[string]string{"in": "", "status": "0\n"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v, want %q", name, b, err, want)
		}
	}
	fds, err := os.ReadFile(filepath.Join(dir, "fds"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(fds), " pipe:["); n != 2 {
		t.Errorf("%d of the workload's streams are pipes, want 2: its output went to its own file\n%s", n, fds)
	}
}
