package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// environment records where the run takes place. What cannot be found out is left empty.
func (b *bed) environment(ctx context.Context) Environment {
	e := Environment{
		Time:       time.Now().UTC().Truncate(time.Second),
		Arch:       runtime.GOARCH,
		CPUs:       runtime.NumCPU(),
		Congestion: b.congestion,
		User:       "ordinary user, one id mapped",
		Versions:   map[string]string{"slipway": b.cfg.Version, "iperf3": firstLine(output(ctx, b.iperf3, "--version"))},
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		e.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	if text, err := os.ReadFile(procfs + "/cpuinfo"); err == nil {
		e.CPUModel = cpuModel(string(text))
	}
	if text, err := os.ReadFile(procfs + "/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(text), " ")
		e.Load1, _ = strconv.ParseFloat(first, 64)
	}
	if text, err := os.ReadFile(procfs + "/self/uid_map"); err == nil && len(strings.Fields(string(text))) == 3 &&
		strings.Fields(string(text))[2] != "1" {
		e.User = "root, all ids mapped"
	}
	for _, c := range b.cfg.cells() {
		d := lookDriver(c.Driver)
		if _, reason := b.find(d); reason != "" {
			continue
		}
		for _, program := range append(d.programs, workOf(c.Workload).needs...) {
			if path := b.programs[program]; path != "" && e.Versions[program] == "" {
				e.Versions[program] = b.program(ctx, path).Version
			}
		}
	}
	return e
}

// Program is an executable file.
type Program struct {
	Path    string `json:"path"`
	Version string `json:"version,omitempty"` // as it says itself, or as its package does
	// Source is the distribution's package that the file is of, or its SHA-256.
	Source string `json:"source,omitempty"`
}

// program says what is known about a file. Programs that do not know their version, as
// Debian 12's pasta ("unknown version"), have that of their package; one whose package
// has another is told so.
func (b *bed) program(ctx context.Context, path string) Program {
	if p, ok := b.versions[path]; ok {
		return p
	}
	p := Program{Path: path}
	if sameFile(path, b.cfg.Slipway) {
		p.Version, p.Source = b.cfg.Version, checksum(path)
		b.versions[path] = p
		return p
	}
	if slices.Contains(slices.Collect(maps.Values(b.programs)), path) {
		say, cancel := context.WithTimeout(ctx, sayTimeout)
		p.Version = firstLine(output(say, path, "--version"))
		cancel()
	}
	name, packaged := owner(ctx, path)
	switch name {
	case "":
		p.Source = checksum(path)
	default:
		p.Source = "Debian " + name + " " + packaged
		claim := versionNumber.FindString(p.Version)
		switch {
		case p.Version == "" || strings.Contains(p.Version, "unknown"):
			p.Version = p.Source
		case claim != "" && !strings.Contains(packaged, claim):
			p.Version += ", but its package is " + p.Source
		}
	}
	b.versions[path] = p
	return p
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)+`)

// owner is the Debian package of a file and its version, "" when it is of none.
func owner(ctx context.Context, path string) (name, version string) {
	for _, p := range []string{path, strings.TrimPrefix(path, "/usr")} { // the package may be from before /usr was merged
		text, err := output(ctx, "dpkg", "--search", p)
		if err != nil {
			continue
		}
		name, _, _ = strings.Cut(text, ":")
		return name, firstLine(output(ctx, "dpkg-query", "--show", "--showformat=${Version}", name))
	}
	return "", ""
}

// checksum of a file, "" when it cannot be read.
func checksum(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	return fmt.Sprintf("SHA-256 %x", h.Sum(nil))
}

// avx2 ends the name of the build that passt and pasta replace themselves with on CPUs that can run it, passt's arch.c.
const avx2 = ".avx2"

func paths(programs []Program) string {
	var all []string
	for _, p := range programs {
		all = append(all, p.Path)
	}
	return strings.Join(all, ", ")
}

// identify names the programs that the driver's processes run, and fails when none of
// them is the one that was started: then a wrapper, or somebody else, is being measured.
func (b *bed) identify(ctx context.Context, l *lane) ([]Program, error) {
	pids, err := l.pids()
	if err != nil {
		return nil, err
	}
	var found []Program
	itself := len(l.drivers) == 0
	for _, pid := range pids {
		path, err := os.Readlink(filepath.Join(procfs, strconv.Itoa(pid), "exe"))
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			continue // it has locked itself down, who started it has not; or it was only for the start
		}
		if err != nil {
			return nil, fmt.Errorf("find out what process %d runs: %w", pid, err)
		}
		itself = itself || sameFile(path, l.program) || sameFile(strings.TrimSuffix(path, avx2), l.program)
		p := b.program(ctx, path)
		if !slices.Contains(found, p) {
			found = append(found, p)
		}
	}
	if !itself {
		return nil, fmt.Errorf("%s was started, but %s runs: name the program itself by --peer", l.program, paths(found))
	}
	return found, nil
}

func firstLine(text string, err error) string {
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(line)
}

// cpuModel of the first processor in the text of /proc/cpuinfo, "" where it has no name (arm64).
func cpuModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
