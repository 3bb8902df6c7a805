package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// SchemaVersion of [Report] in JSON. It rises when a reader of the old one would
// misread the new one.
const SchemaVersion = 2

// Drivers: what gives the container its network.
const (
	DriverHost        = "host" // no container at all
	DriverSlipway     = "slipway"
	DriverSlirp4netns = "slirp4netns"
	DriverPasta       = "pasta"
)

// Workload is what is done with the network.
type Workload string

const (
	// WorkloadStream is TCP connections made by the container, as many as the cell says.
	WorkloadStream Workload = "stream"
	// WorkloadPublished is TCP connections made by the host to a published port.
	WorkloadPublished Workload = "published"
)

// Direction of the payload, seen from the container.
type Direction string

const (
	// DirectionLoopback is that of the host's own row.
	DirectionLoopback Direction = "loopback"
	// DirectionUp is out of the container.
	DirectionUp Direction = "up"
	// DirectionDown is into the container.
	DirectionDown Direction = "down"
)

// Unit is what the value of a sample counts.
type Unit string

// Units there are.
const (
	UnitBitsPerSecond Unit = "bit/s" // of payload; more is better
	UnitPerSecond     Unit = "1/s"   // connections, requests, queries, pages; more is better
	UnitSeconds       Unit = "s"     // a latency or a time to get ready; less is better
	UnitBytes         Unit = "B"     // of memory; less is better
)

// LessIsBetter says which of two values of the unit one would rather have.
func (u Unit) LessIsBetter() bool { return u == UnitSeconds || u == UnitBytes }

// Report is one run: where, how, and every sample.
type Report struct {
	Schema      int         `json:"schema"`
	Environment Environment `json:"environment"`
	Method      Method      `json:"method"`
	Cells       []Cell      `json:"cells"`
	Skipped     []Skip      `json:"skipped,omitempty"`
	// Error is why the run ended before its end.
	Error string `json:"error,omitempty"`
}

// Environment of a run.
type Environment struct {
	Time       time.Time         `json:"time"`
	Kernel     string            `json:"kernel"`
	Arch       string            `json:"arch"`
	CPUs       int               `json:"cpus"`
	CPUModel   string            `json:"cpu_model,omitempty"`
	Load1      float64           `json:"load1"` // load average of the last minute before the run
	Congestion string            `json:"tcp_congestion_control"`
	User       string            `json:"user"` // how ids map into the namespace of the run
	Versions   map[string]string `json:"versions"`
}

// Method of a run.
type Method struct {
	Suite         string  `json:"suite,omitempty"` // its name
	Seconds       float64 `json:"seconds"`
	OmitSeconds   float64 `json:"omit_seconds"`
	WarmupSeconds float64 `json:"warmup_seconds"`
	Repetitions   int     `json:"repetitions"`
	MTU           int     `json:"mtu"`
	Streams       int     `json:"streams"`
	// Command that makes the whole run, as a person would type it.
	Command string `json:"command,omitempty"`
}

// Cell is one row: a driver doing a workload in a direction, under the conditions that
// the next fields name.
type Cell struct {
	Driver    string    `json:"driver"`
	Workload  Workload  `json:"workload"`
	Direction Direction `json:"direction"`
	MTU       int       `json:"mtu,omitempty"` // bytes, of the container's link; 0: there is none
	Streams   int       `json:"streams"`       // connections at a time
	// Size in bytes of one datagram, request or page; 0: the workload has none.
	Size int `json:"size,omitempty"`
	// DelayMillis is the round trip in milliseconds that was put in on purpose.
	DelayMillis int `json:"delay_ms,omitempty"`
	// LostPerThousand packets are dropped each way on purpose, beside the delay.
	LostPerThousand int  `json:"lost_per_1000,omitempty"`
	Unit            Unit `json:"unit"`
	// Commands that set the row up and measure it, as a person would type them.
	Commands []string `json:"commands,omitempty"`
	// Processes whose CPU time is counted, by their command lines.
	Processes []string `json:"processes,omitempty"`
	// Programs that those processes run, as the kernel names them.
	Programs []Program `json:"programs,omitempty"`
	Samples  []Sample  `json:"samples,omitempty"`
	// Error is why the row was given up.
	Error string `json:"error,omitempty"`
	// Defect is a known fault of the driver that makes the figures what they are: they are
	// shown, and nothing is divided by them.
	Defect  string   `json:"defect,omitempty"`
	Summary *Summary `json:"summary,omitempty"`
}

