package bench

import (
	"fmt"
	"maps"
	"slices"
)

// quantity of a sample. better says which of two one would rather have.
type quantity struct {
	name        string // "": the unit says it
	lessIsMore  bool
	unit        func(Cell) Unit
	of          func(Sample) (value float64, known bool)
	ofReference bool // divided by the host's own of the same round
}

func perGigabyte(seconds func(Sample) float64) func(Sample) (float64, bool) {
	return func(s Sample) (float64, bool) { return seconds(s) / (float64(s.Bytes) / 1e9), s.Bytes > 0 }
}

func quantile(of func(Latency) float64) func(Sample) (float64, bool) {
	return func(s Sample) (float64, bool) {
		if s.Latency == nil {
			return 0, false
		}
		return of(*s.Latency), true
	}
}

func ofValue(s Sample) (float64, bool) { return s.Value, true }

func unitIs(u Unit) func(Cell) Unit { return func(Cell) Unit { return u } }

// secondsPerGigabyte is a unit of figures only.
const secondsPerGigabyte Unit = "s/GB"

var (
	speed     = quantity{unit: func(c Cell) Unit { return c.Unit }, of: ofValue}
	share     = quantity{name: "share of loopback", of: ofValue, ofReference: true}
	ready     = quantity{name: "time until ready", lessIsMore: true, unit: unitIs(UnitSeconds), of: ofValue}
	memory    = quantity{name: "memory", lessIsMore: true, unit: unitIs(UnitBytes), of: func(s Sample) (float64, bool) { return float64(s.RSS), s.RSS > 0 }}
	p50       = quantity{name: "p50", lessIsMore: true, unit: unitIs(UnitSeconds), of: quantile(func(l Latency) float64 { return l.P50 })}
	p99       = quantity{name: "p99", lessIsMore: true, unit: unitIs(UnitSeconds), of: quantile(func(l Latency) float64 { return l.P99 })}
	cpu       = quantity{name: "CPU of its processes", lessIsMore: true, unit: unitIs(secondsPerGigabyte), of: perGigabyte(func(s Sample) float64 { return s.CPUSeconds })}
	systemCPU = quantity{name: "CPU of the whole machine", lessIsMore: true, unit: unitIs(secondsPerGigabyte), of: perGigabyte(func(s Sample) float64 { return s.SystemCPUSeconds })}
)

// rounds are the values of a quantity in the measurements of a row that count, by their
// rounds.
func (r *Report) rounds(c Cell, q quantity) map[int]float64 {
	values := map[int]float64{}
	for _, s := range c.counted() {
		if v, known := q.of(s); known {
			values[s.Round] = v
		}
	}
	if !q.ofReference {
		return values
	}
	host := r.cell(c.yardstick().ID())
	if host == nil {
		return nil
	}
	return paired(values, r.rounds(*host, speed), func(a, b float64) float64 { return a / b })
}

// paired values of the rounds that both have; what would be divided by nothing is none.
func paired(a, b map[int]float64, with func(a, b float64) float64) map[int]float64 {
	values := map[int]float64{}
	for round, v := range a {
		if other, ok := b[round]; ok && other > 0 {
			values[round] = with(v, other)
		}
	}
	return values
}

// best of some rows by a quantity, nil when none of them has it. A row with a defect of
// its driver may be it: that makes it no easier to be better.
func (r *Report) best(cells []Cell, q quantity) *Cell {
	var best *Cell
	var value float64
	for i, c := range cells {
		rounds := r.rounds(c, q)
		if len(rounds) == 0 {
			continue
		}
		v := interval(slices.Collect(maps.Values(rounds))).Center
		if best == nil || q.lessIsMore == (v < value) && v != value {
			best, value = &cells[i], v
		}
	}
	return best
}

// matching rows of the report.
func (r *Report) matching(meant func(Cell) bool) []Cell {
	return slices.DeleteFunc(slices.Clone(r.Cells), func(c Cell) bool { return !meant(c) })
}

func (w rowsOf) means(c Cell) bool {
	return c.Driver == w.driver && c.Workload == w.workload && c.Direction == w.direction && (w.mtu == 0 || w.mtu == c.MTU) &&
		c.Streams == w.streams && c.Size == w.size && c.distance() == w.distance
}

// rival is whom a row of Slipway is compared with: the best of some rows by the quantity
// of the target, or by one of its own.
type rival struct {
	name  string
	means func(of, c Cell) bool
	by    *quantity
}

// same work as that of another row, with whatever driver and MTU.
func same(of, c Cell) bool {
	c.Driver, c.MTU = of.Driver, of.MTU
	return c.ID() == of.ID()
}

// others are rows of neither Slipway nor the kernel that do the same.
func others(of, c Cell) bool { return same(of, c) && !c.ours() && !c.kernel() }

var (
	hostLoopback      = rival{name: "the host", means: func(of, c Cell) bool { return c.ID() == of.yardstick().ID() }}
	peer              = rival{name: "a peer", means: others}
	fastestPeer       = rival{name: "the fastest peer", means: others, by: &speed}
	peerAtOrdinaryMTU = rival{name: "a peer at MTU 1500", means: func(of, c Cell) bool { return others(of, c) && c.MTU == ordinaryMTU }}
	oneStream         = rival{name: "one stream", means: func(of, c Cell) bool { of.Streams = 1; return c.ID() == of.ID() }}
	nothingPublished  = rival{name: "no published port", means: func(of, c Cell) bool {
		return rowsOf{of.Driver, WorkloadStart, DirectionUp, of.MTU, 1, 0, distance{}}.means(c)
	}}
	noFlows = rival{name: "no flow", means: func(of, c Cell) bool { of.Streams = 0; return c.ID() == of.ID() }}
)

