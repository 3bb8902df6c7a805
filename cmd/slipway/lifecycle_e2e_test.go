//go:build e2e

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKilled kills each process of a run without a warning, and looks for the six
// kinds of things that can be left: processes, mounts, namespaces, sockets, state
// files and upper directories. Not parallel, for its time limit and since it looks at
// what all tests share.
func TestKilled(t *testing.T) {
	for _, tt := range []struct {
		victim, network string
		user            string // that the workload changes to
		status          int
		words           []string // of the one line on standard error; nil: nothing is said
	}{
		{"launcher", "private", "0", 137, nil},
		{"monitor", "private", "0", 125, []string{"monitor was killed"}},
		{"workload", "private", "0", 137, nil},
		{"launcher", "none", "0", 137, nil},
		{"guard", "none", "0", 125, []string{"guard was killed"}},
		{"workload", "none", "0", 137, nil},
		// Changing the user clears the parent-death signal, prctl(2): who kills it is
		// the monitor, or the guard.
		{"launcher", "private", "1", 137, nil},
		{"launcher", "none", "1", 137, nil},
	} {
		t.Run(tt.victim+" with network "+tt.network+" of user "+tt.user, func(t *testing.T) {
			if tt.user != "0" {
				needsSubIDs(t)
			}
			w, port := busyRun(t, tt.network, tt.user)
			pid := w.remember("sleep 621")
			vivid(t, w, tt.network)
			launcher := w.launcher()
			victims := map[string]func() int{
				"launcher": func() int { return launcher },
				"monitor":  func() int { return child(t, launcher, " monitor") },
				"guard":    func() int { return child(t, launcher, "slipway-guard stage") },
				"workload": func() int { return pid },
			}
			if err := syscall.Kill(victims[tt.victim](), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			killed := time.Now()
			left := w.leftWithin(killed.Add(grace))
			took := time.Since(killed)
			for _, l := range left {
				t.Errorf("left %s after the %s was killed: %s", grace, tt.victim, l)
			}
			if !allFree(port, 1) {
				t.Errorf("left: socket of published port %d", port)
			}
			if status := w.wait(); status != tt.status {
				t.Errorf("exit status %d, want %d", status, tt.status)
			}
			if tt.words == nil {
				if got := w.stderr.String(); got != "" {
					t.Errorf("standard error: %q", got)
				}
			} else {
				oneLine(t, w.stderr.String(), tt.words...)
			}
			w.leftNothing()
			t.Logf("nothing was left after %s", took.Round(time.Millisecond))
		})
	}
}

// busyRun starts a container with a bit of everything: listeners of two protocols, a
// unix socket, a volume, files in its upper layers, several processes, one in a
// session of its own. Its workload, `sleep 621`, has changed to user. It returns when
// they are all there.
func busyRun(t *testing.T, network, user string) (w *watched, port int) {
	t.Helper()
	port = freePorts(t, 1)
	args := append([]string{"run", "--rm", "--network", network, "-v", openDir(t) + ":/w"}, withHelper(t, "answer")...)
	if network == "private" {
		// Relative to a directory of its own.
		args = append(args, "-p", fmt.Sprintf("%d:80", port), "-p", fmt.Sprintf("%d:80/udp", port), "--metrics", "unix:m.sock")
	}
	w = inNursery(t, append(args, "host", "sh", "-c",
		"mkdir /etc/upper && echo x >/etc/upper/x && echo x >/var/x && /e2e tcp:80 udp:80 stream:81 & setsid sleep 620 & sleep 619 & exec setpriv --reuid "+user+" sleep 621")...)
	w.says("answering")
	return w, port
}

// vivid checks that what a killed run may not leave is there while it lives: a test
// that looks in the wrong place would find nothing, too.
func vivid(t *testing.T, w *watched, network string) {
	t.Helper()
	left := w.left()
	kinds := []string{"process", "net namespace", "mnt namespace", "pid namespace", "user namespace", "ipc namespace", "uts namespace", "cgroup namespace"}
	if network == "private" {
		kinds = append(kinds, "socket", "state file")
	}
	for _, kind := range kinds {
		if !slices.ContainsFunc(left, func(l string) bool { return strings.HasPrefix(l, kind) }) {
			t.Errorf("a living run shows no %s:\n%s", kind, strings.Join(left, "\n"))
		}
	}
}

// TestEngineKilledUnderLoad wants new flows served within a second, in every
// direction, and the run to go on.
func TestEngineKilledUnderLoad(t *testing.T) {
	for _, path := range []string{"kernel", "tap"} {
		t.Run(path, func(t *testing.T) {
			host, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			go func() {
				for {
					c, err := host.Accept()
					if err != nil {
						return
					}
					fmt.Fprint(c, "hello from the host")
					c.Close()
				}
			}()
			_, hostPort, err := net.SplitHostPort(host.Addr().String())
			if err != nil {
				t.Fatal(err)
			}

			first := freePorts(t, 3)
			at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", first+i) }
			socket := metricsSocket(t)
			p := answering(t, []string{
				"--publish-path", path, "--metrics", "unix:" + socket, "--host-access", "loopback=" + hostPort,
				"-p", at(0) + ":80", "-p", at(0) + ":80/udp", "-p", at(1) + ":81", "-p", at(2) + ":82",
			}, "tcp:80", "udp:80", "stream:81", "dial:82")
			monitor := child(t, p.Process.Pid, " monitor")

			for restarts := 1; restarts <= 2; restarts++ {
				stream := streaming(t, at(1))
				engine := child(t, p.Process.Pid, " engine")
				if err := syscall.Kill(engine, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				killed := time.Now()
				served := map[string]func() error{
					"published TCP port": func() error { return says(hear("tcp", "", at(0))) },
					"published UDP port": func() error { return says(hear("udp", "", at(0))) },
					"container to host":  func() error { return dialThrough(at(2), "10.0.2.2:"+hostPort) },
				}
				within := make(chan error, len(served))
				for name, ask := range served {
					go func() { within <- askUntil(killed.Add(time.Second), name, ask) }()
				}
				for range served {
					if err := <-within; err != nil {
						t.Errorf("restart %d: %v", restarts, err)
					}
				}
				t.Logf("restart %d: everything served %s after the engine was killed", restarts, time.Since(killed).Round(time.Millisecond))
				stream.Close()

				if now := child(t, p.Process.Pid, " engine"); now == engine {
					t.Errorf("the engine is still process %d", engine)
				}
				if got := scrape(t, socket)["slipway_engine_restarts_total"]; got != fmt.Sprint(restarts) {
					t.Errorf("slipway_engine_restarts_total is %q, want %d", got, restarts)
				}
			}
			if now := child(t, p.Process.Pid, " monitor"); now != monitor {
				t.Errorf("the monitor was process %d and is %d", monitor, now)
			}
			select {
			case <-p.done:
				t.Fatalf("the run ended: %v", p.err)
			default:
			}
			if err := p.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			// The Go program in the container does not handle it and is pid 1, but the Go
			// runtime does, and ends as a program that is killed by it would.
			if status := p.wait(); status != 2 && status != 143 {
				t.Errorf("exit status %d", status)
			}
		})
	}
}

// streaming connects to a stream and reads it until it ends; it is flowing when this
// returns.
func streaming(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.CopyN(io.Discard, c, 4<<20); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, c) }()
	return c
}

