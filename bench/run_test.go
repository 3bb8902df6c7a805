package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

// marker is in the environment of every process of a test's run, so that the test
// finds what is left of it.
const marker = "SLIPWAY_BENCH_TEST"

// TestMain plays the roles in which a run starts its own program again, and that of the
// whole command for the test that kills it.
func TestMain(m *testing.M) {
	if peer := os.Getenv(fakePeer); peer != "" && filepath.Base(os.Args[0]) == "slirp4netns" {
		playPeer(peer)
	}
	role := strings.Join(os.Args[1:min(3, len(os.Args))], " ")
	var err error
	switch role {
	case "bench generate":
		err = Generate(os.Args[3:], os.Stdout)
	case "bench inside":
		err = Inside()
	case "bench hold":
		err = Hold(os.Args[3])
	case "bench run":
		cfg := smallest("slirp4netns/stream/up")
		cfg.Duration = 10 * time.Minute
		_, err = Run(context.Background(), cfg)
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// smallest run that measures these rows.
func smallest(only ...string) Config {
	return Config{
		Suite: "plain", Duration: time.Second, Repetitions: 1, MTUs: []int{1500}, Streams: []int{1},
		Only: only, Slipway: "/proc/self/exe", Version: "test",
	}
}

// needNamespaces skips a test where the run itself could not be.
func needNamespaces(t *testing.T) {
	t.Helper()
	for _, program := range []string{"iperf3", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: make deps", program)
		}
	}
	cmd := exec.Command("true")
	cmd.SysProcAttr = namespaceAttr(os.Getuid(), os.Getgid())
	if err := cmd.Run(); err != nil {
		t.Skipf("no user namespaces here: %v", err)
	}
}

// fakePrograms puts shell scripts in front of PATH.
func fakePrograms(t *testing.T, scripts map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// fakePeer is in the environment of a test's run whose slirp4netns is this program, and
// says what that does.
const fakePeer = "SLIPWAY_BENCH_TEST_PEER"

// fakeSlirp4netns puts a program in front of PATH that is no slirp4netns.
func fakeSlirp4netns(t *testing.T, does string) {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "slirp4netns"), text, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv(fakePeer, does)
}

// playPeer is a slirp4netns that says that it is ready, if it can, and then fails.
func playPeer(does string) {
	if len(os.Args) > 1 && os.Args[1] == "--version" {
		if does == "hang at its version" {
			time.Sleep(10 * time.Minute)
		}
		fmt.Println("slirp4netns version 0")
		os.Exit(0)
	}
	ready := os.NewFile(3, "ready")
	switch does {
	case "die at work": // ready, and dead as soon as it is used
		fmt.Fprint(ready, "1")
		time.Sleep(time.Second)
		fmt.Fprintln(os.Stderr, "the tap has gone")
		os.Exit(7)
	default:
		fmt.Fprint(ready, "1")
	}
	time.Sleep(10 * time.Minute)
	os.Exit(0)
}

// left lists the processes whose environment holds a mark.
func left(t *testing.T, mark string) []string {
	t.Helper()
	entries, err := os.ReadDir(procfs)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join(procfs, e.Name(), "environ"))
		if err != nil || !slices.Contains(strings.Split(string(env), "\x00"), marker+"="+mark) {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(procfs, e.Name(), "cmdline"))
		found = append(found, e.Name()+": "+strings.ReplaceAll(string(cmdline), "\x00", " "))
	}
	return found
}

