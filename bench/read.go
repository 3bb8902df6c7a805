package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"sync"
)

// maxReport is the size in bytes above which a file is no report.
const maxReport = 64 << 20

// ErrReport is wrapped by every error about what a report says.
var ErrReport = errors.New("bad report")

// word is what drivers, workloads and directions are called by; they become names of
// files, labels and attributes.
var word = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`) })

// ReadReport reads the JSON of a report, and sums it up anew. Its errors wrap
// [ErrReport], or say why the file could not be read.
func ReadReport(path string) (*Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read a report: %w", err)
	}
	defer f.Close()
	return ReadReportFrom(f, path)
}

// ReadReportFrom is [ReadReport] of what is open already, under a name for errors.
func ReadReportFrom(in io.Reader, name string) (*Report, error) {
	text, err := readAll(in, name)
	if err != nil {
		return nil, err
	}
	r, err := parseReport(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// readBounded reads a file that has no more than maxReport bytes.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read a report: %w", err)
	}
	defer f.Close()
	return readAll(f, path)
}

func readAll(in io.Reader, name string) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(in, maxReport+1))
	if err != nil {
		return nil, fmt.Errorf("read a report: %w", err)
	}
	if len(text) > maxReport {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", name, ErrReport, maxReport)
	}
	return text, nil
}

func parseReport(text []byte) (*Report, error) {
	// The schema first: what a newer one holds may not fit into today's fields.
	var head struct {
		Schema *int `json:"schema"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReport, err)
	}
	switch {
	case head.Schema == nil:
		return nil, fmt.Errorf("%w: no schema; is it one of slipway bench --json? (of iperf3 --json: slipway bench import)", ErrReport)
	case *head.Schema > SchemaVersion:
		return nil, fmt.Errorf("%w: schema %d, this program reads up to %d: it was written by a newer one, update slipway", ErrReport, *head.Schema, SchemaVersion)
	case *head.Schema < SchemaVersion:
		return nil, fmt.Errorf("%w: schema %d, this program reads %d: measure again", ErrReport, *head.Schema, SchemaVersion)
	}
	r := &Report{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReport, err)
	}
	if err := r.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReport, err)
	}
	r.summarize()
	return r, nil
}

// validate says what is wrong with a report that somebody else may have written.
func (r *Report) validate() error {
	seen := map[string]bool{}
	for _, c := range r.Cells {
		for _, name := range []string{c.Driver, string(c.Workload), string(c.Direction)} {
			if !word().MatchString(name) {
				return fmt.Errorf("row %q: %q is no name", c.ID(), name)
			}
		}
		switch c.Unit {
		case UnitBitsPerSecond, UnitPerSecond, UnitSeconds, UnitBytes:
		default:
			return fmt.Errorf("row %s: unknown unit %q", c.ID(), c.Unit)
		}
		if seen[c.ID()] {
			return fmt.Errorf("row %s: there are two of them", c.ID())
		}
		seen[c.ID()] = true
		for _, s := range c.Samples {
			if s.Value < 0 || s.Round < 0 || s.Seconds < 0 {
				return fmt.Errorf("row %s, round %d: value %g, %g seconds", c.ID(), s.Round, s.Value, s.Seconds)
			}
		}
	}
	return nil
}
