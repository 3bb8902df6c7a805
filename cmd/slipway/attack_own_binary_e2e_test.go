//go:build e2e

package main

import (
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ownBinary is a copy of slipway that the container's root owns and everyone may
// write: only we can protect it.
func ownBinary(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(os.Getenv("SLIPWAY_BIN"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(openDir(t), "slipway")
	if err := os.WriteFile(path, b, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if first, _ := subIDs(t); os.Getuid() == 0 && first > 0 {
		if err := os.Chown(path, first, first); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func checksum(t *testing.T, path string) [32]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

// TestAttackOwnBinary: the program behind a container's /proc/1/exe, when that is
// still ours, cannot be written (CVE-2019-5736).
func TestAttackOwnBinary(t *testing.T) {
	t.Parallel()
	if os.Getuid() == 0 {
		needsSubIDs(t)
	}
	exe := ownBinary(t)
	before := checksum(t, exe)
	a := attackOwn(t, exe, exe, "/proc/self/exe")
	a.refused([]error{unix.EROFS}, "chmod")
	a.refused([]error{unix.EINVAL, unix.EPERM}, "loosen")
	a.refused([]error{unix.EROFS}, "chmod")
	a.refused([]error{unix.EROFS, unix.ETXTBSY}, "overkept")
	a.leave()
	a.refused([]error{unix.EROFS}, "overkept")
	a.end()
	if checksum(t, exe) != before {
		t.Error("slipway's own binary was overwritten")
	}
	// A script that names it as its interpreter is one more way to have it executed.
	script := filepath.Join(openDir(t), "script")
	if err := os.WriteFile(script, []byte("#!/proc/self/exe\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	p := start(t, exec.Command(exe, "run", "--rm", "--cap-add", "all", "-v", script+":/script", "host", "/script"))
	if status := p.wait(); status == 0 || checksum(t, exe) != before {
		t.Errorf("the script ended with %d, and the binary is another: %v", status, checksum(t, exe) != before)
	}

	// The same program, when a volume gives it away.
	given := ownBinary(t)
	b := attackOwn(t, exe, given, "/given/slipway", "-v", filepath.Dir(given)+":/given")
	b.works("chmod")
	b.leave()
	b.works("overkept")
	b.end()
	if checksum(t, given) == before {
		t.Error("the attack on a binary that was given away left it as it was")
	}
}

// ownAttacker holds the program of a container's pid 1, and lives on after it.
type ownAttacker struct {
	*attacker
	container *process
	pid       int // of the workload
}

// attackOwn runs a container whose workload is the program of slipway itself, and
// an attacker as root of it. The program waits for its input.
func attackOwn(t *testing.T, slipway, exe, workload string, options ...string) ownAttacker {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	defer r.Close()
	const waits = " bench report /dev/stdin"
	args := append(append([]string{"run", "--rm", "-i", "--cap-add", "all"}, withHelper(t, "attack")...), options...)
	cmd := exec.Command(slipway, append(append(args, "host", workload), strings.Fields(waits)...)...)
	cmd.Stdin = r
	p := start(t, cmd)
	id := 0
	eventually(t, patience, "the workload", func() bool {
		for pid, cmdline := range descendants(t, p.Process.Pid) {
			if cmdline == workload+waits { // the whole of it: a fork of the launcher has the same end
				id = pid
			}
		}
		return id != 0
	})
	pid := strconv.Itoa(id)

	helper := exec.Command("nsenter", "-t", pid, "-U", "-m", "-S", "0", "-G", "0", "/e2e")
	helper.Env = append(os.Environ(), helperEnv+"=attack")
	proc, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	helper.ExtraFiles = []*os.File{proc} // attackProc
	a := ownAttacker{attackFrom(t, helper), p, id}
	a.works("keep", "/proc/1/exe")
	want, err := os.Stat(exe)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.Stat("/proc/" + pid + "/exe")
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(want, got) {
		t.Fatalf("the workload's program is not %s", exe)
	}
	return a
}

// leave ends the container, so that nobody executes the program any more.
func (a ownAttacker) leave() {
	a.t.Helper()
	if err := unix.Kill(a.pid, unix.SIGKILL); err != nil {
		a.t.Fatal(err)
	}
	if status := a.container.wait(); status != 128+int(unix.SIGKILL) {
		a.t.Errorf("the container ended with %d", status)
	}
}