// eventually waits for a condition.
func eventually(t *testing.T, timeout time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", timeout, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// gone fails when a process with the mark is still there.
func gone(t *testing.T, mark string) {
	t.Helper()
	var last []string
	defer func() {
		if len(last) > 0 {
			t.Logf("left: %q", last)
		}
	}()
	t.Cleanup(func() {
		for _, p := range last {
			pid, _, _ := strings.Cut(p, ":")
			if n, err := strconv.Atoi(pid); err == nil {
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
	})
	eventually(t, 2*time.Second, "no process is left", func() bool {
		last = left(t, mark)
		return len(last) == 0
	})
}

// TestPeerFails: the rows of a program that fails say why, in its own words, and the
// others are measured; nothing is left.
func TestPeerFails(t *testing.T) {
	needNamespaces(t)
	t.Setenv(marker, t.Name())
	fakeSlirp4netns(t, "die at work")
	fakePrograms(t, map[string]string{
		"pasta": "[ \"$1\" = --version ] && exec echo pasta 0\necho no template interface >&2; exit 1\n",
	})
	r, err := Run(t.Context(), smallest("slirp4netns/stream/up", "pasta/stream/down"))
	if err != nil {
		t.Fatal(err)
	}
	gone(t, t.Name())
	if failed := r.Failed(); len(failed) > 0 {
		t.Errorf("failed: %v, want none of the rows that count", failed)
	}
	host := r.cell("host/stream/loopback")
	if host.Summary == nil || host.Summary.Gap != 1 || host.Samples[1].SystemCPUSeconds == 0 || host.Samples[1].SenderCongestion != r.Environment.Congestion {
		t.Errorf("host loopback: %+v, want a measurement with the congestion control of the run", host)
	}
	if r.Environment.Congestion == "bbr" || r.Environment.Congestion == "" {
		t.Errorf("congestion control %q, want one that does not pace", r.Environment.Congestion)
	}
	for id, want := range map[string]string{
		"slirp4netns/stream/up": "slirp4netns ended: exit status 7: the tap has gone",
		"pasta/stream/down":     "pasta ended: exit status 1: no template interface",
	} {
		if c := r.cell(id); c.Summary != nil || !strings.Contains(c.Error, want) {
			t.Errorf("%s: error %q, want %q", id, c.Error, want)
		}
	}
}

// TestMeasures: a real peer, both directions of the connection the container makes and
// a published port; its CPU time is counted.
func TestMeasures(t *testing.T) {
	needNamespaces(t)
	if _, err := exec.LookPath("slirp4netns"); err != nil {
		t.Skip("slirp4netns is not installed: make deps")
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skipf("no TAP devices here: %v", err)
	} else {
		f.Close()
	}
	t.Setenv(marker, t.Name())
	r, err := Run(t.Context(), smallest("slirp4netns/stream/down", "slirp4netns/published/down"))
	if err != nil {
		t.Fatal(err)
	}
	gone(t, t.Name())
	for _, id := range []string{"slirp4netns/stream/down", "slirp4netns/published/down"} {
		c := r.cell(id)
		if c.failure() != "" || c.Summary == nil {
			t.Errorf("%s: %s", id, c.failure())
			continue
		}
		if c.Summary.Median <= 0 || c.Summary.CPUPerGB <= 0 || c.Summary.Gap <= 0 || c.Summary.Gap > 1 || c.Summary.Slirp4netns != 1 {
			t.Errorf("%s: %+v, want a speed below that of loopback and CPU time", id, c.Summary)
		}
		if len(c.Processes) != 1 || !strings.Contains(c.Processes[0], "slirp4netns --configure --mtu 1500") {
			t.Errorf("%s: counted processes %q, want slirp4netns", id, c.Processes)
		}
		if len(c.Programs) != 1 || filepath.Base(c.Programs[0].Path) != "slirp4netns" || c.Programs[0].Version == "" || c.Programs[0].Source == "" {
			t.Errorf("%s: programs %+v, want slirp4netns, its version and source", id, c.Programs)
		}
		if s := c.Samples[1]; s.RSS == 0 || s.SystemCPUSeconds <= s.CPUSeconds {
			t.Errorf("%s: %+v, want memory, and more CPU time of the machine than of the driver", id, s)
		}
	}
}

// TestInterrupted: a run that is ended gives what it has, and nothing is left.
func TestInterrupted(t *testing.T) {
	needNamespaces(t)
	t.Setenv(marker, t.Name())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cfg := smallest("host")
	cfg.Duration, cfg.Repetitions = 10*time.Minute, 2
	cfg.Progress = func(Progress) { cancel() } // after the warm-up
	r, err := Run(ctx, cfg)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v, want %v", err, context.Canceled)
	}
	if r.Error == "" || len(r.Cells[0].Samples) != 1 {
		t.Errorf("error %q and samples %+v, want an error and the warm-up", r.Error, r.Cells[0].Samples)
	}
	gone(t, t.Name())
}

// TestKilled: SIGKILL of the command takes everything with it.
func TestKilled(t *testing.T) {
	needNamespaces(t)
	fakeSlirp4netns(t, "hang")
	cmd := exec.Command("/proc/self/exe", "bench", "run")
	cmd.Env = append(os.Environ(), marker+"="+t.Name())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("its words: %s", stderr.String())
		}
	})
	eventually(t, 30*time.Second, "a long measurement beside a driver that runs", func() bool {
		processes := strings.Join(left(t, t.Name()), "\n")
		return strings.Contains(processes, "--time 600") && strings.Contains(processes, "slirp4netns --configure")
	})
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, t.Name())
}

// TestNoIperf3: the error names the fix, before anything is started.
func TestNoIperf3(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Run(t.Context(), smallest())
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "apt install iperf3") {
		t.Errorf("Run without iperf3: %v, want %v and the fix", err, exec.ErrNotFound)
	}
}

// TestConfigTravels: what pid 1 gets is what Run was given.
func TestConfigTravels(t *testing.T) {
	want := smallest("slipway")
	want.Progress = func(Progress) {}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Config
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if got.Duration != want.Duration || got.Repetitions != want.Repetitions || !slices.Equal(got.MTUs, want.MTUs) || got.Suite != want.Suite ||
		!slices.Equal(got.Only, want.Only) || got.Slipway != want.Slipway || got.Version != want.Version {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
