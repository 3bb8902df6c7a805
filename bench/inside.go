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
	"slices"
	"syscall"
)

// maxFailures of a row in one run before it is given up.
const maxFailures = 2

// event is what pid 1 of the run tells its parent, one JSON value each.
type event struct {
	Environment *Environment `json:"environment,omitempty"`
	Skip        *Skip        `json:"skip,omitempty"`
	// ID of the row that the following fields are about.
	ID        string    `json:"id,omitempty"`
	Commands  []string  `json:"commands,omitempty"`
	Processes []string  `json:"processes,omitempty"`
	Programs  []Program `json:"programs,omitempty"`
	Sample    *Sample   `json:"sample,omitempty"`
	Error     string    `json:"error,omitempty"` // with an ID: the row is given up; without: the run
	End       bool      `json:"end,omitempty"`   // everything that was asked for has been done
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
	slot   *slot // nil: it was given up
	failed int
}

// slot holds the lane of some rows, and another one when its driver has died.
type slot struct {
	lane      *lane
	programs  []Program
	processes []string // command lines
	err       error    // why there is no lane
}

// open sets a lane up in the slot.
func (s *slot) open(ctx context.Context, b *bed, key laneKey) {
	s.lane = &lane{side: key.side, mtu: key.mtu}
	s.programs, s.err = b.open(ctx, s.lane, key.driver)
	if s.err != nil {
		s.lane.shut() // what has started of it would run beside the others, and hold its ports
		return
	}
	s.processes = nil
	for _, p := range s.lane.drivers {
		s.processes = append(s.processes, commandLines(procfs, p.pid())...)
	}
}

// laneKey is what the rows of a lane have in common.
type laneKey struct {
	driver string
	side   side
	mtu    int
	// fragments says that its datagrams do not fit into the MTU. slirp4netns 1.2.0 dies of a
	// flood of fragments, and not always at once: it shall not take other rows along.
	fragments bool
}

func laneOf(c Cell) laneKey {
	datagrams := c.Workload == WorkloadUDP || c.Workload == WorkloadUDPLossless
	return laneKey{c.Driver, sideOf(c), c.MTU, datagrams && c.MTU > 0 && c.Size > c.MTU}
}

// measureAll sets every lane up, then goes round the rows, and shuts the lanes at the end.
func (b *bed) measureAll(ctx context.Context, emit func(event)) {
	rows := b.rows(emit)
	distant := &lane{}
	defer distant.shut()
	slots := map[laneKey]*slot{}
	defer func() {
		for _, s := range slots {
			s.lane.shut()
		}
	}()
	for _, r := range rows {
		if ctx.Err() != nil {
			return
		}
		if err := b.reach(ctx, distant, r.Cell); err != nil {
			emit(event{ID: r.ID(), Error: err.Error()})
			continue
		}
		key := laneOf(r.Cell)
		if workOf(r.Workload).fresh {
			r.slot = &slot{lane: &lane{}}
			continue
		}
		s, ok := slots[key]
		if !ok {
			s = &slot{}
			slots[key] = s
			s.open(ctx, b, key)
			if lookDriver(key.driver).alone {
				s.lane.shut()
			}
		}
		l := s.lane
		if s.err != nil {
			emit(event{ID: r.ID(), Commands: l.setup, Error: s.err.Error()})
			continue
		}
		r.slot = s
		emit(event{ID: r.ID(), Commands: l.commands(b, r.Cell), Processes: s.processes, Programs: s.programs})
	}
	for round := range b.cfg.Repetitions + 1 {
		for _, r := range inTurn(rows, round) {
			if ctx.Err() != nil {
				return
			}
			if r.slot != nil {
				b.measureRow(ctx, r, round, emit)
			}
		}
	}
}

// inTurn are the rows in the order of a round: in every second one, the other build of
// Slipway comes before the one that it is compared with. What the row before leaves behind
// is no difference of the two.
func inTurn(rows []*row, round int) []*row {
	if round%2 == 0 {
		return rows
	}
	rows = slices.Clone(rows)
	for i := 1; i < len(rows); i++ {
		if rows[i-1].Driver == DriverSlipway && rows[i].Driver == DriverSlipwayOld {
			rows[i-1], rows[i] = rows[i], rows[i-1]
		}
	}
	return rows
}

