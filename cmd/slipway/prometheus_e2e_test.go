//go:build e2e

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Addresses on the private host.
const (
	slipwayMetrics = "127.0.0.1:9101"
	benchMetrics   = "127.0.0.1:9102"
	prometheusAddr = "127.0.0.1:9090"
)

// scrapeInterval is short, so that there is something to see within a second.
const scrapeInterval = 250 * time.Millisecond

// promServer is a running Prometheus of Debian's package.
type promServer struct {
	*process
	client *http.Client
}

// startPrometheus starts one that scrapes Slipways at targets, and what a bench exports, and has
// loaded the rules that come with Slipway.
func startPrometheus(t *testing.T, targets ...string) *promServer {
	t.Helper()
	path, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skipf("%v: make deps-tests installs it", err)
	}
	rules, err := filepath.Abs("../../metrics/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf(`global: {scrape_interval: %[1]s, scrape_timeout: %[1]s, evaluation_interval: %[1]s}
rule_files: [%[2]q]
scrape_configs:
  - {job_name: slipway, static_configs: [{targets: [%[3]s]}]}
  - {job_name: slipway-bench, static_configs: [{targets: [%[4]q]}]}
`, scrapeInterval, rules, strings.Join(targets, ", "), benchMetrics)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	p := &promServer{
		process: start(t, exec.Command(path, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+prometheusAddr)),
		client:  &http.Client{Transport: transport, Timeout: patience},
	}
	p.says("Server is ready to receive web requests")
	return p
}

// get asks the API for path and decodes the data of its answer into v.
func (p *promServer) get(path string, v any) error {
	resp, err := p.client.Get("http://" + prometheusAddr + "/api/v1/" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %w", resp.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", resp.Status, answer.Error)
	}
	return json.Unmarshal(answer.Data, v)
}

// sample is a value of a query's result.
type sample struct {
	Metric map[string]string
	Value  [2]any // time in seconds, value in words
}

func (s sample) number(t *testing.T) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(fmt.Sprint(s.Value[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// query returns the instant vector of an expression.
func (p *promServer) query(expr string) ([]sample, error) {
	var data struct {
		ResultType string
		Result     []sample
	}
	if err := p.get("query?query="+url.QueryEscape(expr), &data); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	if data.ResultType != "vector" {
		return nil, fmt.Errorf("%s is a %s, want a vector", expr, data.ResultType)
	}
	return data.Result, nil
}

// total is the sum of a metric's series with the labels, as they were scraped after a
// time.
func (p *promServer) total(name, labels string, since time.Time) float64 {
	p.t.Helper()
	series := fmt.Sprintf("%s{%s}", name, labels)
	expr := fmt.Sprintf("sum(%s and timestamp(%s) > %.3f)", series, series, float64(since.UnixMilli())/1e3)
	var out float64
	eventually(p.t, patience, expr, func() bool {
		got, err := p.query(expr)
		if err != nil {
			p.t.Fatal(err)
		}
		if len(got) != 1 {
			return false
		}
		out = got[0].number(p.t)
		return true
	})
	return out
}

// firing are the alerts that fire.
func (p *promServer) firing() []string {
	p.t.Helper()
	var data struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	if err := p.get("alerts", &data); err != nil {
		p.t.Fatal(err)
	}
	var names []string
	for _, a := range data.Alerts {
		if a.State == "firing" {
			names = append(names, a.Labels["alertname"])
		}
	}
	return names
}

// serveBench exports what a bench does, in the format of the textfile collector.
func serveBench(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", benchMetrics)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "# TYPE slipway_bench_gap_ratio gauge\n"+
			`slipway_bench_gap_ratio{driver="slipway",workload="tcp",direction="up",mtu="1500",streams="1"} 0.5`+"\n")
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
}

// panelQuery is a query of the dashboard.
type panelQuery struct {
	panel, expr string
	labels      []string // that its legend names
}

var legendLabel = regexp.MustCompile(`\{\{ *(\w+) *\}\}`)

// dashboardQueries are those of the dashboard, with its variables filled in.
func dashboardQueries(t *testing.T) []panelQuery {
	t.Helper()
	b, err := os.ReadFile("../../metrics/grafana/slipway.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Annotations struct{ List []struct{ Name, Expr string } }
		Panels      []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("$instance", ".*", "$__rate_interval", "5s").Replace
	var out []panelQuery
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			q := panelQuery{panel: p.Title, expr: fill(target.Expr)}
			for _, m := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
				q.labels = append(q.labels, m[1])
			}
			out = append(out, q)
		}
	}
	if len(out) < 30 {
		t.Errorf("the dashboard has %d queries only", len(out))
	}
	return out
}

// answered says whether a query has an answer with numbers and with what the legend
// names.
func (q panelQuery) answered(t *testing.T, p *promServer) bool {
	t.Helper()
	got, err := p.query(q.expr)
	if err != nil {
		t.Fatalf("panel %s: %v", q.panel, err)
	}
	return slices.ContainsFunc(got, func(s sample) bool {
		for _, l := range q.labels {
			if s.Metric[l] == "" {
				return false
			}
		}
		return !math.IsNaN(s.number(t))
	})
}

// TestPrometheus: a real Prometheus scrapes a container's network with traffic of every
// kind. Every query of the dashboard has an answer, promtool finds no fault with a
// scrape, and when the engine is killed the alert fires.
func TestPrometheus(t *testing.T) {
	if !onPrivateHost(t) {
		return
	}
	allowPing(t)
	startResolver(t, "127.0.0.53")
	setResolvConf(t, "nameserver 127.0.0.53\n")
	serveBench(t)
	tcp, udp := hostEcho(t, "tcp4", "127.0.0.1:0"), hostEcho(t, "udp4", "127.0.0.1:0")
	a := newAgent(t, "--host-access", "loopback", "--metrics", slipwayMetrics, "--hostname", "web",
		"-p", "127.0.0.1:8080:80", "-p", "127.0.0.1:8081:81/udp")
	a.do("echo", "tcp", ":80")
	a.do("echo", "udp", ":81")
	p := startPrometheus(t, slipwayMetrics)
	eventually(t, patience, "a scrape before all traffic", func() bool {
		got, err := p.query(`slipway_container_info{name="web"}`)
		if err != nil {
			t.Fatal(err)
		}
		return len(got) == 1
	})

	traffic := func() {
		t.Helper()
		a.do("talk", at(gateway4, tcp), 0, 1<<20)
		a.do("packet", "udp", at(gateway4, udp), 1400)
		a.do("ping", gateway4, 100)
		a.do("query", "udp", "10.0.2.3:53")
		for _, closed := range []string{at("169.254.169.254", 80), at(gateway4, freeTCP(t))} {
			if r := a.try("dial", "tcp", closed); r.Err == "" {
				t.Errorf("a connection to %s was made", closed)
			}
		}
		if r := a.try("packet", "udp", "169.254.169.254:80", 1); r.Err == "" {
			t.Error("a metadata address answered")
		}
		for _, err := range []error{echoed("tcp", "127.0.0.1:8080", 1000, 0), packet("udp", "127.0.0.1:8081", 1000)} {
			if err != nil {
				t.Error(err)
			}
		}
	}
	open := dashboardQueries(t)
	defer func() {
		for _, q := range open {
			t.Logf("no answer with %v: %s: %s", q.labels, q.panel, q.expr)
		}
	}()
	eventually(t, patience, "answers to all queries of the dashboard", func() bool {
		traffic()
		open = slices.DeleteFunc(open, func(q panelQuery) bool { return q.answered(t, p) })
		return len(open) == 0
	})

	lintScrape(t)
	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	if err := p.get("rules", &rules); err != nil {
		t.Fatal(err)
	}
	if len(rules.Groups) != 1 || len(rules.Groups[0].Rules) < 10 {
		t.Fatalf("the rules are %+v", rules)
	}
	for _, r := range rules.Groups[0].Rules {
		if r.Health != "ok" {
			t.Errorf("rule %s is %s: %s", r.Name, r.Health, r.LastError)
		}
	}

	const alert = "SlipwayEngineRestarted"
	if slices.Contains(p.firing(), alert) {
		t.Errorf("%s fires before the engine has died", alert)
	}
	if err := syscall.Kill(child(t, a.Process.Pid, " engine"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, alert, func() bool { return slices.Contains(p.firing(), alert) })
	if !slices.Contains(p.firing(), "SlipwayMetadataProbed") {
		t.Error("no alert says that the container asked for metadata")
	}
	a.end()
}

// lintScrape lets promtool read a scrape.
func lintScrape(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+slipwayMetrics+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	promtool := exec.CommandContext(ctx, "promtool", "check", "metrics")
	promtool.Stdin = resp.Body
	if out, err := promtool.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// scrapedBytes are those of each flow of TestScrapedBytes, where SLIPWAY_E2E_SECONDS does
// not say how long it takes.
const scrapedBytes = "1G"

// iperfReport is what an iperf3 client says at the end.
type iperfReport struct {
	Error string
	End   struct {
		Sent     struct{ Bytes float64 } `json:"sum_sent"`
		Received struct{ Bytes float64 } `json:"sum_received"`
	}
}

// TestScrapedBytes: the payload of a flow that Prometheus sees is that of which iperf3
// speaks, to one in a thousand, each way, through the TAP device and by a published port.
// Where it ends with bytes under way, iperf3 has two figures: what was received and what
// was sent. Link bytes are counted apart: they hold the headers of every frame.
func TestScrapedBytes(t *testing.T) {
	if !onPrivateHostWithin(t, 10*time.Minute) {
		return
	}
	length := []any{"--bytes", scrapedBytes}
	if s := os.Getenv("SLIPWAY_E2E_SECONDS"); s != "" {
		length = []any{"--time", s}
	}
	const port, published, publishedMetrics = "5201", "5301", "127.0.0.1:9103"
	server := start(t, exec.Command("iperf3", "--server", "--bind", "127.0.0.1", "--port", port, "--forceflush"))
	server.says("Server listening")
	a := newAgent(t, "--host-access", "loopback", "--metrics", slipwayMetrics)
	other := slipway(t, "run", "--rm", "-p", "127.0.0.1:"+published+":"+published, "--metrics", publishedMetrics,
		"host", "iperf3", "--server", "--port", published, "--forceflush")
	other.says("Server listening")
	p := startPrometheus(t, slipwayMetrics, publishedMetrics)

	inside := func(options ...any) string {
		t.Helper()
		return a.do(slices.Concat([]any{"exec", "iperf3", "--client", gateway4, "--port", port, "--json"}, length, options)...)
	}
	onHost := func(options ...any) string {
		t.Helper()
		var args []string
		for _, word := range slices.Concat([]any{"--client", "127.0.0.1", "--port", published, "--json"}, length, options) {
			args = append(args, fmt.Sprint(word))
		}
		out, err := exec.Command("iperf3", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("iperf3: %v\n%s", err, out)
		}
		return string(out)
	}
	const row = "| %-31s | %16s | %15s | %10s | %15s |\n"
	fmt.Printf(row, fmt.Sprint("one flow, ", length), "iperf3, received", "Slipway", "difference", "link")
	for _, tt := range []struct {
		name, bytes, open, instance, direction string
		run                                    func(options ...any) string
		options                                []any
	}{
		{"TAP, from the container", "tcp_payload_bytes_total", "tcp_flows_open", slipwayMetrics, "from_container", inside, nil},
		{"TAP, to the container", "tcp_payload_bytes_total", "tcp_flows_open", slipwayMetrics, "to_container", inside, []any{"--reverse"}},
		{"published, to the container", "port_payload_bytes_total", "port_connections_open", publishedMetrics, "to_container", onHost, nil},
		{"published, from the container", "port_payload_bytes_total", "port_connections_open", publishedMetrics, "from_container", onHost, []any{"--reverse"}},
	} {
		way := fmt.Sprintf("instance=%q, direction=%q", tt.instance, tt.direction)
		count := func() (payload, link, frames float64) {
			now := time.Now()
			eventually(t, patience, "the end of the flow", func() bool {
				return p.total("slipway_"+tt.open, fmt.Sprintf("instance=%q", tt.instance), now) == 0
			})
			now = time.Now()
			return p.total("slipway_"+tt.bytes, way, now), p.total("slipway_link_bytes_total", way, now), p.total("slipway_link_packets_total", way, now)
		}
		payload0, link0, frames0 := count()
		var report iperfReport
		if err := json.Unmarshal([]byte(tt.run(tt.options...)), &report); err != nil || report.Error != "" {
			t.Fatalf("iperf3: %s %v", report.Error, err)
		}
		payload, link, frames := count()
		payload, link, frames = payload-payload0, link-link0, frames-frames0
		received, sent := report.End.Received.Bytes, report.End.Sent.Bytes
		fmt.Printf(row, tt.name, fmt.Sprintf("%.0f", received), fmt.Sprintf("%.0f", payload), fmt.Sprintf("%+.4f %%", 100*(payload/received-1)), fmt.Sprintf("%.0f", link))
		if payload < 0.999*received || payload > 1.001*sent {
			t.Errorf("%s: %.0f bytes are counted, iperf3 speaks of %.0f received and %.0f sent", tt.name, payload, received, sent)
		}
		switch {
		case tt.instance == publishedMetrics && link > payload/1000:
			t.Errorf("%s: %.0f bytes of %.0f passed the TAP device, want none", tt.name, link, payload)
		case tt.instance == slipwayMetrics && link-payload < frames*14:
			t.Errorf("%s: %.0f link bytes in %.0f frames do not hold %.0f of payload and a header of each", tt.name, link, frames, payload)
		}
	}
}
