package bench

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestImport(t *testing.T) {
	r, err := Import([]string{
		"host/stream/loopback=testdata/iperf3-forward.json", "testdata/iperf3-reverse.json", "testdata/iperf3-reverse.json",
		"pasta=testdata/iperf3-udp.json",
	})
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		ID      string
		Samples int
		Gap     bool
	}
	var got []row
	for _, c := range r.Cells {
		got = append(got, row{c.ID(), c.Summary.Samples, c.Summary.Gap > 0})
	}
	want := []row{{"host/stream/loopback", 1, true}, {"iperf3/stream/down", 2, true}, {"pasta/udp/up,size=1400", 1, false}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows(-want +got):\n%s", diff)
	}
	e := r.Environment
	if e.Kernel != "6.1.0" || e.Arch != "x86_64" || e.Versions["iperf3"] != "iperf 3.12" || e.Congestion != "reno" || e.Time.Year() != 2026 {
		t.Errorf("environment %+v", e)
	}
	if m := r.Method; m.Seconds != 1 || m.Repetitions != 2 {
		t.Errorf("method %+v", m)
	}
	// What was imported is a report as any other.
	if _, err := parseReport(render(t, r, FormatJSON)); err != nil {
		t.Error(err)
	}
}

func TestImportErrors(t *testing.T) {
	forward, err := os.ReadFile("testdata/iperf3-forward.json")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	changed := func(name, old, new string) string {
		text := strings.Replace(string(forward), old, new, 1)
		if text == string(forward) {
			t.Fatalf("%s: there is no %q to change", name, old)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const good = "testdata/iperf3-forward.json"
	tests := []struct {
		name  string
		files []string
		want  string
	}{
		{"two versions", []string{good, changed("version", "iperf 3.12", "iperf 3.16")}, `its iperf3 is "iperf 3.16", that of the files before is "iperf 3.12"`},
		{"two machines", []string{good, changed("machine", "Linux host", "Linux other")}, "its machine is"},
		{"two lengths", []string{good, changed("length", "\"duration\":\t1", "\"duration\":\t9")}, "its length in seconds is"},
		{"both directions", []string{"testdata/iperf3-bidir.json"}, "--bidir"},
		{"failed", []string{"testdata/iperf3-refused.json"}, "Connection refused"},
		{"a report", []string{"testdata/report.json"}, "the run was ended"},
		{"bad name", []string{"a/b=" + good}, `"a/b" is no name of a row`},
		{"bad driver", []string{"A b=" + good}, `"A b" is no name`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Import(tt.files); !errors.Is(err, ErrReport) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Import: %v, want %v with %q", err, ErrReport, tt.want)
			}
		})
	}
	if _, err := Import([]string{filepath.Join(dir, "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
