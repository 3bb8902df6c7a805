package bench

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// CompareBuilds compares the two builds of Slipway that a run has measured in turns: the
// rows of [DriverSlipwayOld] with those of [DriverSlipway], round by round, so that what
// the machine did from one run to the next does not count. Its error wraps [ErrDifferent]
// when there is no such row.
func CompareBuilds(r *Report, threshold float64) (*Comparison, error) {
	c := &Comparison{Threshold: threshold, Builds: true}
	for _, o := range r.Cells {
		if o.Driver != DriverSlipwayOld {
			continue
		}
		id := o.present().ID()
		n := r.cell(id)
		if n == nil {
			c.Without = append(c.Without, id+" (only of the old build)")
			continue
		}
		before, oldRatio := r.ratios(o)
		after, newRatio := r.ratios(*n)
		quotients := r.quotients(*n, o)
		switch {
		case oldRatio != newRatio || len(before) == 0 || len(after) == 0 || len(quotients) == 0:
			c.Without = append(c.Without, id+" (not measured in the same round, or with a defect, in one of them)")
			continue
		case len(quotients) > maxRepetitions:
			c.Without = append(c.Without, fmt.Sprintf("%s (more than %d measurements)", id, maxRepetitions))
			continue
		}
		c.Rows = append(c.Rows, Difference{
			Cell: *n, Ratio: newRatio, Old: interval(before).Center, New: interval(after).Center, Times: center(quotients),
			P: signedRank(quotients), N1: len(quotients), N2: len(quotients),
		})
	}
	switch {
	case len(c.Rows) == 0 && len(c.Without) == 0:
		return nil, fmt.Errorf("%w: there is one build in the report (bench --peer %s=PATH measures another one too)", ErrDifferent, DriverSlipwayOld)
	case len(c.Rows) == 0:
		return nil, fmt.Errorf("%w: no row was measured of both builds: %s", ErrDifferent, strings.Join(c.Without, ", "))
	}
	c.holm()
	return c, nil
}

// center of quotients: that around which they lie evenly, the median of the geometric
// means of all pairs of them, each with itself too (Hodges and Lehmann 1963).
func center(quotients []float64) float64 {
	logs := make([]float64, 0, len(quotients)*(len(quotients)+1)/2)
	for i, a := range quotients {
		for _, b := range quotients[:i+1] {
			logs = append(logs, (math.Log(a)+math.Log(b))/2)
		}
	}
	return math.Exp(middle(logs))
}

// signedRank is the probability that quotients lie as far to one side of 1 as these do,
// or farther, where either side is as likely: Wilcoxon's signed-rank test (1945), two-sided
// and exact, also with ties. Those that are 1 say nothing and are left out.
func signedRank(quotients []float64) float64 {
	var logs []float64
	for _, q := range quotients {
		if q != 1 {
			logs = append(logs, math.Log(q))
		}
	}
	slices.SortFunc(logs, func(a, b float64) int { return cmp.Compare(math.Abs(a), math.Abs(b)) })
	// Twice the ranks: those of a tie are the mean of what they share, and may end in a half.
	ranks := make([]int, len(logs))
	sum, above := 0, 0
	for from := 0; from < len(logs); {
		to := from
		for to < len(logs) && math.Abs(logs[to]) == math.Abs(logs[from]) {
			to++
		}
		for i := from; i < to; i++ {
			ranks[i] = from + 1 + to
			sum += ranks[i]
			if logs[i] > 0 {
				above += ranks[i]
			}
		}
		from = to
	}
	// The probability of each sum of the ranks on one side, one rank after the other.
	likely := make([]float64, sum+1)
	likely[0] = 1
	reached := 0
	for _, rank := range ranks {
		reached += rank
		for s := reached; s >= 0; s-- {
			likely[s] /= 2
			if s >= rank {
				likely[s] += likely[s-rank] / 2
			}
		}
	}
	p := 0.0
	for s := range min(above, sum-above) + 1 {
		p += likely[s]
	}
	return min(1, 2*p)
}