// rows that can be measured here; what is left out is said.
func (b *bed) rows(emit func(event)) []*row {
	drivers := map[string]string{} // why they are skipped, "" where they are not
	workloads := map[Workload]string{}
	var rows []*row
	for _, c := range b.cfg.cells() {
		if _, ok := drivers[c.Driver]; !ok {
			_, drivers[c.Driver] = b.find(lookDriver(c.Driver))
			if reason := drivers[c.Driver]; reason != "" {
				emit(event{Skip: &Skip{Driver: c.Driver, Reason: reason}})
			}
		}
		if _, ok := workloads[c.Workload]; !ok {
			workloads[c.Workload] = b.cannot(c.Workload)
			if reason := workloads[c.Workload]; reason != "" {
				emit(event{Skip: &Skip{Workload: c.Workload, Reason: reason}})
			}
		}
		if drivers[c.Driver] == "" && workloads[c.Workload] == "" {
			rows = append(rows, &row{Cell: c})
		}
	}
	return rows
}

// cannot says why a workload cannot be done here, "" when it can.
func (b *bed) cannot(w Workload) string {
	if reason := b.lacks(w); reason != "" {
		return reason
	}
	if w == WorkloadHTTP {
		if err := b.writePages(); err != nil {
			return err.Error()
		}
	}
	return ""
}

// lacks names a program that a workload needs and that is not there, "" when all are.
func (b *bed) lacks(w Workload) string {
	for _, name := range workOf(w).needs {
		if b.programs[name] == "" {
			return name + " is not installed"
		}
	}
	return ""
}

// reach makes the host that a row's connections lead to, where that is far away.
func (b *bed) reach(ctx context.Context, distant *lane, c Cell) error {
	if _, ok := b.far[c.distance()]; ok || c.DelayMillis == 0 {
		return nil
	}
	host, err := b.farHost(ctx, distant, c.distance())
	if err != nil {
		return err
	}
	b.far[c.distance()] = host
	return nil
}

// open sets a lane up, and says which programs the driver runs.
func (b *bed) open(ctx context.Context, l *lane, name string) ([]Program, error) {
	d := lookDriver(name)
	l.program, _ = b.find(d)
	start := d.start
	if l.side == sideHost {
		start = d.publish
		l.ports = []port{{b.nextPort(), serverPort}, {b.nextPort(), otherPort}}
	}
	if err := start(ctx, b, l); err != nil {
		return nil, l.because(err)
	}
	found, err := b.identify(ctx, l)
	if err != nil {
		return nil, l.because(err)
	}
	return found, nil
}

// measureRow measures a row once, and gives it up after too many failures.
func (b *bed) measureRow(ctx context.Context, r *row, round int, emit func(event)) {
	t := r.timing(b.cfg.timing())
	if round == 0 {
		t = warmupTiming
	}
	if lookDriver(r.Driver).alone && !workOf(r.Workload).fresh {
		s := r.slot
		s.open(ctx, b, laneOf(r.Cell))
		defer func() { s.lane.shut() }()
	}
	if r.slot.err != nil { // it had died in another row, and could not be started again
		emit(event{ID: r.ID(), Error: r.slot.err.Error()})
		r.slot = nil
		return
	}
	s, err := r.slot.lane.measure(ctx, b, r.Cell, t)
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
	if dead := r.slot.lane.alive(); dead != nil {
		emit(event{ID: r.ID(), Error: dead.Error()})
		r.slot.lane.shut()
		r.slot.open(ctx, b, laneOf(r.Cell)) // for the other rows
		r.slot = nil
	} else if r.failed >= maxFailures || errors.Is(err, errElsewhere) {
		emit(event{ID: r.ID(), Error: fmt.Sprintf("given up after failure %d: %v", r.failed, err)})
		r.slot = nil
	}
}

// sameFile says whether two paths lead to one file.
func sameFile(a, b string) bool {
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errors.Join(errA, errB) == nil && os.SameFile(ia, ib)
}

// lookIperf3 finds iperf3 or says how to get it.
func lookIperf3(c Config) (string, error) {
	name, given := c.Peers["iperf3"]
	if !given {
		name = "iperf3"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("look for iperf3: %w (install it: make deps, or: sudo apt install iperf3)", err)
	}
	return filepath.Clean(path), nil
}
