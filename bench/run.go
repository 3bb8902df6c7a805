package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"time"
)

// closeTimeout is how long pid 1 of the run may take to end the programs in order,
// before the kernel ends them all.
const closeTimeout = 10 * time.Second

// Run measures, and returns what it has also when it was ended by ctx or by an error.
// The error is nil when the run came to its end, however its rows went: see [Report.Failed].
func Run(ctx context.Context, cfg Config) (*Report, error) {
	r := &Report{Schema: SchemaVersion, Cells: cfg.cells(), Method: Method{
		Suite: cfg.Suite, Seconds: cfg.Duration.Seconds(), OmitSeconds: cfg.Omit.Seconds(), WarmupSeconds: warmup.Seconds(),
		Repetitions: cfg.Repetitions, MTU: first(cfg.MTUs), Streams: first(cfg.Streams), Command: cfg.Command,
	}}
	if err := cfg.Validate(); err != nil {
		return r, err
	}
	if _, err := lookIperf3(cfg); err != nil {
		return r, err
	}
	err := r.collect(ctx, cfg)
	if err != nil {
		r.Error = err.Error()
	}
	r.summarize()
	return r, err
}

// first of the numbers, 0 when there is none.
func first(values []int) int {
	if len(values) == 0 {
		return 0
	}
	return values[0]
}

// collect starts pid 1 of the run and takes in its events.
func (r *Report) collect(ctx context.Context, cfg Config) error {
	inR, inW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe for the configuration: %w", err)
	}
	defer inW.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		inR.Close()
		return fmt.Errorf("pipe for the events: %w", err)
	}
	defer outR.Close()

	words := newTail("")
	ended := make(chan error, 1)
	started := make(chan *exec.Cmd, 1)
	go func() {
		// The child is killed when the thread that made it ends, prctl(2) PR_SET_PDEATHSIG:
		// the thread is ours until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.Command(self, "bench", "inside")
		cmd.SysProcAttr = namespaceAttr(os.Getuid(), os.Getgid())
		cmd.ExtraFiles = []*os.File{inR, outW}
		cmd.Stdout, cmd.Stderr = words, words
		cmd.WaitDelay = stopTimeout
		err := cmd.Start()
		inR.Close()
		outW.Close()
		if err != nil {
			close(started)
			ended <- fmt.Errorf("start a process in new namespaces: %w (are user namespaces allowed? run: slipway doctor)", err)
			return
		}
		started <- cmd
		ended <- cmd.Wait()
	}()
	cmd, ok := <-started
	if !ok {
		return <-ended
	}
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-finished:
			return
		case <-ctx.Done():
		}
		inW.Close() // pid 1 ends what it has started
		timeout := time.NewTimer(closeTimeout)
		defer timeout.Stop()
		select {
		case <-finished:
		case <-timeout.C:
			_ = cmd.Process.Kill() // and the kernel the rest
		}
	}()
	var failure error
	if err := json.NewEncoder(inW).Encode(cfg); err != nil {
		failure = fmt.Errorf("hand over the configuration: %w", err)
	}
	end, err := r.take(outR, cfg)
	failure = errors.Join(failure, err)
	if err != nil {
		_ = cmd.Process.Kill() // it talks nonsense
	}
	err = <-ended
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the run was ended: %w", context.Cause(ctx))
	case failure != nil:
		return failure
	case !end:
		return fmt.Errorf("pid 1 of the run ended early: %w: %s", err, words.last())
	}
	return nil
}

// take reads events to their end and files them. end: the run came to its end.
func (r *Report) take(events io.Reader, cfg Config) (end bool, err error) {
	total := len(r.Cells) * (cfg.Repetitions + 1)
	done := 0
	decoder := json.NewDecoder(events)
	for {
		var e event
		if err := decoder.Decode(&e); errors.Is(err, io.EOF) {
			return end, nil
		} else if err != nil {
			return false, fmt.Errorf("read what pid 1 of the run says: %w", err)
		}
		switch {
		case e.End:
			end = true
		case e.Environment != nil:
			r.Environment = *e.Environment
		case e.Skip != nil:
			before := len(r.Cells)
			r.skip(*e.Skip)
			total -= (before - len(r.Cells)) * (cfg.Repetitions + 1)
		case e.ID == "":
			return false, errors.New(e.Error)
		default:
			c := r.cell(e.ID)
			if c == nil {
				return false, fmt.Errorf("pid 1 of the run speaks of a row %q that was not asked for", e.ID)
			}
			c.add(e)
			switch {
			case e.Sample != nil:
				done++
				if cfg.Progress != nil {
					cfg.Progress(Progress{Done: done, Total: total, Cell: *c, Sample: *e.Sample})
				}
			case e.Error != "": // what was still to come of this row will not
				total -= cfg.Repetitions + 1 - len(c.Samples)
			}
		}
	}
}

// cell of an id, nil when there is none.
func (r *Report) cell(id string) *Cell {
	for i := range r.Cells {
		if r.Cells[i].ID() == id {
			return &r.Cells[i]
		}
	}
	return nil
}

// skip takes the rows of a driver, or of a workload, out of the report.
func (r *Report) skip(s Skip) {
	r.Skipped = append(r.Skipped, s)
	kept := r.Cells[:0]
	for _, c := range r.Cells {
		if s.Driver != "" && c.Driver != s.Driver || s.Workload != "" && c.Workload != s.Workload {
			kept = append(kept, c)
		}
	}
	r.Cells = kept
}

// add files an event of this row.
func (c *Cell) add(e event) {
	if e.Commands != nil {
		c.Commands = e.Commands
	}
	if e.Processes != nil {
		c.Processes = e.Processes
	}
	if e.Programs != nil {
		c.Programs = e.Programs
	}
	if e.Sample != nil {
		c.Samples = append(c.Samples, *e.Sample)
	}
	if e.Error != "" {
		c.Error = e.Error
	}
}
