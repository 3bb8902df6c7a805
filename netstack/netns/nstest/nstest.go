// Package nstest makes user and network namespaces for tests. A namespace lives
// for as long as the test, and ends with the test's process whatever happens.
package nstest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"slipway/netstack/netns"
)

// UnprivilegedID is the id on the host that root's test namespaces map their root
// to: one of no account, as in a container that root starts.
const UnprivilegedID = 231072

// noUserNamespaces is why a test is skipped where they are forbidden.
const noUserNamespaces = "no user namespaces here"

// Namespace is a user namespace that owns a network namespace, held by a process
// that waits.
type Namespace struct {
	PID int

	cmd   *exec.Cmd
	stdin io.Closer
}

// New makes a namespace whose root is the caller, or UnprivilegedID when the caller
// is root. The test is skipped where user namespaces are not allowed.
func New(t testing.TB) *Namespace {
	t.Helper()
	id := os.Getuid()
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET}
	gid := os.Getgid()
	if id == 0 {
		id, gid = UnprivilegedID, UnprivilegedID
		attr.GidMappingsEnableSetgroups = true
	}
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
	attr.Credential = &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: os.Getuid() != 0}
	// Where the calling process is not dumpable, neither is its child before exec, and
	// only root may write its id maps.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	// cat says that it is there by repeating a line: exec has happened, and with it
	// everything before.
	cmd := exec.Command("cat")
	cmd.SysProcAttr = attr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EACCES) {
			t.Skipf("%s: %v", noUserNamespaces, err)
		}
		t.Fatal(err)
	}
	n := &Namespace{PID: cmd.Process.Pid, cmd: cmd, stdin: stdin}
	t.Cleanup(n.End)
	if _, err := stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if b := make([]byte, 1); read(stdout, b) != nil || !bytes.Equal(b, []byte("\n")) {
		t.Fatalf("the namespace's process did not answer: %q", b)
	}
	return n
}

func read(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	return err
}

// End ends the namespace's process. It may be called more than once.
func (n *Namespace) End() {
	if n.stdin == nil {
		return
	}
	n.stdin.Close()
	n.stdin = nil
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait() // killed, or at the end of its input
}

// Target opens the namespace; it is closed at the end of the test.
func (n *Namespace) Target(t testing.TB) netns.Target {
	t.Helper()
	target, err := netns.FromPID(n.PID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	return target
}
