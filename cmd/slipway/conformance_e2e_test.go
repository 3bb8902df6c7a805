//go:build e2e

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The conformance suite runs one list of cases on every program that has slirp4netns'
// command line: Slipway under that name, and slirp4netns itself. Each case has a
// private host, a process and namespaces to itself, so that none knows of another.

// driver is a program with slirp4netns' command line.
type driver struct {
	name string
	path string
	args []string // before those of a case
	env  []string // beside that of the test
	// frames is what the kernel says of its device: vnet_hdr on, or off for plain frames.
	frames string
	// excused: a case that slirp4netns is known to fail is none of this driver's either.
	excused bool
}

// conformanceCase is one thing that a driver does right, or does not.
type conformanceCase struct {
	name  string
	known excuse // why slirp4netns 1.2.0 does not
	check func(t *testing.T, d driver)
}

// excuse is why nobody expects a case of slirp4netns 1.2.0.
type excuse struct {
	kind excuseKind
	why  string
}

type excuseKind string

const (
	bug   excuseKind = "bug"   // of upstream's
	newer excuseKind = "newer" // than 1.2.0, or than libslirp 4.7
	ours  excuseKind = "ours"  // only Slipway has it
)

// conformance are all cases, in the order of the table.
var conformance = slices.Concat(linkCases, dnsCases, flowCases, icmpCases, hostCases, outboundCases, ip6Cases, portCases, lifeCases)

// drivers are the programs on trial.
func drivers(t *testing.T) []driver {
	t.Helper()
	link := filepath.Join(t.TempDir(), "slirp4netns")
	if err := os.Symlink(os.Getenv("SLIPWAY_BIN"), link); err != nil {
		t.Fatal(err)
	}
	out := []driver{{name: "slipway", path: link, frames: "vnet_hdr on"}}
	upstream, err := exec.LookPath("slirp4netns")
	if err != nil {
		upstream = "slirp4netns" // version says that there is none
	}
	return append(out, driver{name: "slirp4netns", path: upstream, excused: true, frames: "vnet_hdr on"})
}

// locked is a driver that locks itself up.
func (d driver) locked() driver {
	d.name += ", locked up"
	d.args = []string{"--enable-sandbox", "--enable-seccomp"}
	return d
}

// plain is a driver whose device carries plain frames.
func (d driver) plain() driver {
	d.name += ", plain frames"
	d.env = []string{offloadEnv + "=off"}
	d.frames = "vnet_hdr off"
	return d
}

// version is what the driver calls itself, or why it cannot be tried.
func (d driver) version() (string, error) {
	out, err := exec.Command(d.path, "--version").CombinedOutput()
	first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil {
		return "", fmt.Errorf("%s --version: %w: %s", d.path, err, first)
	}
	return strings.TrimPrefix(first, "slirp4netns version "), nil
}

// TestConformance: Slipway passes every case, with offloads and with plain frames, also
// with --enable-sandbox and --enable-seccomp, slirp4netns all but those with an excuse.
// The table of who passed what is on standard output.
func TestConformance(t *testing.T) {
	on := drivers(t)
	on = slices.Insert(on, 1, on[0].locked(), on[0].plain(), on[0].plain().locked())
	results := table{cells: make(map[string]map[string]string)}
	if os.Getenv(privateEnv) == "" {
		t.Cleanup(func() { results.print() })
	}
	for _, d := range on {
		t.Run(d.name, func(t *testing.T) {
			if os.Getenv(privateEnv) == "" {
				version, err := d.version()
				if err != nil {
					t.Skip(err)
				}
				results.columns = append(results.columns, d.name)
				results.versions = append(results.versions, version)
				results.cells[d.name] = make(map[string]string)
			}
			for _, c := range conformance {
				t.Run(c.name, func(t *testing.T) {
					if isPrivate(t) {
						makePrivate(t)
						c.check(t, d)
						return
					}
					// The helpers of a case end the test that they were called for: only
					// from outside can it fail without failing the suite.
					t.Parallel()
					results.note(d, c, judge(t, d, c))
				})
			}
		})
	}
}

// judge runs a case on a private host and returns its cell of the table.
func judge(t *testing.T, d driver, c conformanceCase) string {
	t.Helper()
	p := privately(t)
	status := p.wait()
	out := p.stdout.String() + p.stderr.String()
	switch {
	case strings.Contains(out, "--- SKIP"):
		t.Logf("skipped: %s", complaint(out))
		return "skipped"
	case status == 0 && strings.Contains(out, "--- PASS"):
		return "pass"
	case d.excused && c.known.kind != "" && !strings.Contains(out, setupFailed):
		t.Logf("%s, %s: %s", c.known.kind, c.known.why, complaint(out))
		return string(c.known.kind)
	}
	t.Errorf("exit status %d: %s", status, complaint(out))
	return "FAIL"
}

// setupFailed says that it is the suite that has failed, which is no driver's excuse.
const setupFailed = "the world is not ready: "

var complaintLine = regexp.MustCompile(`(?m)^ *\w+_test\.go:\d+: .*$`)

// complaint is the first thing that a test's output complains about.
func complaint(out string) string {
	if line := complaintLine.FindString(out); line != "" {
		return strings.TrimSpace(line)
	}
	return strings.TrimSpace(out)
}

// table is who passed what: by driver and case.
type table struct {
	columns  []string
	versions []string

	mu    sync.Mutex // guards cells
	cells map[string]map[string]string
}

func (r *table) note(d driver, c conformanceCase, cell string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cells[d.name][c.name] = cell
}

func (r *table) print() {
	width := len("case")
	for _, c := range conformance {
		width = max(width, len(c.name))
	}
	var heads []string
	for i, name := range r.columns {
		heads = append(heads, name+" "+r.versions[i])
	}
	row := func(first string, cells []string, note string) {
		fmt.Printf("| %-*s |", width, first)
		for i, cell := range cells {
			fmt.Printf(" %-*s |", len(heads[i]), cell)
		}
		fmt.Println(strings.TrimRight(" "+note, " "))
	}
	passed := make([]int, len(r.columns))
	row("case", heads, "")
	for _, c := range conformance {
		var cells []string
		note := ""
		for i, name := range r.columns {
			cell := r.cells[name][c.name]
			cells = append(cells, cell)
			switch cell {
			case "":
				cells[i] = "not run"
			case "pass":
				passed[i]++
			case string(c.known.kind):
				note = c.known.why
			}
		}
		row(c.name, cells, note)
	}
	var sums []string
	for _, n := range passed {
		sums = append(sums, fmt.Sprintf("%d of %d", n, len(conformance)))
	}
	row("passed", sums, "")
}
