//go:build e2e

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/signal"
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

// benchReport is what these tests read of a report.
type benchReport struct {
	Cells []struct {
		Driver, Workload, Direction, Error string
		Summary                            *struct{ Median float64 }
	}
}

func readReport(t *testing.T, path string) benchReport {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("a run some of whose rows failed writes its report: %v", err)
	}
	var r benchReport
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// victim is a process of a driver.
type victim struct {
	row   string   // that it serves
	peers []string // programs that the driver needs
	text  string   // what its command line has in it
	not   string   // and has not
	nth   int      // of those, in the order in which they were started; 0: all
	error string   // of its row
	root  bool     // it starts for root only
	alone bool     // it is up only while it is measured
}

// victims are of all drivers.
var victims = []victim{
	{row: "veth/stream/both", text: "bench hold", error: "the container is gone: exe ended: signal: killed"},
	{row: "slipway/stream/both", text: "slipway attach --pid", not: "--offload off"},
	{row: "slipway/published/down", text: "slipway run --rm", not: "--publish-path tap"},
	{row: "slipway-old/stream/both", text: "/old attach --pid"},
	{row: "slipway-plain/stream/both", text: "--offload off"},
	{row: "slipway-tap/published/down", text: "--publish-path tap"},
	{row: "slirp4netns/stream/both", peers: []string{"slirp4netns"}, text: "slirp4netns --configure --mtu 1500 --ready-fd 3"},
	{row: "pasta/stream/both", peers: []string{"pasta"}, text: "--config-net", alone: true},
	{row: "gvisor-tap-vsock/stream/both", peers: []string{"gvproxy", "gvforwarder"}, text: "gvproxy -mtu", nth: 1, error: "gvproxy ended: signal: killed"},
	{row: "gvisor-tap-vsock/published/down", peers: []string{"gvproxy", "gvforwarder"}, text: "gvforwarder -preexisting", nth: 2, error: "gvforwarder ended: signal: killed"},
	{row: "rootlesskit/stream/both", peers: []string{"rootlesskit", "slirp4netns"}, text: "rootlesskit --net=slirp4netns", not: " -p ", root: true, alone: true},
	{row: "rootlesskit/published/down", peers: []string{"rootlesskit", "slirp4netns"}, text: "rootlesskit --net=slirp4netns", root: true, alone: true},
}

// isOf tells whether a process of the run is the victim.
func (v victim) isOf(pid int, cmdline string) bool {
	if !strings.Contains(cmdline, v.text) || v.not != "" && strings.Contains(cmdline, v.not) {
		return false
	}
	if v.row != "veth/stream/both" {
		return true
	}
	// Each driver has a container that is held so; this one's has the pair's other end.
	devices, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	return err == nil && strings.Contains(string(devices), "vethc")
}

// TestBenchDriverDies kills every driver of a run in the middle of it. Its rows say so,
// those of the host are measured, and no process, namespace, mount or file is left.
func TestBenchDriverDies(t *testing.T) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skip("iperf3 is not installed: make deps")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	var only []string
	for _, v := range victims {
		there[v.row] = (!v.root || os.Getuid() == 0) && !slices.ContainsFunc(v.peers, func(name string) bool {
			_, err := exec.LookPath(name)
			return err != nil
		})
		if there[v.row] {
			only = append(only, v.row)
		}
	}
	tmp, report := t.TempDir(), filepath.Join(t.TempDir(), "report.json")
	mark := fmt.Sprintf("%s-%d", t.Name(), os.Getpid())
	old := filepath.Join(t.TempDir(), "old")
	if err := os.Symlink(os.Getenv("SLIPWAY_BIN"), old); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "bench", "--suite", "full", "--mtu", "1500", "--streams", "1", "--seconds", "1", "--repetitions", "2",
		"--only", strings.Join(only, ","), "--peer", "slipway-old="+old, "--json", report)
	cmd.Env = append(os.Environ(), benchMark+"="+mark, "TMPDIR="+tmp)
	p := start(t, cmd)

	// The second line of progress comes with the first row that counts: all are set up.
	eventually(t, 3*time.Minute, "the warm-up is over", func() bool {
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
	kill := func(v victim, inside map[int]string) (killed bool) {
		n := 0
		for _, pid := range slices.Sorted(maps.Keys(inside)) {
			if !v.isOf(pid, inside[pid]) {
				continue
			}
			if n++; v.nth == 0 || v.nth == n {
				killed = syscall.Kill(pid, syscall.SIGKILL) == nil || killed
			}
		}
		return killed
	}
	for _, v := range victims {
		if there[v.row] && !v.alone && !kill(v, inside) {
			t.Errorf("no process of %s to kill in %v", v.row, inside)
		}
	}
	// Whenever they come up: one that is just being ended is not missed.
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); <-look.C {
		select {
		case <-p.done:
			deadline = time.Time{}
			continue
		default:
		}
		inside := marked(t, mark)
		for _, v := range victims {
			if there[v.row] && v.alone {
				kill(v, inside)
			}
		}
	}
	if code := p.waitWithin(4 * time.Minute); code == 0 {
		t.Error("exit status 0, want another: rows of Slipway failed")
	}

	cells := map[string]string{} // errors, by their rows
	for _, c := range readReport(t, report).Cells {
		id := c.Driver + "/" + c.Workload + "/" + c.Direction
		cells[id] = c.Error
		if c.Driver == "host" && (c.Summary == nil || c.Summary.Median <= 0) {
			t.Errorf("%s was not measured: %s", id, c.Error)
		}
	}
	for _, v := range victims {
		t.Run(v.row, func(t *testing.T) {
			if v.root && os.Getuid() != 0 {
				t.Skip("newuidmap maps ids of /etc/subuid, which the user namespace of an ordinary user's run does not have")
			}
			if !there[v.row] {
				t.Skipf("not all of %v are installed", v.peers)
			}
			want := v.error
			if want == "" {
				want = "ended: signal: killed"
			}
			if got, ok := cells[v.row]; !ok || !strings.Contains(got, want) {
				t.Errorf("error %q, want %q", got, want)
			}
		})
	}
	benchLeavesNothing(t, mark, made, mounts, tmp, filepath.Dir(report))
}

