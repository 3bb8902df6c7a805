package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
)

// WriteList writes the suites, the drivers, with whether they are installed, and all rows
// by what they do.
func WriteList(w io.Writer) error {
	var b strings.Builder
	b.WriteString("Suites:\n")
	suites := Suites()
	for _, s := range suites {
		fmt.Fprintf(&b, "  %-16s %s\n", s.Name, s.Text)
	}
	b.WriteString("\nDrivers:\n")
	self, err := selfPath()
	if err != nil {
		return err
	}
	machine := &bed{cfg: Config{Slipway: self}}
	if err := machine.lookPrograms(); err != nil {
		return err
	}
	for _, d := range drivers() {
		state := "always there"
		if path, reason := machine.find(d); reason != "" {
			state = reason
		} else if path != "" {
			state = path
		}
		fmt.Fprintf(&b, "  %-16s %s\n", d.name, state)
	}
	all := suites[len(suites)-1]
	r := &Report{Cells: catalogue(Config{Suite: all.Name, MTUs: all.MTUs, Streams: all.Streams})}
	fmt.Fprintf(&b, "\nRows of --suite %s (--only takes DRIVER, DRIVER/WORKLOAD or a whole row):\n", all.Name)
	for _, s := range r.sections() {
		fmt.Fprintf(&b, "  %s\n", s.Heading())
		for _, c := range s.Cells {
			fmt.Fprintf(&b, "    %s\n", c.ID())
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write list: %w", err)
	}
	return nil
}

// Describe says what a report would say about this machine and the programs on it;
// slipway is the path of the program under test.
func Describe(ctx context.Context, slipway, version string) Environment {
	b := &bed{cfg: Config{Slipway: slipway, Version: version}}
	b.iperf3, _ = lookIperf3(b.cfg) // without it there is no version of it to tell
	e := b.environment(ctx)
	// Of this namespace, not of the one that a run makes for itself.
	e.User = "ordinary user"
	if os.Geteuid() == 0 {
		e.User = "root"
	}
	if text, err := os.ReadFile(congestionSysctl); err == nil {
		e.Congestion = strings.TrimSpace(string(text))
	}
	return e
}

// Write writes the environment for a person.
func (e Environment) Write(w io.Writer) error {
	r := &Report{Environment: e}
	lines := []string{r.machine(), "load of the last minute: " + fmt.Sprintf("%g", e.Load1), "user: " + e.User}
	if _, err := fmt.Fprintln(w, strings.Join(append(lines, r.versions()...), "\n")); err != nil {
		return fmt.Errorf("write environment: %w", err)
	}
	return nil
}
