package monitor_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/monitor"
	"slipway/netstack/netns/nstest"
)

func TestMonitorKilled(t *testing.T) {
	tun := nstest.TUN(t)
	target := nstest.New(t).Target(t)
	path := filepath.Join(t.TempDir(), "m.sock")
	p, ready, err := monitor.Start(config(target, tun, engineConfig{Mode: "serve"}, tcp(loopback), monitor.Listen{Network: "unix", Path: path}))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := unix.Kill(p.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("Done is not closed")
	}
	eventually(t, 2*time.Second, "the engine to go", func() bool { return !alive(ready.EnginePID) })
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unix socket is still there: %v", err)
	}
	closed(t, ready.Bound[0][0].String())
}

// SIGTERM ends the monitor in an orderly way.
func TestMonitorTerminated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	p, ready, err := monitor.Start(config(nstest.New(t).Target(t), nstest.TUN(t), engineConfig{Mode: "serve"}, monitor.Listen{Network: "unix", Path: path}))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := unix.Kill(p.PID(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("Done is not closed")
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) || alive(ready.EnginePID) {
		t.Errorf("something is left: socket %v, engine %v", err, alive(ready.EnginePID))
	}
}

// closed waits until nobody listens at address. A process that is a zombie to its
// parent may have threads that are still closing.
func closed(t *testing.T, address string) {
	t.Helper()
	eventually(t, 2*time.Second, "the port to close", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, unix.ECONNREFUSED)
	})
}

// The launcher is killed: the workload is killed, and nothing is left.
func TestLauncherKilled(t *testing.T) {
	tun := nstest.TUN(t)
	n := nstest.New(t)
	workload := exec.Command("sleep", "600")
	workload.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := workload.Start(); err != nil {
		t.Fatal(err)
	}
	defer workload.Wait()
	defer workload.Process.Kill()
	path := filepath.Join(t.TempDir(), "m.sock")
	arg, err := json.Marshal(launcherConfig{PID: n.PID, TUN: tun, Unix: path, Workload: workload.Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	launcher := exec.Command("/proc/self/exe", "launcher", string(arg))
	launcher.Stderr = os.Stderr
	launcher.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := launcher.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := launcher.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := launcher.Start(); err != nil {
		t.Fatal(err)
	}
	defer launcher.Wait()
	defer launcher.Process.Kill()
	var monitorPID, enginePID int
	var address string
	if _, err := fmt.Fscan(stdout, &monitorPID, &enginePID, &address); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{monitorPID, enginePID, workload.Process.Pid} {
		if !alive(pid) {
			t.Fatalf("process %d is not there", pid)
		}
	}
	if err := launcher.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Second, "monitor, engine and workload to go", func() bool {
		return !alive(monitorPID) && !alive(enginePID) && !alive(workload.Process.Pid)
	})
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unix socket is still there: %v", err)
	}
	closed(t, address)
}

// A workload that was part of the configuration is guarded like one handed over
// later; a plain Close ends it too.
func TestWorkloadOfConfig(t *testing.T) {
	workload := exec.Command("sleep", "600")
	pidfd := -1
	workload.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, PidFD: &pidfd}
	if err := workload.Start(); err != nil {
		t.Fatal(err)
	}
	defer workload.Wait()
	defer workload.Process.Kill()
	own, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(own), "workload")
	cfg := config(nstest.New(t).Target(t), nstest.TUN(t), engineConfig{Mode: "serve"})
	cfg.Workload = f
	p, _, err := monitor.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Second, "the workload to go", func() bool { return !alive(workload.Process.Pid) })
}
