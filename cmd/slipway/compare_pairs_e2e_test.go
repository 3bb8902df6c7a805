//go:build e2e

package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"slipway/bench"
)

const (
	// comparedRow was the steadiest of two streams over eight rounds. By simulation, ten
	// measurements tell a tenth from nothing in 99 of 100 pairs where its share of loopback
	// has a standard deviation of 3 % within a run and 1 % between runs. Within eight rounds
	// it had 10 %, within the steadiest four in a row 2 %: see what a run varies by.
	comparedRow = "slipway/stream/up"
	// comparedRun is ten seconds of it, and of the host, in turns.
	comparedRun    = "--seconds 1 --omit 0 --repetitions 10"
	comparedPairs  = 20 // of each kind; SLIPWAY_E2E_PAIRS has another number
	comparedMisses = 20 // in as many verdicts, one may be wrong

	// A slow engine stands still for a tenth of the time.
	slowPeriod  = 50 * time.Millisecond
	slowPeriods = 10
)

// TestComparePairs: bench compare finds no difference between two runs of one build, and
// does find an engine that is slower by a tenth. Of the three runs of a round the first is
// the old one of both pairs.
func TestComparePairs(t *testing.T) {
	rounds := comparedPairs
	if text := os.Getenv("SLIPWAY_E2E_PAIRS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("SLIPWAY_E2E_PAIRS is %q, want a positive number", text)
		}
		rounds = n
	}
	dir := t.TempDir()
	const row = "| %-5s | %-5s | %8s | %8s | %8s | %6s | %-24s |\n"
	fmt.Printf(row, "round", "new", "varies", "change", "p", "stood", "compare says")
	right := map[string]int{}
	for round := range rounds {
		old := compareRun(t, dir, "old", nil)
		for _, kind := range []string{"same", "slow"} {
			var slowed *slowdown
			if kind == "slow" {
				slowed = &slowdown{}
			}
			report := compareRun(t, dir, kind, slowed)
			status := exec.Command(os.Getenv("SLIPWAY_BIN"), "bench", "compare", old, report).Run()
			d := compareReports(t, old, report)
			says, stood := "no difference", ""
			switch {
			case d.Worse(0.05):
				says = "worse"
			case d.Significant() && d.Change() > 0.05:
				says = "better"
			}
			// What the command says is what counts, and this only has more words for it.
			if (status != nil) != (says == "worse") {
				t.Errorf("round %d: bench compare ended with %v, where the difference is: %s", round+1, status, says)
			}
			if slowed != nil {
				stood = fmt.Sprintf("%.1f %%", 100*slowed.stood.Seconds()/slowed.took.Seconds())
			}
			if says == map[string]string{"same": "no difference", "slow": "worse"}[kind] {
				right[kind]++
			}
			fmt.Printf(row, strconv.Itoa(round+1), kind, fmt.Sprintf("%.1f %%", 100*variation(t, report)), fmt.Sprintf("%+.1f %%", 100*d.Change()), fmt.Sprintf("%.3f", d.P), stood, says)
		}
	}
	for kind, what := range map[string]string{"same": "no difference between two runs of one build", "slow": "an engine that is slower by a tenth"} {
		fmt.Printf("| %s: found in %d of %d pairs |\n", what, right[kind], rounds)
		if misses := rounds - right[kind]; misses > rounds/comparedMisses {
			t.Errorf("%s: found in %d of %d pairs, want all but %d", what, right[kind], rounds, rounds/comparedMisses)
		}
	}
}

// compareRun measures the row once and returns the path of the report. slowed is what is
// done to the engine meanwhile; nil: nothing.
func compareRun(t *testing.T, dir, name string, slowed *slowdown) string {
	t.Helper()
	report := filepath.Join(dir, name+".json")
	args := append([]string{"bench", "--only", comparedRow, "--json", report}, strings.Fields(comparedRun)...)
	p := start(t, exec.Command(os.Getenv("SLIPWAY_BIN"), args...))
	if slowed != nil {
		if err := slowed.until(p.done, p.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	if status := p.waitWithin(3 * time.Minute); status != 0 {
		t.Fatalf("slipway bench ended with status %d: %s", status, p.stderr.String())
	}
	return report
}

// variation is the standard deviation of the row's share of loopback in a run, divided by
// its mean.
func variation(t *testing.T, report string) float64 {
	t.Helper()
	r, err := bench.ReadReport(report)
	if err != nil {
		t.Fatal(err)
	}
	host, row := map[int]float64{}, map[int]float64{}
	for _, c := range r.Cells {
		values := row
		if c.Driver == bench.DriverHost {
			values = host
		}
		for _, s := range c.Samples {
			if s.Round > 0 && s.Error == "" {
				values[s.Round] = s.Value
			}
		}
	}
	var n, sum, squares float64
	for round, v := range row {
		if host[round] > 0 {
			share := v / host[round]
			n, sum, squares = n+1, sum+share, squares+share*share
		}
	}
	mean := sum / n
	return math.Sqrt(max(0, squares/n-mean*mean)) / mean
}

// compareReports is what has become of the row.
func compareReports(t *testing.T, old, report string) bench.Difference {
	t.Helper()
	var reports [2]*bench.Report
	for i, path := range []string{old, report} {
		r, err := bench.ReadReport(path)
		if err != nil {
			t.Fatal(err)
		}
		reports[i] = r
	}
	c, err := bench.Compare(reports[0], reports[1], 0.05)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Rows) != 1 || c.Rows[0].Cell.ID() != comparedRow || !c.Rows[0].Ratio {
		t.Fatalf("the reports have the rows %+v, want ratios of %s", c.Rows, comparedRow)
	}
	return c.Rows[0]
}

// slowdown has an engine stand still for a tenth of the time, as if everything that it
// does took so much longer.
type slowdown struct {
	stood, took time.Duration
}

// until a run has ended, whose engine is a descendant of a process.
func (s *slowdown) until(done <-chan struct{}, root int) error {
	tick := time.NewTicker(slowPeriod)
	defer tick.Stop()
	var engine int
	for {
		select {
		case <-done:
			if engine == 0 {
				return fmt.Errorf("no engine below process %d", root)
			}
			return nil
		case <-tick.C:
		}
		if engine == 0 {
			if engine = engineBelow(root); engine == 0 {
				continue
			}
		}
		s.took += slowPeriod
		if s.stood > s.took/slowPeriods {
			continue // it has stood longer than it should: timers are late on a busy machine
		}
		begin := time.Now()
		if syscall.Kill(engine, syscall.SIGSTOP) != nil {
			continue // it has ended with the run
		}
		time.Sleep(slowPeriod / slowPeriods) // this is the slowness
		_ = syscall.Kill(engine, syscall.SIGCONT)
		s.stood += time.Since(begin)
	}
}

// engineBelow a process, 0: there is none yet.
func engineBelow(root int) int {
	parents := map[int]int{}
	engines := []int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // ended since
		}
		// The name may hold anything; after it come the state and the parent, proc_pid_stat(5).
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		parents[pid], _ = strconv.Atoi(fields[1])
		if cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); string(cmdline) == "slipway\x00engine\x00" {
			engines = append(engines, pid)
		}
	}
	for _, engine := range engines {
		for pid := engine; pid > 1; pid = parents[pid] {
			if pid == root {
				return engine
			}
		}
	}
	return 0
}
