package nstest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"slipway/netstack/netns"
)

// Where RunAsOrdinaryUser tells the tests that it runs about TUN nodes. A person who
// runs tests as an ordinary user may set the first.
const (
	openTUN   = "SLIPWAY_TEST_TUN"
	closedTUN = "SLIPWAY_TEST_CLOSED_TUN"
)

// TUN returns the path of a TUN node that the caller may open, or skips the test.
func TUN(t testing.TB) string {
	t.Helper()
	path := os.Getenv(openTUN)
	if path == "" {
		path = netns.TUNPath
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no TUN node that this user may open (or one in %s): %v", openTUN, err)
	}
	f.Close()
	return path
}

// ClosedTUN returns the path of a TUN node that the caller may not open, or skips
// the test.
func ClosedTUN(t testing.TB) string {
	t.Helper()
	path := os.Getenv(closedTUN)
	if path == "" {
		t.Skip("needs a TUN node that this user may not open: runs as an ordinary user below root's run")
	}
	return path
}

// Mknod makes TUN nodes of the given modes, by name, and returns their directory,
// which everybody may search. The test is skipped where no node can be made or
// opened.
func Mknod(t testing.TB, modes map[string]os.FileMode) string {
	t.Helper()
	var refused error
	// /tmp is often mounted nodev.
	for _, parent := range []string{"/tmp", "/var/tmp"} {
		// t.TempDir is below a directory that only its owner may search.
		dir, err := os.MkdirTemp(parent, "slipway-test")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		refused = nil
		for name, mode := range modes {
			refused = errors.Join(refused, mknod(filepath.Join(dir, name), mode))
		}
		if refused == nil {
			return dir
		}
	}
	t.Skipf("no TUN nodes can be made here: %v", refused)
	return ""
}

func mknod(path string, mode os.FileMode) error {
	if err := unix.Mknod(path, unix.S_IFCHR|uint32(mode), int(unix.Mkdev(10, 200))); err != nil {
		return err
	}
	if err := os.Chmod(path, mode); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// RunAsOrdinaryUser runs the calling package's tests again, in short mode, as a user
// without privilege and with a TUN node of mode 0666; needs root. The test fails
// when one of them does, or when one of must did not run.
func RunAsOrdinaryUser(t *testing.T, must ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	if testing.Short() {
		t.Skip("runs the package's tests again")
	}
	dir := Mknod(t, map[string]os.FileMode{"open": 0o666, "closed": 0o600})
	open, closed := filepath.Join(dir, "open"), filepath.Join(dir, "closed")
	binary := filepath.Join(dir, "pkg.test")
	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(binary, self, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.v", "-test.short")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=/tmp", openTUN + "=" + open, closedTUN + "=" + closed}
	if testing.CoverMode() != "" {
		// Without it each process that a test starts complains on standard error.
		cover := filepath.Join(dir, "cover")
		if err := errors.Join(os.Mkdir(cover, 0o700), os.Chown(cover, UnprivilegedID+1, UnprivilegedID+1)); err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, "GOCOVERDIR="+cover)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: UnprivilegedID + 1, Gid: UnprivilegedID + 1}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range must {
		if !strings.Contains(string(out), "--- PASS: "+name) && !strings.Contains(string(out), noUserNamespaces) {
			t.Errorf("%s did not run as an ordinary user:\n%s", name, out)
		}
	}
}
