package bench

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/perf/benchmath"
)

// ErrDifferent is wrapped when two reports cannot be compared.
var ErrDifferent = errors.New("the reports do not compare")

// Comparison of two reports, or of two builds in one report, row by row.
type Comparison struct {
	Rows []Difference
	// Builds says that it is one of two builds in one report.
	Builds bool
	// Threshold is the share by which a row may get worse.
	Threshold float64
	// Without names rows that only one of the reports has.
	Without []string
	// Different is what is not the same in the two runs besides the code under test.
	Different []string
}

// Difference of a row between two reports or builds.
type Difference struct {
	Cell Cell // of the new one
	// Ratio says that Old and New are medians of ratios to loopback of the same round;
	// else they are in the unit of the row.
	Ratio    bool
	Old, New float64
	// Times is the factor from old to new: the median of all quotients of a new and an old
	// value (Hodges and Lehmann 1963), of two builds the center of those of each round. It
	// belongs to the test that P is of, and varies less from run to run than New/Old.
	Times    float64
	N1, N2   int
	P        float64 // of the Mann-Whitney test, of two builds of Wilcoxon's signed ranks
	Adjusted float64 // by Holm, for all rows together
}

// alpha is the probability of being told of a difference, in any row, where there is none,
// as far as two runs differ by no more than the rounds of one do. What varies from run to
// run comes on top of that, and is what the threshold is for.
const alpha = 0.01

// Significant says whether the difference is more than chance.
func (d Difference) Significant() bool { return d.Adjusted < alpha }

// Change is Times - 1: -0.1 is a tenth less.
func (d Difference) Change() float64 { return d.Times - 1 }

// Worse says whether the row is worse by more than a share, and not by chance.
func (d Difference) Worse(threshold float64) bool {
	change := d.Change()
	if !d.Cell.Unit.LessIsBetter() {
		change = -change
	}
	return d.Significant() && change > threshold
}

// Worse are the rows that got worse by more than the threshold.
func (c *Comparison) Worse() []Difference {
	var worse []Difference
	for _, d := range c.Rows {
		if d.Worse(c.Threshold) {
			worse = append(worse, d)
		}
	}
	return worse
}

// Differences between the runs of two reports, besides the code under test, that forbid
// to compare them.
func Differences(old, new *Report) []string {
	words := func(version string) string { // "iperf 3.12 (cJSON 1.7.15)" is "iperf 3.12"
		return strings.Join(strings.Fields(version)[:min(2, len(strings.Fields(version)))], " ")
	}
	machine := func(e Environment) string {
		return fmt.Sprintf("%s %s, %s %s", e.Kernel, e.Arch, count(e.CPUs, "CPU"), e.CPUModel)
	}
	var different []string
	for _, d := range []struct{ what, old, new string }{
		{"machine", machine(old.Environment), machine(new.Environment)},
		{"iperf3", words(old.Environment.Versions["iperf3"]), words(new.Environment.Versions["iperf3"])},
		{"congestion control", old.Environment.Congestion, new.Environment.Congestion},
		{"user", old.Environment.User, new.Environment.User},
		{"seconds of a measurement", fmt.Sprint(old.Method.Seconds), fmt.Sprint(new.Method.Seconds)},
		{"seconds left out of a measurement", fmt.Sprint(old.Method.OmitSeconds), fmt.Sprint(new.Method.OmitSeconds)},
	} {
		if d.old != d.new {
			different = append(different, fmt.Sprintf("%s: %q and %q", d.what, d.old, d.new))
		}
	}
	for _, c := range new.Cells {
		if o := old.cell(c.ID()); o != nil && o.Unit != c.Unit {
			different = append(different, fmt.Sprintf("unit of %s: %q and %q", c.ID(), o.Unit, c.Unit))
		}
	}
	return different
}

// Compare compares the rows that two reports of one machine have in common, each as
// ratios to loopback of its own run and round, so that what the machine did meanwhile
// cancels out. Its error wraps [ErrDifferent] when there is no such row.
func Compare(old, new *Report, threshold float64) (*Comparison, error) {
	c := &Comparison{Threshold: threshold, Different: Differences(old, new)}
	for _, n := range new.Cells {
		o := old.cell(n.ID())
		if o == nil {
			c.Without = append(c.Without, n.ID()+" (only in the new report)")
			continue
		}
		if n.Driver == DriverHost {
			continue // what all others are divided by has no ratio of its own
		}
		if o.Unit != n.Unit {
			c.Without = append(c.Without, n.ID()+" (in different units)")
			continue
		}
		before, oldRatio := old.ratios(*o)
		after, newRatio := new.ratios(n)
		if oldRatio != newRatio || len(before) == 0 || len(after) == 0 {
			c.Without = append(c.Without, n.ID()+" (not measured, or with a defect, in one of them)")
			continue
		}
		d := Difference{Cell: n, Ratio: newRatio, Old: interval(before).Center, New: interval(after).Center, Times: shift(before, after)}
		test := benchmath.AssumeNothing.Compare(
			benchmath.NewSample(before, &benchmath.DefaultThresholds), benchmath.NewSample(after, &benchmath.DefaultThresholds))
		d.P, d.N1, d.N2 = test.P, test.N1, test.N2
		c.Rows = append(c.Rows, d)
	}
	for _, o := range old.Cells {
		if new.cell(o.ID()) == nil {
			c.Without = append(c.Without, o.ID()+" (only in the old report)")
		}
	}
	if len(c.Rows) == 0 {
		return nil, fmt.Errorf("%w: no row was measured in both", ErrDifferent)
	}
	c.holm()
	return c, nil
}

