package bench

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestReadReport: what was written is read, sums included.
func TestReadReport(t *testing.T) {
	want := sampleReport()
	path := filepath.Join(t.TempDir(), "run.json")
	var b bytes.Buffer
	if err := want.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadReport(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ReadReport(-want +got):\n%s", diff)
	}
	if _, err := ReadReport(path + ".none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v, want %v", err, fs.ErrNotExist)
	}
	// More bytes than a report may have: a file with a hole costs no space.
	if err := os.Truncate(path, maxReport+1); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadReport(path); !errors.Is(err, ErrReport) || !strings.Contains(err.Error(), path) {
		t.Errorf("huge file: %v, want %v with its name", err, ErrReport)
	}
}

func TestParseReportErrors(t *testing.T) {
	cell := func(text string) string { return `{"schema":2,"cells":[` + text + `]}` }
	const good = `{"driver":"slipway","workload":"stream","direction":"up","streams":1,"unit":"bit/s"}`
	tests := []struct{ name, text, want string }{
		{"nothing", "", "unexpected end"},
		{"no JSON", "gap 0.5", "invalid character"},
		{"iperf3's", `{"start":{},"end":{}}`, "slipway bench import"},
		// A field whose shape has changed does not hide what is really wrong.
		{"newer", `{"schema":3,"cells":{"a":1}}`, "schema 3, this program reads up to 2: it was written by a newer one, update slipway"},
		{"older", `{"schema":1}`, "schema 1, this program reads 2: measure again"},
		{"other shape", `{"schema":2,"cells":7}`, "cannot unmarshal"},
		{"path as a name", cell(`{"driver":"../x","workload":"stream","direction":"up","unit":"s"}`), `"../x" is no name`},
		{"no name", cell(`{"driver":"a","workload":"","direction":"up","unit":"s"}`), `"" is no name`},
		{"unit", cell(`{"driver":"a","workload":"b","direction":"up","unit":"furlong"}`), `unknown unit "furlong"`},
		{"twice", cell(good + "," + good), "slipway/stream/up: there are two"},
		{"negative", cell(strings.Replace(good, "{", `{"samples":[{"round":1,"value":-1}],`, 1)), "value -1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := parseReport([]byte(tt.text)); !errors.Is(err, ErrReport) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("parseReport: %v, want %v with %q", err, ErrReport, tt.want)
			}
		})
	}
	if _, err := parseReport([]byte(cell(good))); err != nil {
		t.Errorf("a good one: %v", err)
	}
}
