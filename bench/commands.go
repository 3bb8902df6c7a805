package bench

import (
	"fmt"
	"io"
	"strings"
)

// WriteCommands says how each row was set up and measured, and which programs ran.
func (r *Report) WriteCommands(w io.Writer) error {
	var b strings.Builder
	for _, c := range r.Cells {
		if len(c.Commands) == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintln(&b, c.ID())
		for _, command := range c.Commands {
			fmt.Fprintf(&b, "  %s\n", command)
		}
		for _, p := range c.Programs {
			fmt.Fprintf(&b, "  # ran %s: %s (%s)\n", p.Path, p.Version, p.Source)
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write commands: %w", err)
	}
	return nil
}
