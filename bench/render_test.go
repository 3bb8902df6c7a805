package bench

import (
	"bytes"
	"encoding/csv"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/perf/benchfmt"
)

// render renders a report in a format that needs no plots.
func render(t *testing.T, r *Report, format Format) []byte {
	t.Helper()
	text, err := r.Render(Output{Format: format})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestRenderText: what is text is compared as a whole. The tests of package plot draw the
// report that is kept as JSON.
func TestRenderText(t *testing.T) {
	for _, format := range []Format{FormatTable, FormatMarkdown, FormatCSV, FormatJSON, FormatBenchfmt, FormatOpenMetrics} {
		golden(t, filepath.Join("testdata", "kinds."+string(format)), render(t, kindsReport(), format))
	}
}

func TestRenderErrors(t *testing.T) {
	for _, tt := range []struct {
		out  Output
		want string
	}{
		{Output{Format: "pdf"}, `"pdf", there are table, md`},
		{Output{Format: FormatHTML}, "slipway-plot"},
		{Output{FormatSVG, "plots"}, "slipway-plot"},
		{Output{Format: FormatPNG}, "-o DIR"},
		{Output{FormatMarkdown, "README"}, "ends in .md"},
		{Output{FormatMarkdown, "docs/.md"}, "ends in .md"},
	} {
		if _, err := sampleReport().Render(tt.out); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.out, err, tt.want)
		}
	}
	empty := &Report{Schema: SchemaVersion}
	if _, err := empty.Render(Output{Format: FormatOpenMetrics}); err == nil || !strings.Contains(err.Error(), "nothing was measured") {
		t.Errorf("nothing as metrics: %v", err)
	}
	for _, format := range []Format{FormatTable, FormatMarkdown, FormatCSV, FormatJSON, FormatBenchfmt} {
		if _, err := empty.Render(Output{Format: format}); err != nil {
			t.Errorf("nothing as %s: %v", format, err)
		}
	}
	for name, write := range map[string]func(io.Writer) error{
		"csv": sampleReport().writeCSV, "benchfmt": sampleReport().writeBenchfmt, "openmetrics": sampleReport().writeOpenMetrics,
	} {
		if err := write(brokenPipe{}); !errors.Is(err, errBroken) {
			t.Errorf("%s to a broken pipe: %v, want %v", name, err, errBroken)
		}
	}
}

// TestCSVColumns: every line has as many fields as the first, which the reader checks.
func TestCSVColumns(t *testing.T) {
	r := kindsReport()
	lines, err := csv.NewReader(bytes.NewReader(render(t, r, FormatCSV))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(lines) != len(r.Cells)+1 {
		t.Errorf("%d lines for %d rows", len(lines), len(r.Cells))
	}
}

// TestBenchfmtIsRead: by the library that benchstat reads with, unit by unit.
func TestBenchfmtIsRead(t *testing.T) {
	r := kindsReport()
	reader := benchfmt.NewReader(bytes.NewReader(render(t, r, FormatBenchfmt)), "bench")
	results := 0
	for reader.Scan() {
		switch record := reader.Result().(type) {
		case *benchfmt.SyntaxError:
			t.Error(record)
		case *benchfmt.Result:
			results++
			for _, v := range record.Values {
				if reader.Units().Get(v.Unit, "better") == nil {
					t.Errorf("%s: nothing says whether more %s is better", record.Name, v.Unit)
				}
			}
		}
	}
	if err := reader.Err(); err != nil {
		t.Fatal(err)
	}
	if want := 7 * len(r.Cells); results != want {
		t.Errorf("%d results, want %d", results, want)
	}
}

// TestMetrics: promlint has nothing to say but that Prometheus counts bytes, where
// networks are known by their bits in a second, and the textfile collector's parser reads
// what is written.
func TestMetrics(t *testing.T) {
	text := render(t, kindsReport(), FormatOpenMetrics)
	problems, err := testutil.CollectAndLint(collector{kindsReport()})
	if err != nil {
		t.Fatal(err)
	}
	written, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(problems, written...) {
		if p.Metric == "slipway_bench_bits_per_second" && strings.Contains(p.Text, `"bytes" instead of "bits"`) {
			continue
		}
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"gap_ratio", "bits_per_second", "operations_per_second", "duration_seconds", "cpu_seconds_per_gigabyte",
		"system_cpu_seconds_per_gigabyte", "latency_seconds", "loss_ratio", "spread_ratio", "last_run_timestamp_seconds",
	} {
		if families["slipway_bench_"+name] == nil {
			t.Errorf("no slipway_bench_%s", name)
		}
	}
}

// TestGauges: of a row in two reports the newer counts, and a file that is no report is
// counted and hides nothing.
func TestGauges(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, r *Report) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), render(t, r, FormatJSON), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	older, newer := sampleReport(), sampleReport()
	older.Environment.Time = newer.Environment.Time.AddDate(0, 0, -1)
	older.Cells = older.Cells[:1]
	for i := range newer.Cells[0].Samples {
		newer.Cells[0].Samples[i].Value = 50e9
	}
	newer.Cells = newer.Cells[:1]
	write("a.json", newer)
	write("b.json", older)
	if err := os.WriteFile(filepath.Join(dir, "c.json"), []byte(`{"schema":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	if err := registry.Register(Gauges{dir}); err != nil {
		t.Fatal(err)
	}
	const want = `
# HELP slipway_bench_bits_per_second Median of the payload's speed.
# TYPE slipway_bench_bits_per_second gauge
slipway_bench_bits_per_second{delay_ms="",direction="loopback",driver="host",lost_per_1000="",mtu="",size="",streams="1",workload="stream"} 5e+10
# HELP slipway_bench_unreadable_reports Files that are no report this program can read.
# TYPE slipway_bench_unreadable_reports gauge
slipway_bench_unreadable_reports 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "slipway_bench_bits_per_second", "slipway_bench_unreadable_reports"); err != nil {
		t.Error(err)
	}
	if _, failures := (Gauges{filepath.Join(dir, "none")}).Read(); len(failures) != 1 || !errors.Is(failures[0], os.ErrNotExist) {
		t.Errorf("no such path: %v", failures)
	}
}
