package bench

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// method says how the numbers were made, in a sentence.
func (r *Report) method() string {
	m := r.Method
	text := fmt.Sprintf("Measurements of %g s", m.Seconds)
	if m.OmitSeconds > 0 {
		text += fmt.Sprintf(" after %g s that is not counted", m.OmitSeconds)
	}
	if m.WarmupSeconds > 0 {
		text += fmt.Sprintf(", %d of each row in turns after one warm-up", m.Repetitions)
	} else {
		text += fmt.Sprintf(", up to %d of each row", m.Repetitions)
	}
	if m.MTU > 0 {
		text += fmt.Sprintf("; container MTU %d bytes, one connection, where a row does not say otherwise", m.MTU)
	}
	return text
}

// machine says where the numbers were made, in a sentence.
func (r *Report) machine() string {
	e := r.Environment
	text := fmt.Sprintf("Linux %s %s", e.Kernel, e.Arch)
	if e.CPUs > 0 {
		text += ", " + count(e.CPUs, "CPU")
	}
	if e.CPUModel != "" {
		text += " (" + e.CPUModel + ")"
	}
	if e.Congestion != "" {
		text += ", TCP congestion control " + e.Congestion
	}
	return text
}

// versions of the programs, "name: version" each, Slipway's and iperf3's first.
func (r *Report) versions() []string {
	names := []string{"slipway", "iperf3"}
	for _, name := range slices.Sorted(maps.Keys(r.Environment.Versions)) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	var lines []string
	for _, name := range names {
		if v := r.Environment.Versions[name]; v != "" {
			lines = append(lines, name+": "+v)
		}
	}
	return lines
}

// warnings are the reasons for which the numbers should be taken with care.
func (r *Report) warnings() []string {
	var warnings []string
	if rows := r.above(wideSpread, func(s *Summary) float64 { return s.Spread }); rows != "" {
		warnings = append(warnings, fmt.Sprintf("more than %s of the median lies between the slowest and the fastest measurement of a row, small differences mean nothing: %s", percent(wideSpread), rows))
	}
	if rows := r.above(muchSteal, func(s *Summary) float64 { return s.Steal }); rows != "" {
		warnings = append(warnings, fmt.Sprintf("the machine's own host took more than %s of its CPU time meanwhile: %s", percent(muchSteal), rows))
	}
	if busy := float64(r.Environment.CPUs) / 2; busy > 0 && r.Environment.Load1 > busy {
		warnings = append(warnings, fmt.Sprintf("the machine was busy before the run: load %g on %s", r.Environment.Load1, count(r.Environment.CPUs, "CPU")))
	}
	if r.Error != "" {
		warnings = append(warnings, "this run is not complete: "+r.Error)
	}
	return warnings
}

// namedRows is how many rows a warning names.
const namedRows = 5

// above names the rows of which a share is above a limit, the worst first, and says how
// many they are where those are too many to name; "": none.
func (r *Report) above(limit float64, share func(*Summary) float64) string {
	measured, rows := 0, []Cell{}
	for _, c := range r.Cells {
		if c.Summary == nil {
			continue
		}
		measured++
		if share(c.Summary) > limit {
			rows = append(rows, c)
		}
	}
	slices.SortStableFunc(rows, func(a, b Cell) int { return cmp.Compare(share(b.Summary), share(a.Summary)) })
	names := make([]string, len(rows))
	for i, c := range rows {
		names[i] = fmt.Sprintf("%s (%s)", c.ID(), percent(share(c.Summary)))
	}
	if len(names) <= namedRows {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%d of %d rows, above all %s", len(names), measured, strings.Join(names[:namedRows], ", "))
}

// class of a row: which way its bytes take. Only rows of one class do the same.
type class string

const (
	classKernel class = "kernel path"
	classTAP    class = "TAP path"
	classSplice class = "splice path"
)

// classes are explained where rows of different ones stand side by side.
var classes = []struct {
	class class
	text  string
}{
	{classKernel, "No user-mode network in the way: the host's own loopback, or a veth pair, which only root can make. Nothing checks or counts what passes."},
	{classTAP, "Every packet of the container passes a TAP device and a network stack in user space: any protocol, every destination checked by policy."},
	{classSplice, "Published TCP ports whose bytes the kernel moves between two sockets by splice(2): no TAP, no copy to user space, TCP only. Slipway's show the server the client's own address; pasta's show a local one for clients on the host, RootlessKit's always one from inside the server's namespace."},
}

// class of a row, "" for a driver that is not known here.
func (c Cell) class() class {
	c = c.present()
	published := sideOf(c) == sideHost
	switch {
	case c.kernel(), strings.HasPrefix(c.Driver, "bypass4netns"):
		return classKernel
	case published && (c.Driver == DriverSlipway || c.Driver == DriverPasta || strings.HasPrefix(c.Driver, DriverRootlessKit)):
		return classSplice
	case c.ours(), c.Driver == DriverSlirp4netns, c.Driver == DriverPasta,
		strings.HasPrefix(c.Driver, "gvisor-tap-vsock"), strings.HasPrefix(c.Driver, "rootlesskit"):
		return classTAP
	}
	return ""
}

// limits are what the numbers do not show.
var limits = []string{
	"One machine, one moment: host loopback itself swings with what else the machine and its host do, and every gap swings with it.",
	"The container talks to the same machine: no network card, no wire, no loss. Over a real network the card is usually the bottleneck.",
	"Client, server and network share the machine's CPUs. With few of them, what one saves the others use, so speeds and CPU seconds depend on each other.",
	"Only the peers' versions that are named here were measured, each with the options that its command shows.",
}
