//go:build e2e

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestAttackOutput: a workload neither truncates nor reads the file to which its output is
// appended.
func TestAttackOutput(t *testing.T) {
	t.Parallel()
	path := filepath.Join(openDir(t), "log")
	if err := os.WriteFile(path, []byte("before\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "--network", "none", "host", "sh", "-c", `
for fd in /proc/1/fd/1 /proc/self/fd/2 /dev/stdout; do
	: >$fd; truncate -s 0 $fd 2>/dev/null
	dd if=$fd of=/tmp/got iflag=nonblock count=1 status=none 2>/dev/null; grep -q before /tmp/got && echo read
done; echo after`)
	cmd.Stdout, cmd.Stderr = f, f
	if status := start(t, cmd).wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "before\nafter\n" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

// TestDirectoryAsStream: a directory would lead out of the container's root.
func TestDirectoryAsStream(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o666); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "-i", "--network", "none", "host", "sh", "-c", "cat /proc/self/fd/0/secret; cat ./secret")
	in.Stdin = f
	p := start(t, in)
	if status := p.wait(); status != 125 || p.stdout.String() != "" {
		t.Errorf("exit status %d, printed %q, want 125", status, &p.stdout)
	}
	oneLine(t, p.stderr.String(), "standard input", "directory")

	out := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "--network", "none", "host", "sh", "-c", "cat /proc/self/fd/1/secret >&2")
	out.Stdout = f
	q := start(t, out)
	if status := q.wait(); status == 0 || strings.HasPrefix(q.stderr.String(), "secret") {
		t.Errorf("exit status %d, printed %q", status, &q.stderr)
	}
}