// shift is Difference.Times.
func shift(before, after []float64) float64 {
	quotients := make([]float64, 0, len(before)*len(after))
	for _, a := range after {
		for _, b := range before {
			q := 1.0 // also of zeros
			if a != b {
				q = a / b
			}
			quotients = append(quotients, q)
		}
	}
	return middle(quotients)
}

// middle is the median of at least one value, which may be infinite, unlike those that
// interval takes. It sorts them.
func middle(values []float64) float64 {
	slices.Sort(values)
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}

// holm adjusts the probabilities of all rows together, so that the chance of a false
// alarm in any of them is alpha (Holm 1979, a simple sequentially rejective procedure).
func (c *Comparison) holm() {
	order := make([]int, len(c.Rows))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(c.Rows[a].P, c.Rows[b].P) })
	least := 0.0
	for rank, i := range order {
		least = max(least, min(1, c.Rows[i].P*float64(len(order)-rank)))
		c.Rows[i].Adjusted = least
	}
}

// leastP is the least probability that the test can give for samples of two sizes: the
// two most extreme of all ways to mix them, or of all ways to give each round a winner.
func (c *Comparison) leastP(n1, n2 int) float64 {
	ways := 1.0
	if c.Builds {
		return min(1, math.Exp2(float64(1-n1)))
	}
	for i := range n2 {
		ways *= float64(n1+i+1) / float64(i+1)
	}
	return min(1, 2/ways)
}

// repetitions are how many measurements of each row are needed for any difference in one
// of them to be more than chance.
func (c *Comparison) repetitions() int {
	for n := 1; ; n++ {
		if c.leastP(n, n)*float64(len(c.Rows)) < alpha {
			return n
		}
	}
}

// hidden says whether no difference in a row, however large, could be more than chance.
func (c *Comparison) hidden(d Difference) bool {
	return c.leastP(d.N1, d.N2)*float64(len(c.Rows)) >= alpha
}

// Blind says whether that is so in every row: then it says nothing that none is worse.
func (c *Comparison) Blind() bool {
	return !slices.ContainsFunc(c.Rows, func(d Difference) bool { return !c.hidden(d) })
}

// Write renders the comparison, "~" where there is no difference to speak of.
func (c *Comparison) Write(w io.Writer) error {
	var b strings.Builder
	for _, different := range c.Different {
		fmt.Fprintf(&b, "warning: not the same in the two runs: %s\n", different)
	}
	lines := [][]string{{"", "old", "new", "change", "p", ""}}
	few := false
	for _, d := range c.Rows {
		value := func(v float64) string {
			if d.Ratio {
				return ratio(v)
			}
			return d.Cell.Unit.Format(v)
		}
		change, verdict := "~", ""
		if d.Significant() {
			change = fmt.Sprintf("%+.1f %%", 100*d.Change())
			better := d.Cell.Unit.LessIsBetter() == (d.Change() < 0)
			switch {
			case better:
				verdict = "better"
			case d.Worse(c.Threshold):
				verdict = "WORSE"
			default:
				verdict = "worse, within the threshold"
			}
		}
		few = few || c.hidden(d)
		n := fmt.Sprintf("n=%d+%d", d.N1, d.N2)
		if c.Builds {
			n = fmt.Sprintf("n=%d", d.N1)
		}
		lines = append(lines, []string{
			d.Cell.ID(), value(d.Old), value(d.New), change, fmt.Sprintf("%.4f %s", d.Adjusted, n), verdict,
		})
	}
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, text := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	for _, line := range lines {
		text := line[0] + strings.Repeat(" ", widths[0]-utf8.RuneCountInString(line[0]))
		for i := 1; i < len(line)-1; i++ {
			text += padLeft(line[i], widths[i]+2)
		}
		fmt.Fprintln(&b, strings.TrimRight(text+"  "+line[len(line)-1], " "))
	}
	geomean, n := 0.0, 0
	for _, d := range c.Rows {
		if d.Ratio && !d.Cell.Unit.LessIsBetter() && d.Times > 0 && !math.IsInf(d.Times, 0) {
			geomean += math.Log(d.Times)
			n++
		}
	}
	if n > 0 {
		fmt.Fprintf(&b, "geometric mean of the changes in speed: %+.1f %%\n", 100*(math.Exp(geomean/float64(n))-1))
	}
	change, test := "the median of all quotients of a new and an old one", "Mann-Whitney"
	if c.Builds {
		change, test = "the center of the quotients of new and old in each round", "Wilcoxon's signed ranks"
	}
	fmt.Fprintf(&b, "\nmedians of the ratio to host loopback of the same round (x), or of the values where there is none; the change is by what %s differs from 1; ~ no difference at %g %%, by %s, corrected for %s by Holm; threshold %s\n",
		change, 100*alpha, test, count(len(c.Rows), "row"), percent(c.Threshold))
	if few {
		fmt.Fprintf(&b, "warning: too few measurements: with %s no difference, however large, is more than chance below %d repetitions of each (compare fewer with --only, or measure more often)\n",
			count(len(c.Rows), "row"), c.repetitions())
	}
	for _, row := range c.Without {
		fmt.Fprintf(&b, "not compared: %s\n", row)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write comparison: %w", err)
	}
	return nil
}

// Only leaves the rows that one of the words means, and those of the host.
func (r *Report) Only(words []string) error {
	for _, want := range words {
		if !slices.ContainsFunc(r.Cells, func(c Cell) bool { return c.matches(want) }) {
			return fmt.Errorf("%w: no row %q", ErrDifferent, want)
		}
	}
	r.Cells = slices.DeleteFunc(r.Cells, func(c Cell) bool {
		return c.Driver != DriverHost && len(words) > 0 && !slices.ContainsFunc(words, c.matches)
	})
	return nil
}