// Sample is one measurement.
type Sample struct {
	Round   int     `json:"round"` // 0: warm-up, not counted
	Value   float64 `json:"value"` // in the unit of the cell
	Seconds float64 `json:"seconds"`
	// Elapsed is how many seconds lie between the readings of CPU time, the start of the client
	// and what it omitted included.
	Elapsed float64 `json:"elapsed_seconds,omitempty"`
	// Bytes of payload, those of the omitted second included; 0: the workload does not count them.
	Bytes       uint64 `json:"bytes"`
	Retransmits uint64 `json:"retransmits"`
	// Loss is the share of datagrams that did not arrive, 0 to 1.
	Loss float64 `json:"loss,omitempty"`
	// Latency of single requests, where the workload is made of them.
	Latency *Latency `json:"latency,omitempty"`
	// CPUSeconds that the driver's own processes used meanwhile.
	CPUSeconds float64 `json:"cpu_seconds"`
	// SystemCPUSeconds that the whole machine used meanwhile, proc_stat(5), clients and
	// servers included; and StealSeconds that others took from it.
	SystemCPUSeconds float64 `json:"system_cpu_seconds,omitempty"`
	StealSeconds     float64 `json:"steal_seconds,omitempty"`
	// RSS in bytes of the driver's processes after the measurement.
	RSS                uint64 `json:"rss_bytes,omitempty"`
	SenderCongestion   string `json:"sender_congestion_control,omitempty"`
	ReceiverCongestion string `json:"receiver_congestion_control,omitempty"`
	Error              string `json:"error,omitempty"`
}

// Latency of the requests of one measurement, in seconds.
type Latency struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	// P999 is 0 where it is not known: wrk does not say it.
	P999 float64 `json:"p999"`
}

// tail is what is known beyond the median.
func (l Latency) tail() string {
	text := "p99 " + UnitSeconds.Format(l.P99)
	if l.P999 > 0 {
		text += ", p99.9 " + UnitSeconds.Format(l.P999)
	}
	return text
}

// Skip is a driver that was not measured, and why.
type Skip struct {
	Driver string `json:"driver"`
	// Workload that was not measured with it; "": all of them.
	Workload Workload `json:"workload,omitempty"`
	Reason   string   `json:"reason"`
}

// String says what was left out and why.
func (s Skip) String() string {
	return strings.TrimSpace(s.Driver+" "+string(s.Workload)) + ": " + s.Reason
}

// ID names a row: DRIVER/WORKLOAD/DIRECTION, and what else sets it apart, as in
// slipway/stream/up,streams=4,mtu=65520.
func (c Cell) ID() string {
	id := c.Driver + "/" + string(c.Workload) + "/" + string(c.Direction)
	for _, d := range []struct {
		name            string
		value, ordinary int
	}{
		{"streams", c.Streams, 1},
		{"size", c.Size, 0},
		{"delay", c.DelayMillis, 0},
		{"lost", c.LostPerThousand, 0},
		{"mtu", c.MTU, ordinaryMTU},
	} {
		if d.value != 0 && d.value != d.ordinary {
			id += fmt.Sprintf(",%s=%d", d.name, d.value)
		}
	}
	return id
}

// ordinaryMTU is the MTU in bytes that the name of a row leaves out.
const ordinaryMTU = 1500

// matches says whether a word of --only means this row. One that means a row of Slipway
// also means that of the other build.
func (c Cell) matches(want string) bool {
	return want != "" && slices.ContainsFunc([]string{c.ID(), c.present().ID()}, func(id string) bool {
		rest, ok := strings.CutPrefix(id, want)
		return ok && (rest == "" || rest[0] == '/' || rest[0] == ',')
	})
}

// present is, of a row of another build of Slipway, that of the build under test; every
// other row is itself.
func (c Cell) present() Cell {
	if c.Driver == DriverSlipwayOld {
		c.Driver = DriverSlipway
	}
	return c
}

// Failed names the rows without which a run is worth nothing, those of the host and
// of Slipway, that failed in whole or in part.
func (r *Report) Failed() []string {
	var failed []string
	for _, c := range r.Cells {
		if c.Driver != DriverHost && c.present().Driver != DriverSlipway {
			continue
		}
		if c.failure() != "" {
			failed = append(failed, c.ID())
		}
	}
	return failed
}

// Measured says whether there is any number to show.
func (r *Report) Measured() bool {
	return slices.ContainsFunc(r.Cells, func(c Cell) bool { return c.Summary != nil })
}

// failure is the first thing that went wrong in a row, "" when nothing did.
func (c Cell) failure() string {
	if c.Error != "" {
		return c.Error
	}
	for _, s := range c.Samples {
		if s.Error != "" {
			return s.Error
		}
	}
	return ""
}

// WriteJSON writes the report with its raw samples.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}
