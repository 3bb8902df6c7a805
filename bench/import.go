package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// iperf3Start is what is read of a document of iperf3 --json besides the result.
type iperf3Start struct {
	Start struct {
		Version    string `json:"version"`
		SystemInfo string `json:"system_info"`
		Timestamp  struct {
			Seconds int64 `json:"timesecs"`
		} `json:"timestamp"`
		Test struct {
			Protocol string  `json:"protocol"`
			Streams  int     `json:"num_streams"`
			Block    int     `json:"blksize"`
			Omit     float64 `json:"omit"`
			Duration float64 `json:"duration"`
			Reverse  int     `json:"reverse"`
		} `json:"test_start"`
	} `json:"start"`
	End struct {
		Reverse *struct{} `json:"sum_sent_bidir_reverse"`
		Sum     struct {
			LostPercent float64 `json:"lost_percent"`
		} `json:"sum"`
	} `json:"end"`
}

// Import makes a report of files that iperf3 --json has written. Each is PATH, or
// NAME=PATH where NAME is a driver or DRIVER/WORKLOAD/DIRECTION; files of one row are its
// repetitions, in that order. Its errors wrap [ErrReport] where a file cannot be used.
func Import(files []string) (*Report, error) {
	var i importer
	for _, file := range files {
		name, path, named := strings.Cut(file, "=")
		if !named {
			name, path = "iperf3", file
		}
		text, err := readBounded(path)
		if err != nil {
			return nil, err
		}
		if err := i.add(name, text); err != nil {
			return nil, fmt.Errorf("import %s: %w: %w", path, ErrReport, err)
		}
	}
	i.report.Schema = SchemaVersion
	if err := i.report.validate(); err != nil {
		return nil, fmt.Errorf("import: %w: %w", ErrReport, err)
	}
	i.report.summarize()
	return &i.report, nil
}

// importer gathers documents of one run.
type importer struct {
	report Report
	system string // iperf3's system_info of the first: name, kernel and architecture of the machine
}

// add adds the measurement of a document to the row of a name.
func (i *importer) add(name string, text []byte) error {
	s, err := parseIperf3(text, Cell{Workload: WorkloadStream})
	if err != nil {
		return err
	}
	var doc iperf3Start
	if err := json.Unmarshal(text, &doc); err != nil {
		return err
	}
	test := doc.Start.Test
	if doc.End.Reverse != nil {
		return errors.New("it is of --bidir, whose two directions are no single number")
	}
	if doc.Start.Version == "" || test.Streams < 1 {
		return errors.New("it does not say which iperf3 it is of, or how many streams; is it of iperf3 --json at the client?")
	}
	if err := i.belongs(doc); err != nil {
		return err
	}
	r := &i.report
	c := Cell{Workload: WorkloadStream, Direction: DirectionUp, Streams: test.Streams, Unit: UnitBitsPerSecond}
	if test.Reverse != 0 {
		c.Direction = DirectionDown
	}
	if test.Protocol == "UDP" {
		c.Workload, c.Size = "udp", test.Block
		s.Loss = doc.End.Sum.LostPercent / 100
	}
	switch parts := strings.Split(name, "/"); len(parts) {
	case 1:
		c.Driver = name
	case 3:
		c.Driver, c.Workload, c.Direction = parts[0], Workload(parts[1]), Direction(parts[2])
	default:
		return fmt.Errorf("%q is no name of a row: want DRIVER or DRIVER/WORKLOAD/DIRECTION", name)
	}
	row := r.cell(c.ID())
	if row == nil {
		r.Cells = append(r.Cells, c)
		row = &r.Cells[len(r.Cells)-1]
	}
	s.Round = len(row.Samples) + 1
	row.Samples = append(row.Samples, s)
	r.Method.Repetitions = max(r.Method.Repetitions, s.Round)
	for _, congestion := range []string{s.SenderCongestion, s.ReceiverCongestion} {
		if congestion == "" || slices.Contains(strings.Split(r.Environment.Congestion, ", "), congestion) {
			continue
		}
		r.Environment.Congestion = strings.TrimPrefix(r.Environment.Congestion+", "+congestion, ", ")
	}
	return nil
}

// belongs says what keeps a document out of the table of those before it; the first one
// says what the run is.
func (i *importer) belongs(doc iperf3Start) error {
	r, start := &i.report, doc.Start
	if len(r.Cells) == 0 {
		i.system = start.SystemInfo
		r.Method = Method{Seconds: start.Test.Duration, OmitSeconds: start.Test.Omit, Streams: 1}
		r.Environment = Environment{
			Time: time.Unix(start.Timestamp.Seconds, 0).UTC(), User: "not known: imported",
			Versions: map[string]string{"iperf3": start.Version},
		}
		// As uname(1) --all prints it: Linux HOST RELEASE ... ARCH.
		if words := strings.Fields(start.SystemInfo); len(words) > 3 {
			r.Environment.Kernel, r.Environment.Arch = words[2], words[len(words)-1]
		}
	}
	for _, d := range []struct{ what, has, other string }{
		{"iperf3", r.Environment.Versions["iperf3"], start.Version},
		{"machine", i.system, start.SystemInfo},
		{"length in seconds", fmt.Sprint(r.Method.Seconds), fmt.Sprint(start.Test.Duration)},
	} {
		if d.has != d.other {
			return fmt.Errorf("its %s is %q, that of the files before is %q: they do not belong into one table, import them apart", d.what, d.other, d.has)
		}
	}
	return nil
}