// says is the error of hear, or that nobody was there.
func says(said, _ string, err error) error {
	if err == nil && said == "" {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// dialThrough has the container connect to addr.
func dialThrough(via, addr string) error {
	c, err := net.DialTimeout("tcp", via, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, addr); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err == nil && string(b) != "hello from the host" {
		err = fmt.Errorf("the container got %q", b)
	}
	return err
}

// askUntil asks again until it is answered. A single question may be lost with the
// engine that had taken it, or with a datagram that came between two engines.
func askUntil(deadline time.Time, name string, ask func() error) error {
	for {
		answered := make(chan error, 1)
		go func() { answered <- ask() }()
		select {
		case err := <-answered:
			if err == nil && time.Now().Before(deadline) {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s: not served in time: %w", name, errors.Join(err, os.ErrDeadlineExceeded))
			}
		case <-time.After(100 * time.Millisecond):
			if time.Now().After(deadline) {
				return fmt.Errorf("%s: not served in time: %w", name, os.ErrDeadlineExceeded)
			}
		}
	}
}

// TestEndLeavesNothing is the ordinary end, by itself and by a signal.
func TestEndLeavesNothing(t *testing.T) {
	for _, network := range []string{"private", "none", "host"} {
		t.Run(network, func(t *testing.T) {
			w := inNursery(t, "run", "--rm", "--network", network, "host", "sh", "-c", "setsid sleep 622 & echo x >/etc/x; exit 4")
			if status := w.wait(); status != 4 {
				t.Errorf("exit status %d, want 4", status)
			}
			w.leftNothing()
		})
	}
	t.Run("killed by three signals", func(t *testing.T) {
		w, port := busyRun(t, "private", "0")
		w.remember("sleep 621")
		launcher := w.launcher()
		// One more than is heeded could come when the launcher heeds none any more.
		eventually(t, patience, "three signals heeded", func() bool {
			if strings.Contains(w.stderr.String(), "killing the container") {
				return true
			}
			_ = syscall.Kill(launcher, unix.SIGTERM)
			return false
		})
		if status := w.wait(); status != 137 {
			t.Errorf("exit status %d, want 137", status)
		}
		w.leftNothing()
		if !allFree(port, 1) {
			t.Errorf("left: socket of published port %d", port)
		}
	})
}

// TestLauncherKilledWhileStarting kills at random moments of the start, where the
// processes know the least of each other.
func TestLauncherKilledWhileStarting(t *testing.T) {
	const runs = 12
	for i := range runs {
		w := inNursery(t, "run", "--rm", "-p", "127.0.0.1::80", "--metrics", "unix:m.sock", "host", "sh", "-c", "echo up; exec sleep 623")
		launcher := w.launcher()
		time.Sleep(time.Duration(i) * 15 * time.Millisecond) // the random moment
		if err := syscall.Kill(launcher, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.leftNothing()
		if t.Failed() {
			t.Logf("killed after %d ms: %q", i*15, &w.stdout)
			return
		}
	}
}
