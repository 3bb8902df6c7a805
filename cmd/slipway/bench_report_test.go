package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"slipway/bench"
)

// benchOutput runs a slipway bench command in this process and returns what it prints
// and its exit status.
func benchOutput(t *testing.T, args ...string) (string, int, error) {
	t.Helper()
	var out bytes.Buffer
	root := &cobra.Command{Use: "slipway", Version: "test", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(newBenchCmd())
	root.SetArgs(append([]string{"bench"}, args...))
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	var plain exitError
	var other statusError
	switch {
	case err == nil:
		return out.String(), 0, nil
	case errors.As(err, &plain):
		return out.String(), int(plain), nil
	case errors.As(err, &other):
		return out.String(), other.status, err
	}
	return out.String(), 1, err
}

const sampleReport = "../../bench/testdata/report.json"

// withPlotter puts the program that draws where slipway bench report finds it. The
// end-to-end tests lie beside it.
func withPlotter(t *testing.T) {
	t.Helper()
	if os.Getenv("SLIPWAY_BIN") != "" {
		return
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", dir, "slipway/cmd/slipway-plot")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, text)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// TestFindPlotter: beside slipway first, then in PATH, and else what to do is said.
func TestFindPlotter(t *testing.T) {
	beside, path := t.TempDir(), t.TempDir()
	t.Setenv("PATH", path)
	if _, err := findPlotter(beside); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("none: %v", err)
	}
	for _, dir := range []string{path, beside} {
		want := filepath.Join(dir, plotter)
		if err := os.WriteFile(want, nil, 0o700); err != nil {
			t.Fatal(err)
		}
		if got, err := findPlotter(beside); got != want || err != nil {
			t.Errorf("found %s, %v, want %s", got, err, want)
		}
	}
}

// TestDrawFails: what the program that draws says is the error.
func TestDrawFails(t *testing.T) {
	report, err := bench.ReadReport(sampleReport)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), plotter)
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho no ink >&2\nexit 3\n"), 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	if err := draw(t.Context(), io.Discard, program, report, bench.Output{Format: bench.FormatHTML}); err == nil || err.Error() != "draw plots: no ink" {
		t.Errorf("draw: %v", err)
	}
}

// list names the files below a directory.
func list(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(dir, path)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func TestBenchReport(t *testing.T) {
	withPlotter(t)
	plots := func(prefix, suffix string) []string {
		var names []string
		for _, name := range []string{"gap", "published-down", "published-up", "stream-down", "stream-up"} {
			names = append(names, prefix+name+suffix)
		}
		return names
	}
	tests := []struct {
		format, out string
		want        []string // files
	}{
		{"table", "t.txt", []string{"t.txt"}},
		{"md", "run.md", append([]string{"run.md"}, plots("run/", ".svg")...)},
		{"html", "run.html", []string{"run.html"}},
		{"svg", "pictures", plots("pictures/", ".svg")},
		{"png", "pictures", plots("pictures/", ".png")},
	}
	for _, tt := range tests {
		t.Run(tt.format, func(t *testing.T) {
			dir := t.TempDir()
			out, status, err := benchOutput(t, "report", sampleReport, "-f", tt.format, "-o", filepath.Join(dir, tt.out))
			if status != 0 || err != nil || out != "" {
				t.Fatalf("status %d, %v, printed %q", status, err, out)
			}
			got := list(t, dir)
			slices.Sort(tt.want)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("files(-want +got):\n%s", diff)
			}
		})
	}
	for _, format := range []string{"table", "md", "csv", "json", "html", "benchfmt", "openmetrics", "commands"} {
		if out, status, err := benchOutput(t, "report", sampleReport, "-f", format); status != 0 || !strings.Contains(out, "slipway") {
			t.Errorf("%s: status %d, %v, printed %.100q", format, status, err, out)
		}
	}
}

// TestBenchBadInput: a clear error, the exit status 2, and nothing left behind.
func TestBenchBadInput(t *testing.T) {
	withPlotter(t)
	dir := t.TempDir()
	newer := filepath.Join(t.TempDir(), "newer.json")
	if err := os.WriteFile(newer, []byte(`{"schema":3}`), 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := bench.ReadReport(sampleReport)
	if err != nil {
		t.Fatal(err)
	}
	other.Environment.CPUModel = "another"
	elsewhere := filepath.Join(t.TempDir(), "elsewhere.json")
	if err := bench.WriteFile(elsewhere, other.WriteJSON); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"no file", []string{"report", "/nosuch"}, "no such file"},
		{"no report", []string{"report", "../../go.mod"}, "bad report"},
		{"newer", []string{"report", newer}, "schema 3, this program reads up to 2: it was written by a newer one, update slipway"},
		{"unknown format", []string{"report", sampleReport, "-f", "pdf", "-o", filepath.Join(dir, "x")}, "unknown format"},
		{"unknown option", []string{"report", "--nosuch"}, "nosuch"},
		{"no argument", []string{"report"}, "accepts 1 arg"},
		{"plots to stdout", []string{"report", sampleReport, "-f", "svg"}, "-o DIR"},
		{"Markdown to another name", []string{"report", sampleReport, "-f", "md", "-o", filepath.Join(dir, "README")}, "ends in .md"},
		{"page in a directory that is not there", []string{"report", sampleReport, "-f", "html", "-o", filepath.Join(dir, "none", "x")}, "no such file"},
		{"directory that is not there", []string{"report", sampleReport, "-o", filepath.Join(dir, "none", "x")}, "no such file"},
		{"no report to compare", []string{"compare"}, "accepts between 1 and 2 arg"},
		{"one build", []string{"compare", sampleReport}, "there is one build in the report"},
		{"threshold", []string{"compare", sampleReport, sampleReport, "--threshold", "200%"}, "less than 100%"},
		{"other machine", []string{"compare", sampleReport, elsewhere}, "--anyway"},
		{"unknown row", []string{"compare", sampleReport, sampleReport, "--only", "pasta"}, `no row "pasta"`},
		{"import of a report", []string{"import", sampleReport, "-o", filepath.Join(dir, "x.json")}, "bad report"},
		{"import of nothing", []string{"import"}, "at least 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, status, err := benchOutput(t, tt.args...)
			if status != badInput || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("status %d, %v, want %d and %q", status, err, badInput, tt.want)
			}
			if out != "" {
				t.Errorf("it printed %q", out)
			}
		})
	}
	if left := list(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// It compares them, but has three measurements of each row, which is too few to find anything.
	out, status, err := benchOutput(t, "compare", sampleReport, elsewhere, "--anyway")
	if status != badInput || err == nil || !strings.Contains(err.Error(), "too few measurements") || !strings.Contains(out, "warning: not the same") {
		t.Errorf("--anyway: status %d, %v, printed %q", status, err, out)
	}
}

