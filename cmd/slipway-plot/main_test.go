package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const sampleReport = "../../bench/testdata/report.json"

// run runs the command in this process and returns what it prints.
func run(t *testing.T, stdin []byte, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newCommand()
	cmd.SetArgs(args)
	cmd.SetIn(bytes.NewReader(stdin))
	cmd.SetOut(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// TestInput: a report in a file and one on standard input give the same page.
func TestInput(t *testing.T) {
	report, err := os.ReadFile(sampleReport)
	if err != nil {
		t.Fatal(err)
	}
	fromFile, err := run(t, nil, sampleReport)
	if err != nil || !strings.Contains(fromFile, `data-series="slipway/stream/up"`) {
		t.Fatalf("%v, printed %.100q", err, fromFile)
	}
	if piped, err := run(t, report); err != nil || piped != fromFile {
		t.Errorf("from standard input: %v, printed %.100q", err, piped)
	}
}

// TestBadInput: a clear error, and nothing left behind.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		stdin string
		args  []string
		want  string
	}{
		{"", []string{"-f", "pdf"}, "unknown format"},
		{"", []string{"-f", "png"}, "-o DIR"},
		{"", []string{sampleReport, "-f", "csv", "-o", filepath.Join(dir, "x.csv")}, "slipway bench report"},
		{"{}", []string{"-o", filepath.Join(dir, "x.html")}, "standard input: bad report"},
		{"", []string{"/nosuch"}, "no such file"},
		{"", []string{"a", "b"}, "at most 1"},
	} {
		if out, err := run(t, []byte(tt.stdin), tt.args...); err == nil || !strings.Contains(err.Error(), tt.want) || out != "" {
			t.Errorf("%v: %v, printed %.100q, want %q", tt.args, err, out, tt.want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