// benchLeavesNothing checks that of a run nothing is left: processes with its mark, namespaces
// that it has made, mounts, files but for the report.
func benchLeavesNothing(t *testing.T, mark string, made map[string]bool, mounts []byte, dirs ...string) {
	t.Helper()
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
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "report.json" {
				t.Errorf("%s is left in %s", e.Name(), dir)
			}
		}
	}
}

func init() {
	helpers["mute"] = mute
	helpers["squatter"] = squatter
}

// mute is a slirp4netns that says nothing, neither its version nor that it is ready.
func mute([]string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	return nil
}

// squatter is a slirp4netns that says it is ready and takes the port of the host's iperf3.
func squatter(args []string) error {
	if slices.Contains(args, "--version") {
		_, err := fmt.Println("slirp4netns version 0")
		return err
	}
	l, err := net.Listen("tcp", ":5201")
	if err != nil {
		return err
	}
	defer l.Close()
	if _, err := os.NewFile(3, "ready").WriteString("1"); err != nil {
		return err
	}
	return mute(nil)
}

// TestBenchInTheWay: a peer that answers nothing, and a port that is taken. The run comes
// to its end with what can be measured, and says what could not and why.
func TestBenchInTheWay(t *testing.T) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skip("iperf3 is not installed: make deps")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for peer, want := range map[string]map[string]string{
		"mute": {
			"host/stream/loopback":   "",
			"slipway/published/down": "",
			"slirp4netns/stream/up":  "is not ready after",
		},
		"squatter": {
			"host/stream/loopback":   "unable to start listener for connections: Address already in use",
			"slipway/published/down": "",
			"slirp4netns/stream/up":  "given up after failure 2",
		},
	} {
		t.Run(peer, func(t *testing.T) {
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				t.Fatal(err)
			}
			tmp, report := t.TempDir(), filepath.Join(t.TempDir(), "report.json")
			mark := fmt.Sprintf("%s-%d", t.Name(), os.Getpid())
			cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "bench", "--seconds", "1", "--repetitions", "1",
				"--only", "slipway/published/down,slirp4netns/stream/up", "--peer", "slirp4netns="+exe, "--json", report)
			cmd.Env = append(os.Environ(), benchMark+"="+mark, "TMPDIR="+tmp, helperEnv+"="+peer)
			p := start(t, cmd)
			if code := p.waitWithin(3 * time.Minute); (code != 0) != (want["host/stream/loopback"] != "") {
				t.Errorf("exit status %d", code)
			}
			found := map[string]string{}
			for _, c := range readReport(t, report).Cells {
				id := c.Driver + "/" + c.Workload + "/" + c.Direction
				found[id] = c.Error
				if c.Error == "" && (c.Summary == nil || c.Summary.Median <= 0) {
					found[id] = "no figure and no error"
				}
			}
			for id, text := range want {
				if got, ok := found[id]; !ok || text == "" && got != "" || !strings.Contains(got, text) {
					t.Errorf("%s: error %q, want %q", id, got, text)
				}
				if said := p.stdout.String() + p.stderr.String(); text != "" && !strings.Contains(said, text) {
					t.Errorf("the run does not say %q of %s", text, id)
				}
			}
			benchLeavesNothing(t, mark, nil, mounts, tmp, filepath.Dir(report))
		})
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
