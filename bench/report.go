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
const SchemaVersion = 1

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
	// WorkloadStream is one TCP connection made by the container.
	WorkloadStream Workload = "stream"
	// WorkloadPublished is one TCP connection made by the host to a published port.
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
	Seconds       float64 `json:"seconds"`
	OmitSeconds   float64 `json:"omit_seconds"`
	WarmupSeconds float64 `json:"warmup_seconds"`
	Repetitions   int     `json:"repetitions"`
	MTU           int     `json:"mtu"`
	Streams       int     `json:"streams"`
}

// Cell is one row: a driver doing a workload in a direction.
type Cell struct {
	Driver    string    `json:"driver"`
	Workload  Workload  `json:"workload"`
	Direction Direction `json:"direction"`
	// Commands that set the row up and measure it, as a person would type them.
	Commands []string `json:"commands,omitempty"`
	// Processes whose CPU time is counted, by their command lines.
	Processes []string `json:"processes,omitempty"`
	Samples   []Sample `json:"samples,omitempty"`
	// Error is why the row was given up.
	Error   string   `json:"error,omitempty"`
	Summary *Summary `json:"summary,omitempty"`
}

// Sample is one measurement.
type Sample struct {
	Round         int     `json:"round"` // 0: warm-up, not counted
	BitsPerSecond float64 `json:"bits_per_second"`
	Seconds       float64 `json:"seconds"`
	// Bytes of payload, those of the omitted second included.
	Bytes       uint64 `json:"bytes"`
	Retransmits uint64 `json:"retransmits"`
	// CPUSeconds that the driver's own processes used for Bytes.
	CPUSeconds         float64 `json:"cpu_seconds"`
	SenderCongestion   string  `json:"sender_congestion_control,omitempty"`
	ReceiverCongestion string  `json:"receiver_congestion_control,omitempty"`
	Error              string  `json:"error,omitempty"`
}

// Skip is a driver that was not measured, and why.
type Skip struct {
	Driver string `json:"driver"`
	Reason string `json:"reason"`
}

// ID names a row: DRIVER/WORKLOAD/DIRECTION.
func (c Cell) ID() string {
	return c.Driver + "/" + string(c.Workload) + "/" + string(c.Direction)
}

// matches says whether a word of --only means this row.
func (c Cell) matches(want string) bool {
	return want != "" && strings.HasPrefix(c.ID()+"/", want+"/")
}

// catalogue lists every row there is, in the order of measuring and printing.
func catalogue() []Cell {
	cells := []Cell{{Driver: DriverHost, Workload: WorkloadStream, Direction: DirectionLoopback}}
	for _, way := range []Cell{
		{Workload: WorkloadStream, Direction: DirectionUp},
		{Workload: WorkloadStream, Direction: DirectionDown},
		{Workload: WorkloadPublished, Direction: DirectionDown},
		{Workload: WorkloadPublished, Direction: DirectionUp},
	} {
		for _, driver := range []string{DriverSlipway, DriverSlirp4netns, DriverPasta} {
			way.Driver = driver
			cells = append(cells, way)
		}
	}
	return cells
}

func cellIDs() []string {
	var ids []string
	for _, c := range catalogue() {
		ids = append(ids, c.ID())
	}
	return ids
}

// Failed names the rows without which a run is worth nothing, those of the host and
// of Slipway, that failed in whole or in part.
func (r *Report) Failed() []string {
	var failed []string
	for _, c := range r.Cells {
		if c.Driver != DriverHost && c.Driver != DriverSlipway {
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
