package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slipway/runtime/idmap"
)

// The test binary is slipway, too: it takes the hidden role, runs a container
// when configEnv says which, and attacks from inside one.
const (
	configEnv = "SLIPWAY_TEST_CONFIG"
	attackArg = "attack-own-binary"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case roleArg:
			Stage()
		case attackArg:
			attackOwnBinary()
		}
	}
	if text := os.Getenv(configEnv); text != "" {
		os.Exit(runContainer(text))
	}
	os.Exit(m.Run())
}

func runContainer(text string) int {
	var cfg Config
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	os.Unsetenv(configEnv)
	cfg.Stdin, cfg.Stdout, cfg.Stderr = os.Stdin, os.Stdout, os.Stderr
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	code, err := Run(context.Background(), cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
	}
	return code
}

// attackOwnBinary keeps a handle on the program it runs, becomes another, and
// writes to it: CVE-2019-5736.
func attackOwnBinary() {
	fd, err := unix.Open("/proc/self/exe", unix.O_PATH, 0)
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(1)
	}
	script := fmt.Sprintf("echo pwn > /proc/self/fd/%d", fd)
	fmt.Println(unix.Exec("/bin/sh", []string{"sh", "-c", script}, nil))
	os.Exit(1)
}

var namespacesWork = sync.OnceValue(func() error {
	f, err := tryNamespaces(context.Background(), idmap.For(idmap.Here()))
	return errors.Join(err, f.Namespaces, f.IDs, f.Mounts, f.Overlay)
})

// needNamespaces skips where containers cannot be made.
func needNamespaces(t *testing.T) {
	t.Helper()
	if err := namespacesWork(); err != nil {
		t.Skipf("needs user namespaces with overlay: %v", err)
	}
}

// needIDs skips where only one id can be mapped.
func needIDs(t *testing.T) {
	t.Helper()
	needNamespaces(t)
	if p := idmap.For(idmap.Here()); p.Single {
		t.Skipf("needs more than one id: %s", p.Reason)
	}
}

// launched is a launcher process and what came of it.
type launched struct {
	cmd         *exec.Cmd
	out, errOut bytes.Buffer
}

func command(t *testing.T, cfg Config) *launched {
	t.Helper()
	if cfg.Network == "" {
		cfg.Network = None
	}
	// The outer fields hide what cannot be sent.
	text, err := json.Marshal(struct {
		Config
		Announce, Log, Net, Stdin, Stdout, Stderr *int `json:",omitempty"`
	}{Config: cfg})
	if err != nil {
		t.Fatal(err)
	}
	r := &launched{cmd: exec.Command("/proc/self/exe")}
	r.cmd.Env = append(os.Environ(), configEnv+"="+string(text))
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errOut
	r.cmd.WaitDelay = 5 * time.Second
	return r
}

// containerOutput runs one to its end and returns its output and status.
func containerOutput(t *testing.T, cfg Config) (string, string, int) {
	t.Helper()
	needNamespaces(t)
	r := command(t, cfg)
	timeout := time.AfterFunc(30*time.Second, func() { r.cmd.Process.Kill() })
	defer timeout.Stop()
	if err := r.cmd.Run(); r.cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return r.out.String(), r.errOut.String(), r.cmd.ProcessState.ExitCode()
}

// script runs a shell script in the host image and fails the test when it
// fails.
func script(t *testing.T, cfg Config, text string) string {
	t.Helper()
	if cfg.Image == "" {
		cfg.Image = "host"
	}
	cfg.Args = []string{"/bin/sh", "-c", text}
	out, errOut, code := containerOutput(t, cfg)
	if code != 0 {
		t.Fatalf("status %d\nstdout: %s\nstderr: %s", code, out, errOut)
	}
	return strings.TrimSpace(out)
}

// sharedDir is a temporary directory that the container's root, who may be
// another user, can reach.
func sharedDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if info, err := os.Stat(d); err == nil && info.Mode()&0o005 != 0o005 && os.Chmod(d, 0o755) != nil {
			t.Skipf("%s is closed to others", d)
		}
	}
	return dir
}
