package confine_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"slipway/netstack/confine"
)

// Roles of the test binary, beside that of the locked process.
const (
	roleMonitor = "monitor" // a confined monitor
	roleInRoot  = "inroot"  // the program that it executes
)

// confined is what the confined monitor says.
type confined struct {
	Failed  string
	Root    []string // names in /
	Works   map[string]string
	Refused map[string]string
}

const programInRoot = "/run/program"

// monitor confines itself, tries everything, prints a confined, and lives until its
// standard input ends.
func monitor() {
	var c confined
	defer func() {
		json.NewEncoder(os.Stdout).Encode(c)
		io.Copy(io.Discard, os.Stdin)
	}()
	dir, err := os.Open(os.Args[2])
	if err != nil {
		c.Failed = err.Error()
		return
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		c.Failed = err.Error()
		return
	}
	for range 3 {
		go func() { runtime.LockOSThread(); select {} }()
	}
	if err := confine.Root(programInRoot); err != nil {
		c.Failed = err.Error()
		return
	}
	if err := confine.Restrict(dir); err != nil {
		c.Failed = err.Error()
		return
	}
	if err := confine.DenyCalls(); err != nil {
		c.Failed = err.Error()
		return
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		c.Failed = err.Error()
		return
	}
	for _, e := range entries {
		c.Root = append(c.Root, e.Name())
	}
	c.Works = outcomes(map[string]func() error{
		"resolv.conf": func() error { _, err := os.ReadFile("/etc/resolv.conf"); return err },
		"exec": func() error {
			cmd := exec.Command(programInRoot, roleInRoot)
			cmd.Stdin, cmd.Stderr = null, null
			b, err := cmd.Output()
			if err == nil && string(b) != "here\n" {
				err = fmt.Errorf("said %q", b)
			}
			return err
		},
		"listen": func() error {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err == nil {
				err = l.Close()
			}
			return err
		},
		"unlink the socket": func() error { return unix.Unlinkat(int(dir.Fd()), "socket", 0) },
	})
	c.Refused = outcomes(map[string]func() error{
		"write below /etc":        func() error { return os.WriteFile("/etc/slipway-was-here", nil, 0o600) },
		"write below /run":        func() error { return os.WriteFile("/run/slipway-was-here", nil, 0o600) },
		"write the program":       func() error { f, err := os.OpenFile(programInRoot, os.O_WRONLY, 0); closeIf(f); return err },
		"the machine's /proc":     func() error { _, err := os.Stat("/proc/self"); return err },
		"above the root":          func() error { _, err := os.Stat("/../proc/self"); return err },
		"read beside the socket":  func() error { return openat(dir, "secret") },
		"above the socket":        func() error { return openat(dir, "..") },
		"write beside the socket": func() error { return unix.Mknodat(int(dir.Fd()), "new", unix.S_IFREG|0o600, 0) },
		"mount":                   func() error { return unix.Mount("none", "/run", "tmpfs", 0, "") },
		"new user namespace":      func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"new mount namespace":     func() error { return unix.Unshare(unix.CLONE_NEWNS) },
		"ptrace the parent":       func() error { return unix.PtraceAttach(os.Getppid()) },
		"bpf":                     func() error { _, _, e := unix.Syscall(unix.SYS_BPF, 0, 0, 0); return errno(e) },
	})
}

func errno(e syscall.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

func closeIf(f *os.File) {
	if f != nil {
		f.Close()
	}
}

func openat(dir *os.File, name string) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// statuses are the distinct values of each line of the status of all threads, of which
// there are some at least.
func statuses(t *testing.T, pid, least int) map[string][]string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m, read := map[string][]string{}, 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // a thread that has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		read++
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			value = strings.TrimSpace(value)
			if !slices.Contains(m[key], value) {
				m[key] = append(m[key], value)
			}
		}
	}
	if read < least {
		t.Fatalf("status of %d threads, want at least %d", read, least)
	}
	return m
}

// TestMonitor is the confinement of the process that listens for the drop-in.
func TestMonitor(t *testing.T) {
	work := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(work, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(filepath.Join(work, "secret"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip(err)
	}
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--mount", "--propagation", "slave", "--", exe, roleMonitor, work)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	var c confined
	err = json.NewDecoder(stdout).Decode(&c)
	if builtWithCgo {
		if !strings.Contains(c.Failed, "CGO_ENABLED=0") {
			t.Errorf("in a cgo build: %v %q, want an error that says how to build", err, c.Failed)
		}
		return
	}
	if err != nil || c.Failed != "" {
		t.Fatalf("%v %s", err, c.Failed)
	}
	status := statuses(t, cmd.Process.Pid, 4)
	// Where resolv.conf leads elsewhere, that is there too.
	if !slices.Contains(c.Root, "etc") || !slices.Contains(c.Root, "run") || slices.Contains(c.Root, "proc") || slices.Contains(c.Root, "tmp") {
		t.Errorf("the root holds %q", c.Root)
	}
	for name, err := range c.Works {
		if err != "" && (name != "resolv.conf" || !noResolvConf()) {
			t.Errorf("%s: %s", name, err)
		}
	}
	for name, err := range c.Refused {
		if err == "" {
			t.Errorf("%s: not refused", name)
		}
	}
	if len(c.Refused) == 0 || len(c.Works) == 0 {
		t.Error("nothing was tried")
	}
	for key, want := range map[string]string{
		"NoNewPrivs": "1", "Seccomp": "2", "CapPrm": "0000000000000400", "CapEff": "0000000000000400",
		"CapBnd": "0000000000000400", "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		if got := status[key]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q on some thread, want %s on all", key, got, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(work, "socket")); err == nil {
		t.Error("the socket is still there")
	}
}

func noResolvConf() bool {
	_, err := os.Stat("/etc/resolv.conf")
	return errors.Is(err, fs.ErrNotExist)
}
