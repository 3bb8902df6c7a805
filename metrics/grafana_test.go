package metrics

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

const dashboardPath = "grafana/slipway.json"

// gauges of slipway bench, which are exported by it and not by an engine.
var benchMetrics = []string{"slipway_bench_gap_ratio"}

// metricName finds what a query asks for. Slipway, and what it uses, has no others.
var metricName = regexp.MustCompile(`\b(?:slipway|process|go)_[a-z0-9_]+`)

// exposed are the names of all series that an exporter and a bench have.
func exposed(t *testing.T) map[string]bool {
	t.Helper()
	var scrape bytes.Buffer
	if err := New(fixed(sample()), "1.2.3").appendTo(&scrape); err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, name := range benchMetrics {
		names[name] = true
	}
	for _, f := range parse(t, scrape.Bytes()) {
		names[f.GetName()] = true
		if f.GetMetric()[0].GetHistogram() != nil {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				names[f.GetName()+suffix] = true
			}
		}
	}
	return names
}

// existing fails the test for a name in text that nobody exposes. It returns how many
// there are.
func existing(t *testing.T, names map[string]bool, where, text string) int {
	t.Helper()
	found := metricName.FindAllString(text, -1)
	for _, name := range found {
		if !names[name] {
			t.Errorf("%s: nobody exposes %s", where, name)
		}
	}
	return len(found)
}

// TestDashboardSchema: Grafana is silent about what it does not understand; the schema
// is not.
func TestDashboardSchema(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile("grafana/schema.json")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(dashboardPath)
	if err != nil {
		t.Fatal(err)
	}
	validate := func(text string) error {
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return schema.Validate(doc)
	}
	if err := validate(string(b)); err != nil {
		t.Errorf("%s: %v", dashboardPath, err)
	}
	for _, fault := range [][2]string{
		{`"legendFormat"`, `"legendFromat"`},
		{`"type": "timeseries"`, `"type": "timeserie"`},
		{`"unit": "bps"`, `"unit": "bits"`},
		{`"uid": "${datasource}"`, `"uid": "P1809F7CD0C75ACF3"`},
		{`"expr": "`, `"expr": "", "was": "`},
		{`"w": 12`, `"w": 25`},
		{`"title": "Slipway"`, `"title": ""`},
	} {
		if !strings.Contains(string(b), fault[0]) {
			t.Errorf("%s has no %s to break", dashboardPath, fault[0])
		}
		if validate(strings.Replace(string(b), fault[0], fault[1], 1)) == nil {
			t.Errorf("the schema takes %s in the place of %s", fault[1], fault[0])
		}
	}
}

// TestDashboard: panels have their own ids and places, and ask for what is exposed.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile(dashboardPath)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Annotations struct{ List []struct{ Name, Expr string } }
		Panels      []struct {
			ID      int
			Title   string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	names := exposed(t)
	ids := make(map[int]bool)
	cells := make(map[[2]int]string)
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("%s: the id %d is another panel's", p.Title, p.ID)
		}
		ids[p.ID] = true
		at := p.GridPos
		if at.X+at.W > 24 {
			t.Errorf("%s is wider than the page", p.Title)
		}
		for y := at.Y; y < at.Y+at.H; y++ {
			for x := at.X; x < at.X+at.W; x++ {
				if other, taken := cells[[2]int{x, y}]; taken {
					t.Fatalf("%s lies over %s", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		for _, target := range p.Targets {
			if existing(t, names, p.Title, target.Expr) == 0 {
				t.Errorf("%s: %s asks for no metric", p.Title, target.Expr)
			}
		}
	}
	for _, a := range d.Annotations.List {
		existing(t, names, a.Name, a.Expr)
	}
}

// TestRules: alerts ask for what is exposed, and promtool finds that each fires when it
// should and only then.
func TestRules(t *testing.T) {
	b, err := os.ReadFile("rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	if existing(t, exposed(t), "rules.yml", string(b)) == 0 {
		t.Error("rules.yml has no rules")
	}
	tested, err := os.ReadFile("testdata/rules_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(b), -1) {
		if !strings.Contains(string(tested), fmt.Sprintf("alertname=%q", alert[1])) {
			t.Errorf("testdata/rules_test.yml does not let %s fire", alert[1])
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skipf("%v: make deps-tests installs it", err)
	}
	for _, args := range [][]string{{"check", "rules", "rules.yml"}, {"test", "rules", "testdata/rules_test.yml"}} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
