package metrics

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// TestDocs: docs/metrics.md lists what an engine exposes, gVisor's counters and the Go
// runtime's aside.
func TestDocs(t *testing.T) {
	const (
		path  = "../docs/metrics.md"
		begin = "<!-- what follows is generated: go test ./metrics -update -->\n"
		end   = "<!-- end of what is generated -->\n"
	)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(old), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the lines between which the list stands", path)
	}
	want := head + begin + list(t) + end + tail
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(old)); diff != "" {
		t.Errorf("%s (-want +got), go test -update writes it anew:\n%s", path, diff)
	}
}

// list is the table of what an engine exposes, which is locked up: the usual collector
// of process metrics does not work there.
func list(t *testing.T) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(buildInfo("1.2.3"), newUsageCollector())
	locked := &Exporter{src: fixed(sample()), registry: registry}
	var scrape bytes.Buffer
	if err := locked.appendTo(&scrape); err != nil {
		t.Fatal(err)
	}
	families := parse(t, scrape.Bytes())
	var b strings.Builder
	b.WriteString("| metric | type | labels | what |\n| --- | --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(families)) {
		f := families[name]
		if strings.HasPrefix(f.GetName(), "slipway_netstack_") {
			continue
		}
		var labels []string
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if !slices.Contains(labels, l.GetName()) {
					labels = append(labels, l.GetName())
				}
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp())
	}
	return b.String()
}
