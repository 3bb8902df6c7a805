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
	maxDuration    = 10 * time.Minute
	maxRepetitions = 1000
	minMTU         = 1280  // IPv6 needs it, RFC 8200 section 5; slipway attach takes no less
	maxMTU         = 65520 // what every program under test takes; TAP devices end at 65521
)

// ErrConfig is wrapped by every error of [Config.Validate].
var ErrConfig = errors.New("bad benchmark")

// Config says what to measure. Every field is needed; there are no hidden defaults.
type Config struct {
	// Duration of one measurement, in whole seconds. iperf3 runs a second longer,
	// which is left out: TCP's slow start.
	Duration time.Duration
	// Repetitions that are counted, after one warm-up round.
	Repetitions int
	// MTU of the container's link, in bytes, the same for every program under test.
	MTU int
	// Only names the rows to measure: DRIVER, DRIVER/WORKLOAD or DRIVER/WORKLOAD/DIRECTION.
	// Empty: all. The row of the host is always there, the others are divided by it.
	Only []string
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
	switch {
	case c.Duration < time.Second || c.Duration > maxDuration:
		return fmt.Errorf("%w: %s for one measurement, want 1 to %d seconds", ErrConfig, c.Duration, int(maxDuration.Seconds()))
	case c.Duration%time.Second != 0:
		return fmt.Errorf("%w: %s for one measurement, want whole seconds", ErrConfig, c.Duration)
	case c.Repetitions < 1 || c.Repetitions > maxRepetitions:
		return fmt.Errorf("%w: %d repetitions, want 1 to %d", ErrConfig, c.Repetitions, maxRepetitions)
	case c.MTU < minMTU || c.MTU > maxMTU:
		return fmt.Errorf("%w: MTU %d, want %d to %d bytes", ErrConfig, c.MTU, minMTU, maxMTU)
	}
	for _, want := range c.Only {
		if !slices.ContainsFunc(catalogue(c.MTU), func(cell Cell) bool { return cell.matches(want) }) {
			return fmt.Errorf("%w: no row %q, the rows are %s", ErrConfig, want, strings.Join(cellIDs(c.MTU), ", "))
		}
	}
	return nil
}

// cells are the rows that the configuration asks for.
func (c Config) cells() []Cell {
	return slices.DeleteFunc(catalogue(c.MTU), func(cell Cell) bool {
		if cell.Driver == DriverHost || len(c.Only) == 0 {
			return false
		}
		return !slices.ContainsFunc(c.Only, cell.matches)
	})
}

// Estimate is about how long the run takes, programs that are not installed included.
func (c Config) Estimate() time.Duration {
	const overhead = 400 * time.Millisecond // starting and ending a server and a client
	round := c.Duration + omit + overhead
	return time.Duration(len(c.cells())) * (warmup + overhead + time.Duration(c.Repetitions)*round)
}
