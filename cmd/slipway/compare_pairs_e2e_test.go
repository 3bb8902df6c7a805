//go:build e2e

package main

import (
	"errors"
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
	comparedRow    = "slipway/stream/up"
	comparedRun    = "--seconds 1 --omit 0 --repetitions 10" // ten seconds of each build, and of the host, in turns
	comparedPairs  = 20                                      // of each kind; SLIPWAY_E2E_PAIRS has another number
	comparedMisses = 20                                      // in as many verdicts, one may be wrong

	// A slow engine stands still for a tenth of the time.
	slowPeriod  = 50 * time.Millisecond
	slowPeriods = 10
)

// TestComparePairs: bench compare finds no difference between a build and itself, and does
// find an engine that is slower by a tenth.
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
	const line = "| %-5s | %-5s | %8s | %8s | %8s | %6s | %-24s |\n"
	fmt.Printf(line, "round", "new", "varies", "change", "p", "stood", "compare says")
	right := map[string]int{}
	for round := range rounds {
		for _, kind := range []string{"same", "slow"} {
			slowed := slowdown{}
			report := compareRun(t, dir, kind, &slowed)
			status := exec.Command(os.Getenv("SLIPWAY_BIN"), "bench", "compare", report).Run()
			row, variation := comparedBuilds(t, report)
			says := "no difference"
			switch {
			case row.Worse(0.05):
				says = "worse"
			case row.Significant() && row.Change() > 0.05:
				says = "better"
			}
			// What the command says is what counts, and this only has more words for it.
			if (status != nil) != (says == "worse") {
				t.Errorf("round %d: bench compare ended with %v, where the difference is: %s", round+1, status, says)
			}
			if says == map[string]string{"same": "no difference", "slow": "worse"}[kind] {
				right[kind]++
			}
			fmt.Printf(line, strconv.Itoa(round+1), kind, fmt.Sprintf("%.1f %%", 100*variation), fmt.Sprintf("%+.1f %%", 100*row.Change()),
				fmt.Sprintf("%.3f", row.P), slowed.share(), says)
		}
	}
	for kind, what := range map[string]string{"same": "no difference between a build and itself", "slow": "an engine that is slower by a tenth"} {
		fmt.Printf("| %s: found in %d of %d pairs |\n", what, right[kind], rounds)
		if misses := rounds - right[kind]; misses > rounds/comparedMisses {
			t.Errorf("%s: found in %d of %d pairs, want all but %d", what, right[kind], rounds, rounds/comparedMisses)
		}
	}
}

// compareRun measures the row of a build and of itself in turns, and returns the path of
// the report. The engine of the one under test is slowed where the kind says so.
func compareRun(t *testing.T, dir, kind string, slowed *slowdown) string {
	t.Helper()
	bin, err := filepath.EvalSymlinks(os.Getenv("SLIPWAY_BIN")) // as bench finds it
	if err != nil {
		t.Fatal(err)
	}
	old, report := filepath.Join(dir, "old"), filepath.Join(dir, kind+".json")
	if err := os.Symlink(bin, old); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	args := append([]string{"bench", "--only", comparedRow, "--peer", "slipway-old=" + old, "--json", report}, strings.Fields(comparedRun)...)
	p := start(t, exec.Command(bin, args...))
	if kind == "slow" {
		if err := slowed.until(p.done, p.Process.Pid, bin+"\x00attach\x00"); err != nil {
			t.Fatal(err)
		}
	}
	if status := p.waitWithin(3 * time.Minute); status != 0 {
		t.Fatalf("slipway bench ended with status %d: %s", status, p.stderr.String())
	}
	return report
}

// comparedBuilds is what has become of the row, and the standard deviation of the quotient
// of the two builds from round to round, divided by its mean.
func comparedBuilds(t *testing.T, report string) (row bench.Difference, variation float64) {
	t.Helper()
	r, err := bench.ReadReport(report)
	if err != nil {
		t.Fatal(err)
	}
	c, err := bench.CompareBuilds(r, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Rows) != 1 || c.Rows[0].Cell.ID() != comparedRow || !c.Rows[0].Ratio {
		t.Fatalf("the report has the rows %+v, want ratios of %s", c.Rows, comparedRow)
	}
	old, build := map[int]float64{}, map[int]float64{}
	for _, c := range r.Cells {
		for _, s := range c.Samples {
			switch {
			case s.Round == 0 || s.Error != "":
			case c.Driver == bench.DriverSlipwayOld:
				old[s.Round] = s.Value
			case c.Driver == bench.DriverSlipway:
				build[s.Round] = s.Value
			}
		}
	}
	var n, sum, squares float64
	for round, v := range build {
		if old[round] > 0 {
			quotient := v / old[round]
			n, sum, squares = n+1, sum+quotient, squares+quotient*quotient
		}
	}
	mean := sum / n
	return c.Rows[0], math.Sqrt(max(0, squares/n-mean*mean)) / mean
}

// slowdown has an engine stand still for a tenth of the time, as if everything that it
// does took so much longer.
type slowdown struct {
	stood, took time.Duration
}

// share of the time for which it stood, "" when nobody has slowed it.
func (s *slowdown) share() string {
	if s.took == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f %%", 100*s.stood.Seconds()/s.took.Seconds())
}

// until a run has ended, whose engine is a descendant of a process and of one whose command
// line begins so.
func (s *slowdown) until(done <-chan struct{}, root int, monitor string) error {
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
			if engine = engineBelow(root, monitor); engine == 0 {
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

// engineBelow a process, and below one whose command line begins so; 0: there is none yet.
func engineBelow(root int, monitor string) int {
	parents := map[int]int{}
	cmdlines := map[int]string{}
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
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		cmdlines[pid] = string(cmdline)
	}
	for engine, cmdline := range cmdlines {
		if cmdline != "slipway\x00engine\x00" {
			continue
		}
		monitored := false
		for pid := engine; pid > 1; pid = parents[pid] {
			monitored = monitored || strings.HasPrefix(cmdlines[pid], monitor)
			if pid == root && monitored {
				return engine
			}
		}
	}
	return 0
}
