//go:build e2e

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// benchMark is in the environment of every process of a test's slipway bench.
const benchMark = "SLIPWAY_E2E_BENCH"

// marked are the processes that have the mark of a run, with their command lines.
func marked(t *testing.T, mark string) map[int]string {
	t.Helper()
	found := map[int]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || !slices.Contains(strings.Split(string(env), "\x00"), benchMark+"="+mark) {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		found[pid] = strings.ReplaceAll(string(cmdline), "\x00", " ")
	}
	return found
}

// namespaces that processes are in and this one is not, by their names in /proc.
func namespaces(pids []string) map[string]bool {
	kinds := []string{"net", "mnt", "pid", "user", "ipc"}
	found := map[string]bool{}
	for _, pid := range pids {
		for _, kind := range kinds {
			name, err := os.Readlink(filepath.Join("/proc", pid, "ns", kind))
			own, errOwn := os.Readlink(filepath.Join("/proc/self/ns", kind))
			if err == nil && errOwn == nil && name != own {
				found[name] = true
			}
		}
	}
	return found
}

// TestBenchDriverDies kills every driver of a run in the middle of it. Its rows say so,
// those of the host are measured, and no process, namespace, mount or file is left.
func TestBenchDriverDies(t *testing.T) {
	drivers := map[string]string{ // what a driver's command line has in it, by its rows
		"slipway/stream/up":      "slipway attach --pid",
		"slipway/published/down": "slipway run --rm",
	}
	for name, text := range map[string]string{"slirp4netns": "slirp4netns --configure", "pasta": "--config-net"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Logf("not with %s: %v", name, err)
			continue
		}
		drivers[name+"/stream/up"] = text
	}
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skip("iperf3 is not installed: make deps")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	tmp, report := t.TempDir(), filepath.Join(t.TempDir(), "report.json")
	mark := fmt.Sprintf("%s-%d", t.Name(), os.Getpid())
	var only []string
	for id := range drivers {
		only = append(only, id)
	}
	cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "bench", "--seconds", "1", "--repetitions", "2",
		"--only", strings.Join(only, ","), "--json", report)
	cmd.Env = append(os.Environ(), benchMark+"="+mark, "TMPDIR="+tmp)
	p := start(t, cmd)

	// The second line of progress comes with the first row that counts: all are set up.
	eventually(t, 2*time.Minute, "the warm-up is over", func() bool {
		select {
		case <-p.done:
			return true
		default:
		}
		return strings.Count(p.stderr.String(), "measurement ") > 1
	})
	inside := marked(t, mark)
	var pids []string
	for pid := range inside {
		pids = append(pids, strconv.Itoa(pid))
	}
	made := namespaces(pids)
	if len(made) < 4 {
		t.Errorf("%d namespaces of the run, want its own", len(made))
	}
	for id, text := range drivers {
		killed := false
		for pid, cmdline := range inside {
			if strings.Contains(cmdline, text) && syscall.Kill(pid, syscall.SIGKILL) == nil {
				killed = true
			}
		}
		if !killed {
			t.Errorf("no process of %s to kill in %v", id, inside)
		}
	}
	if code := p.waitWithin(2 * time.Minute); code == 0 {
		t.Error("exit status 0, want another: rows of Slipway failed")
	}

	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("a run whose drivers died writes its report: %v", err)
	}
	var r struct {
		Cells []struct {
			Driver, Workload, Direction, Error string
			Summary                            *struct{ Median float64 }
		}
	}
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Cells {
		id := c.Driver + "/" + c.Workload + "/" + c.Direction
		if c.Driver == "host" {
			if c.Summary == nil || c.Summary.Median <= 0 {
				t.Errorf("%s was not measured", id)
			}
			continue
		}
		if !strings.Contains(c.Error, "signal: killed") {
			t.Errorf("%s: error %q, want that its driver was killed", id, c.Error)
		}
		delete(drivers, id)
	}
	if len(drivers) > 0 {
		t.Errorf("the report has no rows of %v", drivers)
	}

	eventually(t, 10*time.Second, "no process of the run is left", func() bool { return len(marked(t, mark)) == 0 })
	eventually(t, 10*time.Second, "no namespace of the run is left", func() bool {
		var all []string
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err == nil {
				all = append(all, e.Name())
			}
		}
		for name := range namespaces(all) {
			if made[name] {
				return false
			}
		}
		return true
	})
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || string(after) != string(mounts) {
		t.Errorf("mounts have changed: %v\n%s", err, after)
	}
	for _, dir := range []string{tmp, filepath.Dir(report)} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != filepath.Base(report) {
				t.Errorf("%s is left in %s", e.Name(), dir)
			}
		}
	}
}

// TestBenchFullDisk: where the report cannot be written, the table is printed, the run
// says why it failed, and no half of a report is left.
func TestBenchFullDisk(t *testing.T) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skip("iperf3 is not installed: make deps")
	}
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small disk without a user namespace, in which slipway bench could make none of its own")
	}
	dir := t.TempDir()
	script := `mount -t tmpfs -o size=4k,nr_inodes=8 full "$0" && cat /dev/zero >"$0/filler" 2>/dev/null
"$1" bench --seconds 1 --repetitions 1 --only host --json "$0/report.json"; code=$?
ls -A "$0"; exit $code`
	cmd := exec.Command("unshare", "--mount", "sh", "-c", script, dir, os.Getenv("SLIPWAY_BIN"))
	p := start(t, cmd)
	if code := p.waitWithin(time.Minute); code == 0 {
		t.Error("exit status 0 with a full disk")
	}
	if out := p.stdout.String(); !strings.Contains(out, "Host loopback") || !strings.HasSuffix(strings.TrimSpace(out), "filler") {
		t.Errorf("printed %q, want the table, and nothing but the filler left", out)
	}
	if words := p.stderr.String(); !strings.Contains(words, "no space left on device") {
		t.Errorf("said %q, want that the disk is full", words)
	}
}
