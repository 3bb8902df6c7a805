package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// userHZ is the unit of utime and stime in /proc/PID/stat, proc_pid_stat(5): USER_HZ,
// 100 on every architecture that Slipway is built for. The kernel scales both so that
// their sum is the exact run time, kernel/sched/cputime.c cputime_adjust().
const userHZ = 100

// errProcessEnded is wrapped when a process of a driver ended during a measurement,
// so that nobody can say any more what it used.
var errProcessEnded = errors.New("a process of the driver ended during the measurement")

// process identity: a pid may be used again, its start time (clock ticks since boot) not.
type procID struct {
	pid   int
	start uint64
}

// usage is the CPU time that processes have used so far.
type usage map[procID]time.Duration

// procStat is what is read of /proc/PID/stat.
type procStat struct {
	id     procID
	parent int
	cpu    time.Duration // user + system, all threads, without children
}

// parseStat reads the text of /proc/PID/stat. The name in it may hold anything, blanks
// and parentheses too; only the last ")" ends it.
func parseStat(text string) (procStat, error) {
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 1 || end < open {
		return procStat{}, fmt.Errorf("parse stat %.40q: no name in parentheses", text)
	}
	fields := strings.Fields(text[end+1:]) // fields[0] is field 3 of proc_pid_stat(5)
	const state = 3
	if len(fields) <= 22-state {
		return procStat{}, fmt.Errorf("parse stat %.40q: %d fields after the name, want at least %d", text, len(fields), 22-state+1)
	}
	var numbers [4]uint64
	for i, field := range []int{4, 14, 15, 22} { // ppid, utime, stime, starttime
		n, err := strconv.ParseUint(fields[field-state], 10, 64)
		if err != nil {
			return procStat{}, fmt.Errorf("parse stat %.40q: field %d: %w", text, field, err)
		}
		numbers[i] = n
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text[:open]))
	if err != nil {
		return procStat{}, fmt.Errorf("parse stat %.40q: pid: %w", text, err)
	}
	return procStat{
		id:     procID{pid: pid, start: numbers[3]},
		parent: int(numbers[0]),
		cpu:    time.Duration(numbers[1]+numbers[2]) * (time.Second / userHZ),
	}, nil
}

// namespaceDepth is how many pid namespaces deep a process is, from the NSpid line of
// the text of /proc/PID/status; 0: there is no such line.
func namespaceDepth(status string) int {
	for line := range strings.Lines(status) {
		if pids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(pids))
		}
	}
	return 0
}

// tree lists a process and its descendants that share its pid namespace, from a mounted
// procfs. A container's workload, in a pid namespace of its own, is no part of the
// driver that started it.
func tree(procfs string, root int) ([]procStat, error) {
	entries, err := os.ReadDir(procfs)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	stats := map[int]procStat{}
	children := map[int][]int{}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(procfs, e.Name(), "stat"))
		if err != nil {
			continue // ended since the directory was read
		}
		s, err := parseStat(string(text))
		if err != nil {
			return nil, err
		}
		stats[s.id.pid] = s
		children[s.parent] = append(children[s.parent], s.id.pid)
	}
	if _, ok := stats[root]; !ok {
		return nil, fmt.Errorf("process %d: %w", root, errProcessEnded)
	}
	depth := func(pid int) int {
		text, err := os.ReadFile(filepath.Join(procfs, strconv.Itoa(pid), "status"))
		if err != nil {
			return 0
		}
		return namespaceDepth(string(text))
	}
	own := depth(root)
	var found []procStat
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		pid := queue[0]
		if depth(pid) != own {
			continue
		}
		found = append(found, stats[pid])
		queue = append(queue, children[pid]...)
	}
	return found, nil
}

// cpuUsage is what a process and those that belong to it have used so far.
func cpuUsage(procfs string, root int) (usage, error) {
	found, err := tree(procfs, root)
	if err != nil {
		return nil, err
	}
	u := make(usage, len(found))
	for _, s := range found {
		u[s.id] = s.cpu
	}
	return u, nil
}

// since is what was used after an earlier reading. A process that has started in
// between counts from zero; one that has ended is an error.
func (u usage) since(before usage) (time.Duration, error) {
	var sum time.Duration
	for id, was := range before {
		is, ok := u[id]
		if !ok {
			return 0, fmt.Errorf("process %d: %w", id.pid, errProcessEnded)
		}
		sum += is - was
	}
	for id, is := range u {
		if _, ok := before[id]; !ok {
			sum += is
		}
	}
	return sum, nil
}

// commandLines are the command lines of a process and those that belong to it.
func commandLines(procfs string, root int) []string {
	found, err := tree(procfs, root)
	if err != nil {
		return nil
	}
	var lines []string
	for _, s := range found {
		text, err := os.ReadFile(filepath.Join(procfs, strconv.Itoa(s.id.pid), "cmdline"))
		if err != nil || len(text) == 0 {
			continue
		}
		lines = append(lines, strings.TrimRight(strings.ReplaceAll(string(text), "\x00", " "), " "))
	}
	return lines
}

// nested finds the outermost descendant of a process that lives in a pid namespace of
// its own: the pid 1 of a container.
func nested(procfs string, root int) (int, error) {
	own, err := tree(procfs, root)
	if err != nil {
		return 0, err
	}
	members := make(map[int]bool, len(own))
	for _, s := range own {
		members[s.id.pid] = true
	}
	entries, err := os.ReadDir(procfs)
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(procfs, e.Name(), "stat"))
		if err != nil {
			continue // ended since the directory was read
		}
		if s, err := parseStat(string(text)); err == nil && members[s.parent] && !members[s.id.pid] {
			return s.id.pid, nil
		}
	}
	return 0, fmt.Errorf("no child of process %d has a pid namespace of its own", root)
}
