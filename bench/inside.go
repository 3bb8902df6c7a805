package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// maxFailures of a row in one run before it is given up.
const maxFailures = 2

// event is what pid 1 of the run tells its parent, one JSON value each.
type event struct {
	Environment *Environment `json:"environment,omitempty"`
	Skip        *Skip        `json:"skip,omitempty"`
	// ID of the row that the following fields are about.
	ID        string   `json:"id,omitempty"`
	Commands  []string `json:"commands,omitempty"`
	Processes []string `json:"processes,omitempty"`
	Sample    *Sample  `json:"sample,omitempty"`
	Error     string   `json:"error,omitempty"` // with an ID: the row is given up; without: the run
	End       bool     `json:"end,omitempty"`   // everything that was asked for has been done
}

// Inside is pid 1 of the run's namespaces (slipway bench inside). Descriptor 3 brings
// the configuration and then stays open for as long as the run shall go on; events
// leave by descriptor 4.
func Inside() error {
	syscall.CloseOnExec(3)
	syscall.CloseOnExec(4)
	in, out := os.NewFile(3, "configuration"), os.NewFile(4, "events")
	var cfg Config
	decoder := json.NewDecoder(in)
	if err := decoder.Decode(&cfg); err != nil {
		return fmt.Errorf("bench inside: read the configuration from descriptor 3: %w (it is started by slipway bench)", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	events := json.NewEncoder(out)
	emit := func(e event) {
		if err := events.Encode(e); err != nil {
			cancel() // nobody listens any more
		}
	}
	b, err := enterNamespace(ctx, cfg)
	if err != nil {
		emit(event{Error: err.Error()})
		return err
	}
	environment := b.environment(ctx)
	emit(event{Environment: &environment})
	b.measureAll(ctx, emit)
	if ctx.Err() == nil {
		emit(event{End: true})
	}
	return nil
}

// row is a cell that is being measured.
type row struct {
	Cell
	lane   *lane
	failed int
}

// measureAll sets every lane up, then goes round them, and shuts them at the end.
func (b *bed) measureAll(ctx context.Context, emit func(event)) {
	var rows []*row
	for _, c := range b.cfg.cells() {
		rows = append(rows, &row{Cell: c})
	}
	skipped := map[string]bool{}
	for _, s := range setups() {
		var users []*row
		for _, r := range rows {
			if r.Driver == s.driver && r.Workload == s.workload {
				users = append(users, r)
			}
		}
		if len(users) == 0 || ctx.Err() != nil {
			continue
		}
		program, reason := b.find(s)
		if reason != "" {
			if !skipped[s.driver] {
				emit(event{Skip: &Skip{Driver: s.driver, Reason: reason}})
			}
			skipped[s.driver] = true
			continue
		}
		l := &lane{}
		defer l.shut()
		err := s.make(ctx, b, program, l)
		for _, r := range users {
			if err != nil {
				emit(event{ID: r.ID(), Commands: l.setup, Error: err.Error()})
				continue
			}
			r.lane = l
			e := event{ID: r.ID(), Commands: l.commands(b, r.Direction)}
			if l.driver != nil {
				e.Processes = commandLines(procfs, l.driver.pid())
			}
			emit(e)
		}
	}
	for round := range b.cfg.Repetitions + 1 {
		for _, r := range rows {
			if ctx.Err() != nil {
				return
			}
			if r.lane != nil {
				b.measureRow(ctx, r, round, emit)
			}
		}
	}
}

// measureRow measures a row once, and gives it up after too many failures.
func (b *bed) measureRow(ctx context.Context, r *row, round int, emit func(event)) {
	seconds, omitted := b.cfg.Duration, omit
	if round == 0 {
		seconds, omitted = warmup, 0
	}
	s, err := r.lane.measure(ctx, b, r.Direction, seconds, omitted)
	s.Round = round
	if ctx.Err() != nil {
		return // the run was ended, that is no failure of the row
	}
	if err != nil {
		s.Error = err.Error()
		r.failed++
	}
	emit(event{ID: r.ID(), Sample: &s})
	if err == nil {
		return
	}
	if dead := r.lane.alive(); dead != nil {
		emit(event{ID: r.ID(), Error: dead.Error()})
		r.lane = nil
	} else if r.failed >= maxFailures {
		emit(event{ID: r.ID(), Error: fmt.Sprintf("given up after %d failures: %v", r.failed, err)})
		r.lane = nil
	}
}

// find looks for the program of a setup; reason says why it is not measured.
func (b *bed) find(s setup) (program, reason string) {
	if s.program == "" {
		return "", ""
	}
	program, err := exec.LookPath(s.program)
	if err != nil {
		return "", "not installed"
	}
	if sameFile(program, b.cfg.Slipway) {
		return "", program + " is Slipway itself"
	}
	return program, ""
}

// sameFile says whether two paths lead to one file.
func sameFile(a, b string) bool {
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errors.Join(errA, errB) == nil && os.SameFile(ia, ib)
}

// lookIperf3 finds iperf3 or says how to get it.
func lookIperf3() (string, error) {
	path, err := exec.LookPath("iperf3")
	if err != nil {
		return "", fmt.Errorf("look for iperf3: %w (install it: make deps, or: sudo apt install iperf3)", err)
	}
	return filepath.Clean(path), nil
}
