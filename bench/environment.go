package bench

import (
	"context"
	"os"
	"os/exec"
	"runtime"
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
	for _, program := range []string{"slirp4netns", "pasta"} {
		path, err := exec.LookPath(program)
		if err != nil || sameFile(path, b.cfg.Slipway) {
			continue
		}
		e.Versions[program] = b.version(ctx, path)
	}
	return e
}

// version of a program, with that of its Debian package where the program does not
// know its own, as Debian 12's pasta ("unknown version").
func (b *bed) version(ctx context.Context, path string) string {
	v := firstLine(output(ctx, path, "--version"))
	if v != "" && !strings.Contains(v, "unknown") {
		return v
	}
	owner, err := output(ctx, "dpkg", "--search", path)
	if err != nil {
		return v
	}
	name, _, _ := strings.Cut(owner, ":")
	return strings.TrimSpace("Debian " + name + " " + firstLine(output(ctx, "dpkg-query", "--show", "--showformat=${Version}", name)))
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
