package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// statLine is a line of /proc/PID/stat with a name that wants to be misread.
func statLine(pid, parent, utime, stime, start int) string {
	return fmt.Sprintf("%d (a) S 1 (b) R %d 1 1 0 -1 4194560 1 2 3 4 %d %d 900 900 20 0 1 0 %d 1000 10 18446744073709551615\n", pid, parent, utime, stime, start)
}

func TestParseStat(t *testing.T) {
	real, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	self, err := parseStat(string(real))
	if err != nil {
		t.Fatal(err)
	}
	if self.id.pid != os.Getpid() || self.parent != os.Getppid() || self.id.start == 0 {
		t.Errorf("own stat: %+v, want pid %d, parent %d and a start time", self, os.Getpid(), os.Getppid())
	}
	got, err := parseStat(statLine(12, 7, 150, 250, 4711))
	want := procStat{id: procID{pid: 12, start: 4711}, parent: 7, cpu: 4 * time.Second}
	if err != nil || got != want {
		t.Errorf("parseStat: %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "12", "12 (a", ") 12 (", "12 (a) R 1", "x (a) R 7 1 1 0 -1 4 1 2 3 4 150 250 0 0 20 0 1 0 4711 1", "12 (a) R 7 1 1 0 -1 4 1 2 3 4 150 -1 0 0 20 0 1 0 4711 1"} {
		if s, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q) = %+v, want an error", bad, s)
		}
	}
}

func TestNamespaceDepth(t *testing.T) {
	tests := []struct {
		status string
		want   int
	}{
		{"Name:\tx\nNSpid:\t12\nThreads:\t1\n", 1},
		{"Name:\tNSpid: 1 2 3\nNSpid:\t12\t1\n", 2},
		{"Name:\tx\n", 0},
	}
	for _, tt := range tests {
		if got := namespaceDepth(tt.status); got != tt.want {
			t.Errorf("namespaceDepth(%q) = %d, want %d", tt.status, got, tt.want)
		}
	}
}

// fakeProc is a procfs of files. The launcher 10 has a monitor 11 with an engine 12, and
// a container whose pid 1 is 13, with a child 14; 20 is a stranger.
func fakeProc(t *testing.T, stats map[int]string) string {
	t.Helper()
	nspid := map[int]string{13: "13 1", 14: "14 2"}
	dir := t.TempDir()
	for pid, stat := range stats {
		d := filepath.Join(dir, strconv.Itoa(pid))
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		ns := nspid[pid]
		if ns == "" {
			ns = strconv.Itoa(pid)
		}
		files := map[string]string{"stat": stat, "status": "NSpid:\t" + ns + "\n", "cmdline": "slipway\x00role\x00" + strconv.Itoa(pid) + "\x00"}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(d, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	// What is no process must not be taken for one: /proc/self is a link to one.
	if err := os.Symlink("10", filepath.Join(dir, "self")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestUsage(t *testing.T) {
	dir := fakeProc(t, map[int]string{
		1:  statLine(1, 0, 1000, 0, 1),
		10: statLine(10, 1, 10, 0, 100),
		11: statLine(11, 10, 20, 5, 101),
		12: statLine(12, 11, 40, 10, 102),
		13: statLine(13, 10, 500, 0, 103),
		14: statLine(14, 13, 500, 0, 104),
		20: statLine(20, 1, 500, 0, 105),
	})
	got, err := cpuUsage(dir, 10)
	if err != nil {
		t.Fatal(err)
	}
	want := usage{{10, 100}: 100 * time.Millisecond, {11, 101}: 250 * time.Millisecond, {12, 102}: 500 * time.Millisecond}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(procID{})); diff != "" {
		t.Errorf("cpuUsage(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"slipway role 10", "slipway role 11", "slipway role 12"}, commandLines(dir, 10)); diff != "" {
		t.Errorf("commandLines(-want +got):\n%s", diff)
	}
	if pid, err := nested(dir, 10); err != nil || pid != 13 {
		t.Errorf("nested = %d, %v; want 13", pid, err)
	}
	if pid, err := nested(dir, 12); err == nil {
		t.Errorf("nested of a process without a container = %d, want an error", pid)
	}
	if _, err := cpuUsage(dir, 99); !errors.Is(err, errProcessEnded) {
		t.Errorf("cpuUsage of no process: %v, want errProcessEnded", err)
	}
}

func TestUsageSince(t *testing.T) {
	a, b, aAgain := procID{1, 10}, procID{2, 11}, procID{1, 99}
	tests := []struct {
		name          string
		before, after usage
		want          time.Duration
		err           error
	}{
		{"same", usage{a: 1, b: 2}, usage{a: 3, b: 7}, 7, nil},
		{"started", usage{a: 1}, usage{a: 3, b: 7}, 9, nil},
		{"ended", usage{a: 1, b: 2}, usage{a: 3}, 0, errProcessEnded},
		{"pid used again", usage{a: 5}, usage{aAgain: 1}, 0, errProcessEnded},
		{"none", usage{}, usage{}, 0, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.after.since(tt.before)
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("since = %d, %v; want %d, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

// TestUsageIsReal: what the kernel says of this process agrees with the time it has burnt.
func TestUsageIsReal(t *testing.T) {
	before, err := cpuUsage(procfs, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const burn = 200 * time.Millisecond
	begin, sum := time.Now(), 0
	deadline := begin.Add(20 * time.Second)
	for {
		for i := range 1 << 20 {
			sum += i
		}
		after, err := cpuUsage(procfs, os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		used, err := after.since(before)
		if err != nil {
			t.Fatal(err)
		}
		if used >= burn {
			if most := time.Since(begin)*time.Duration(runtime.NumCPU()) + 2*time.Second/userHZ; used > most {
				t.Errorf("%s of CPU time where there was %s (sum %d)", used, most, sum)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("used %s after %s of work", used, time.Since(begin))
		}
	}
}