// TestBenchCompare: 1 for what is worse, 0 for the same.
func TestBenchCompare(t *testing.T) {
	r := &bench.Report{Schema: bench.SchemaVersion}
	for _, driver := range []string{bench.DriverHost, bench.DriverSlipway} {
		c := bench.Cell{Driver: driver, Workload: bench.WorkloadStream, Direction: bench.DirectionUp, Streams: 1, Unit: bench.UnitBitsPerSecond}
		for round := 1; round <= 8; round++ {
			c.Samples = append(c.Samples, bench.Sample{Round: round, Value: 1e9 + float64(round), Seconds: 1})
		}
		r.Cells = append(r.Cells, c)
	}
	write := func(name string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := bench.WriteFile(path, r.WriteJSON); err != nil {
			t.Fatal(err)
		}
		return path
	}
	old := write("old.json")
	for i := range r.Cells[1].Samples {
		r.Cells[1].Samples[i].Value *= 0.9
	}
	slow := write("slow.json")
	twin := r.Cells[1]
	twin.Driver, twin.Samples = bench.DriverSlipwayOld, r.Cells[0].Samples
	r.Cells = append(r.Cells, twin)
	builds := write("builds.json")
	for _, tt := range []struct {
		args   []string
		status int
	}{
		{[]string{old, old}, 0}, {[]string{old, slow}, 1}, {[]string{slow, old}, 0}, {[]string{old, slow, "--threshold", "15%"}, 0},
		{[]string{builds}, 1}, {[]string{builds, "--only", "slipway/stream"}, 1}, {[]string{builds, "--threshold", "15%"}, 0},
	} {
		out, status, err := benchOutput(t, append([]string{"compare"}, tt.args...)...)
		if status != tt.status || err != nil || !strings.Contains(out, "slipway/stream/up") {
			t.Errorf("%v: status %d, %v, want %d:\n%s", tt.args, status, err, tt.status, out)
		}
	}
}

func TestBenchImport(t *testing.T) {
	const file = "../../bench/testdata/iperf3-forward.json"
	path := filepath.Join(t.TempDir(), "run.json")
	if _, status, err := benchOutput(t, "import", "host/stream/loopback="+file, "pasta="+file, "-o", path); status != 0 {
		t.Fatalf("status %d, %v", status, err)
	}
	r, err := bench.ReadReport(path)
	if err != nil || len(r.Cells) != 2 || r.Cells[1].Summary.Gap != 1 {
		t.Errorf("report %+v, %v", r, err)
	}
}

func TestBenchListAndEnv(t *testing.T) {
	out, status, err := benchOutput(t, "list")
	if status != 0 || !strings.Contains(out, "slipway/stream/up") || !strings.Contains(out, "Upload") {
		t.Errorf("list: status %d, %v, printed %q", status, err, out)
	}
	out, status, err = benchOutput(t, "env")
	if status != 0 || !strings.Contains(out, "Linux ") || !strings.Contains(out, "slipway: test") {
		t.Errorf("env: status %d, %v, printed %q", status, err, out)
	}
	out, _, _ = benchOutput(t, "env", "--json")
	var e bench.Environment
	if err := json.Unmarshal([]byte(out), &e); err != nil || e.CPUs < 1 || e.Kernel == "" || e.Congestion == "" {
		t.Errorf("env --json: %+v, %v", e, err)
	}
}

// TestWriteFileSpecial: what is no ordinary file is written, not replaced.
func TestWriteFileSpecial(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, err := os.OpenFile(path, os.O_RDWR, 0) // a FIFO holds 64 KiB, more than is written
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	if out, status, err := benchOutput(t, "report", sampleReport, "-o", path); status != 0 {
		t.Fatalf("status %d, %v, printed %q", status, err, out)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		t.Fatalf("the FIFO is %v now, %v", info, err)
	}
	text := make([]byte, 12)
	if _, err := fifo.Read(text); err != nil || string(text) != "Measurements" {
		t.Errorf("the FIFO holds %q, %v", text, err)
	}
}
