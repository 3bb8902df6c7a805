package plot

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"slipway/bench"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Marks in the README around what is generated.
const (
	readmeBegin = "<!-- generated from docs/benchmarks.json by make docs -->\n"
	readmeEnd   = "<!-- end of what is generated -->\n"
)

// TestDocs: docs/benchmarks.md with its plots, and the README's table, are what the run
// in docs/benchmarks.json gives. make docs writes them anew.
func TestDocs(t *testing.T) {
	r, err := bench.ReadReport("../../docs/benchmarks.json")
	if err != nil {
		t.Fatal(err)
	}
	files, err := Render(r, bench.Output{Format: bench.FormatMarkdown, Path: "benchmarks.md"})
	if err != nil {
		t.Fatal(err)
	}
	files[0].Name = "benchmarks.md"
	var names []string
	for _, f := range files {
		if *update {
			if err := os.MkdirAll(filepath.Dir(filepath.Join("../../docs", f.Name)), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		golden(t, filepath.Join("../../docs", f.Name), f.Data)
		names = append(names, filepath.Base(f.Name))
	}
	plots, err := os.ReadDir("../../docs/benchmarks")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range plots {
		if slices.Contains(names, p.Name()) {
			continue
		}
		if !*update {
			t.Errorf("docs/benchmarks/%s is no plot of docs/benchmarks.json", p.Name())
		} else if err := os.Remove(filepath.Join("../../docs/benchmarks", p.Name())); err != nil {
			t.Fatal(err)
		}
	}

	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), readmeBegin)
	_, after, ends := strings.Cut(rest, readmeEnd)
	if !ok || !ends {
		t.Fatalf("README.md does not have %q and %q", readmeBegin, readmeEnd)
	}
	var b bytes.Buffer
	b.WriteString(before + readmeBegin + "\n")
	if err := r.WriteHeadline(&b); err != nil {
		t.Fatal(err)
	}
	b.WriteString("\n" + readmeEnd + after)
	golden(t, "../../README.md", b.Bytes())
}

// golden compares text with a file.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got), make docs writes it anew:\n%s", path, diff)
	}
}
