package bench

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Limits of a run. They keep a slip of the finger from becoming a run of a day.
const (
	minDuration    = 100 * time.Millisecond
	maxDuration    = 10 * time.Minute
	maxOmit        = time.Minute
	maxRepetitions = 1000
	maxStreams     = 128   // of one iperf3 client
	listedRows     = 20    // of an error that lists rows
	minMTU         = 1280  // IPv6 needs it, RFC 8200 section 5; slipway attach takes no less
	maxMTU         = 65520 // what every program under test takes; TAP devices end at 65521
)

// ErrConfig is wrapped by every error of [Config.Validate].
var ErrConfig = errors.New("bad benchmark")

// Config says what to measure. Every field is needed but Only, Peers and Progress; there
// are no hidden defaults: a [Suite] has some.
type Config struct {
	// Suite of rows, by its name.
	Suite string
	// Duration of one measurement; in whole seconds but for workloads of our own generator.
	Duration time.Duration
	// Omit is how much longer iperf3's TCP runs at the start of each, which is left out, in
	// whole seconds: TCP's slow start.
	Omit time.Duration
	// Repetitions that are counted, after one warm-up round.
	Repetitions int
	// MTUs of the container's link in bytes, the same for every program under test.
	MTUs []int
	// Streams are numbers of TCP connections at a time.
	Streams []int
	// Only names the rows to measure: DRIVER, DRIVER/WORKLOAD or DRIVER/WORKLOAD/DIRECTION,
	// or a row's whole name. Empty: all. The rows of the host that they are divided by are
	// always there.
	Only []string
	// Peers are paths of programs that are not to be looked for in PATH, by the names of [PeerPrograms].
	Peers map[string]string
	// Slipway is the path of the binary under test.
	Slipway string
	// Version of that binary, for the report.
	Version string
	// Command that the person typed, for the report.
	Command string
	// Progress is called after each measurement from one goroutine; nil: nobody wants to know.
	Progress func(Progress) `json:"-"`
}

// Progress of a run.
type Progress struct {
	Done, Total int // measurements, warm-ups included
	Cell        Cell
	Sample      Sample
}

// Validate says what is wrong with the configuration. Its errors wrap [ErrConfig].
func (c Config) Validate() error {
	if _, err := LookSuite(c.Suite); err != nil {
		return err
	}
	switch {
	case c.Duration < minDuration || c.Duration > maxDuration:
		return fmt.Errorf("%w: %s for one measurement, want %g to %g seconds", ErrConfig, c.Duration, minDuration.Seconds(), maxDuration.Seconds())
	case c.Omit < 0 || c.Omit > maxOmit || c.Omit%time.Second != 0:
		return fmt.Errorf("%w: %s left out of one measurement, want 0 to %d whole seconds", ErrConfig, c.Omit, int(maxOmit.Seconds()))
	case c.Repetitions < 1 || c.Repetitions > maxRepetitions:
		return fmt.Errorf("%w: %d repetitions, want 1 to %d", ErrConfig, c.Repetitions, maxRepetitions)
	}
	if err := validateNumbers("MTU", c.MTUs, minMTU, maxMTU); err != nil {
		return err
	}
	if err := validateNumbers("streams", c.Streams, 1, maxStreams); err != nil {
		return err
	}
	for name := range c.Peers {
		if !slices.Contains(PeerPrograms(), name) {
			return fmt.Errorf("%w: no peer %q, the peers are %s", ErrConfig, name, strings.Join(PeerPrograms(), ", "))
		}
	}
	for _, want := range c.Only {
		all := catalogue(c)
		if !slices.ContainsFunc(all, func(cell Cell) bool { return cell.matches(want) }) {
			if strings.HasPrefix(want, DriverSlipwayOld) && c.Peers[DriverSlipwayOld] == "" {
				return fmt.Errorf("%w: no row %q without --peer %s=PATH", ErrConfig, want, DriverSlipwayOld)
			}
			ids, more := cellIDs(all), ""
			if len(ids) > listedRows {
				ids, more = ids[:listedRows], fmt.Sprintf(" and %d more, see --dry-run", len(ids)-listedRows)
			}
			return fmt.Errorf("%w: no row %q in the suite %s, its rows are %s%s", ErrConfig, want, c.Suite, strings.Join(ids, ", "), more)
		}
	}
	for _, cell := range c.cells() {
		if c.Duration%time.Second != 0 && !workOf(cell.Workload).fine {
			return fmt.Errorf("%w: %s for one measurement, want whole seconds: %s is done by a program that knows no others", ErrConfig, c.Duration, cell.ID())
		}
	}
	return nil
}

// validateNumbers that rows are made of: there is one, and none is there twice.
func validateNumbers(what string, values []int, least, most int) error {
	if len(values) == 0 {
		return fmt.Errorf("%w: no %s, want %d to %d", ErrConfig, what, least, most)
	}
	for i, v := range values {
		switch {
		case v < least || v > most:
			return fmt.Errorf("%w: %s %d, want %d to %d", ErrConfig, what, v, least, most)
		case slices.Contains(values[:i], v):
			return fmt.Errorf("%w: %s %d twice", ErrConfig, what, v)
		}
	}
	return nil
}

// Estimate is about how long the run takes with the programs that are installed.
func (c Config) Estimate() time.Duration {
	var sum time.Duration
	for _, cell := range c.measurable() {
		sum += workOf(cell.Workload).lasts(warmupTiming) + time.Duration(c.Repetitions)*workOf(cell.Workload).lasts(cell.timing(c.timing()))
	}
	return sum
}

// measurable are the rows whose programs are there.
func (c Config) measurable() []Cell {
	machine := &bed{cfg: c}
	if machine.lookPrograms() != nil {
		return nil // nor will it run
	}
	return slices.DeleteFunc(c.cells(), func(cell Cell) bool {
		_, reason := machine.find(lookDriver(cell.Driver))
		return reason != "" || machine.lacks(cell.Workload) != ""
	})
}

// MeasurableIDs are those of CellIDs whose programs are there.
func (c Config) MeasurableIDs() []string { return cellIDs(c.measurable()) }

// CellIDs are the names of the rows that the configuration asks for, in the order of measuring.
func (c Config) CellIDs() []string { return cellIDs(c.cells()) }

// timing of one measurement.
type timing struct {
	seconds time.Duration // that count
	omitted time.Duration // before them
}

// warmupTiming is that of the round that is not counted.
var warmupTiming = timing{seconds: warmup}

func (c Config) timing() timing { return timing{c.Duration, c.Omit} }