// only one driver; mtu 0: at its best one.
func only(driver string, mtu int) rival {
	name := driver
	if mtu > 0 {
		name += fmt.Sprintf(" at MTU %d", mtu)
	}
	return rival{name: name, means: func(of, c Cell) bool { return same(of, c) && c.Driver == driver && (mtu == 0 || c.MTU == mtu) }}
}

// Verdict on a target.
type Verdict string

// Verdicts there are.
const (
	Met         Verdict = "met"
	NotMet      Verdict = "not met"
	NotMeasured Verdict = "not measured"
)

// Reached is what became of a target, in words.
type Reached struct {
	Work     string // what is done, and what of it is looked at
	Target   string
	Figure   string // "": not measured
	Interval string // of the figure
	Rival    string // the row that the figure is in relation to, "": none
	Verdict  Verdict
}

// Targets are what became of each, nil for a report of a suite that does not measure them.
func (r *Report) Targets() []Reached {
	if suite, err := LookSuite(r.Method.Suite); err != nil || !suite.targets {
		return nil
	}
	reached := make([]Reached, len(targets))
	for i, t := range targets {
		reached[i] = t.judge(r)
	}
	return reached
}

// judge a report by a target. The figure is the median over the rounds in which all that
// it is made of was measured.
func (t target) judge(r *Report) Reached {
	row := Cell{
		Driver: t.of.driver, Workload: t.of.workload, Direction: t.of.direction, MTU: t.of.mtu, Streams: t.of.streams, Size: t.of.size,
		DelayMillis: t.of.distance.millis, LostPerThousand: t.of.distance.lostPerThousand, Unit: unitOf(t.of.workload),
	}
	reached := Reached{Work: t.work(r, row), Target: t.text(row), Verdict: NotMeasured}
	of := r.best(r.matching(t.of.means), t.what)
	if of == nil {
		return reached
	}
	rounds, sick := r.rounds(*of, t.what), false
	if t.rival.means != nil {
		by := t.what
		if t.rival.by != nil {
			by = *t.rival.by
		}
		than := r.best(r.matching(func(c Cell) bool { return t.rival.means(*of, c) }), by)
		if than == nil {
			return reached
		}
		with := func(a, b float64) float64 { return a / b }
		if t.than == differenceAtMost {
			with = func(a, b float64) float64 { return (a - b) / float64(max(1, t.perFlow)) }
		}
		rounds, sick = paired(rounds, r.rounds(*than, t.what), with), than.Defect != ""
		if reached.Rival = than.Driver; than.MTU > 0 {
			reached.Rival += fmt.Sprintf(", MTU %d", than.MTU)
		}
	}
	if len(rounds) == 0 {
		return reached
	}
	figure := interval(slices.Collect(maps.Values(rounds)))
	met := t.than == ratioAtLeast && figure.Center >= t.limit || t.than != ratioAtLeast && figure.Center <= t.limit
	if met && sick {
		return reached // by the defect, perhaps
	}
	reached.Figure = t.format(row, figure.Center)
	reached.Interval = t.format(row, figure.Lo) + " - " + t.format(row, figure.Hi)
	reached.Verdict = NotMet
	if met {
		reached.Verdict = Met
	}
	return reached
}

// work that the target is about.
func (t target) work(r *Report, row Cell) string {
	text := section{Workload: t.of.workload, Direction: t.of.direction}.Title()
	if conditions := r.conditions(row); conditions != "" {
		text += ", " + conditions
	}
	if row.MTU == 0 {
		text += ", best MTU"
	}
	if row.Driver != DriverSlipway {
		text += " (" + row.Driver + ")"
	}
	if t.what.name != "" {
		text += ": " + t.what.name
	}
	if t.perFlow > 0 {
		text += " for each flow"
	}
	return text
}

// text of the target: the limit, and of what.
func (t target) text(row Cell) string {
	sign := "≤ "
	if t.than == ratioAtLeast {
		sign = "≥ "
	}
	text := sign + t.format(row, t.limit)
	switch {
	case t.than == differenceAtMost:
		text += " more than " + t.rival.name
	case t.rival.means != nil:
		text += " " + t.rival.name
	}
	return text
}

// format of the target's figure.
func (t target) format(row Cell, value float64) string {
	if t.than == ratioAtLeast || t.than == ratioAtMost {
		return times(value)
	}
	return t.what.unit(row).Format(value)
}

// summaryOf what became of the targets.
func summaryOf(reached []Reached) string {
	n := map[Verdict]int{}
	for _, t := range reached {
		n[t.Verdict]++
	}
	text := fmt.Sprintf("%d of %d targets are met", n[Met], len(reached))
	if n[NotMeasured] > 0 {
		text += fmt.Sprintf(", %d not measured", n[NotMeasured])
	}
	return text
}

// targetColumns are those of the table of targets; the last is for words.
var targetColumns = []string{"", "target", "reached", "interval", "beside", ""}

func (t Reached) line() []string {
	figure, interval, rival := t.Figure, t.Interval, t.Rival
	for _, text := range []*string{&figure, &interval, &rival} {
		if *text == "" {
			*text = "-"
		}
	}
	return []string{t.Work, t.Target, figure, interval, rival, string(t.Verdict)}
}
