package monitor_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"slipway/netstack/monitor"
	"slipway/netstack/netns"
	"slipway/netstack/netns/nstest"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

func tcp(addrs ...netip.AddrPort) monitor.Listen {
	return monitor.Listen{Network: "tcp", Addrs: addrs}
}

// running is a network whose monitor runs in this process.
type running struct {
	ready  monitor.Ready
	cancel context.CancelFunc
	result chan error
}

// start runs a monitor in this process until the test ends.
func start(t *testing.T, cfg monitor.Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cancel: cancel, result: make(chan error, 1)}
	ready := make(chan monitor.Ready, 1)
	go func() {
		r.result <- monitor.Run(ctx, cfg, func(r monitor.Ready) error { ready <- r; return nil })
	}()
	t.Cleanup(func() { cancel(); r.wait() })
	select {
	case r.ready = <-ready:
	case err := <-r.result:
		r.result <- err
		t.Fatalf("Run: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("not ready within 10 s")
	}
	return r
}

func (r *running) wait() error {
	err := <-r.result
	r.result <- err
	return err
}

func fds(t *testing.T) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			m[e.Name()] = to
		}
	}
	return m
}

func TestRun(t *testing.T) {
	tun := nstest.TUN(t)
	target := nstest.New(t).Target(t)
	path := filepath.Join(t.TempDir(), "m.sock")
	// The poller's descriptors exist from here on.
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	before := fds(t)
	r := start(t, config(target, tun, engineConfig{Mode: "locked"}, tcp(loopback), monitor.Listen{Network: "unix", Path: path}))
	if len(r.ready.Bound) != 2 || len(r.ready.Bound[0]) != 1 || r.ready.Bound[0][0].Port() == 0 || len(r.ready.Bound[1]) != 0 {
		t.Errorf("bound %v", r.ready.Bound)
	}
	if !r.ready.Kernel || r.ready.KernelReason != "" {
		t.Errorf("kernel path: %v %q", r.ready.Kernel, r.ready.KernelReason)
	}
	for _, at := range []struct{ network, address string }{{"tcp", r.ready.Bound[0][0].String()}, {"unix", path}} {
		s, err := talk(at.network, at.address, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if s.pid != r.ready.EnginePID || s.restarts != 0 {
			t.Errorf("pid %d, %d restarts; want %d, 0", s.pid, s.restarts, r.ready.EnginePID)
		}
		if mac, err := net.ParseMAC(s.mac); err != nil || len(mac) != 6 {
			t.Errorf("MAC %q", s.mac)
		}
		if got := s.ask(t, "sockets 128"); got != "128 <nil>" {
			t.Errorf("sockets: %s", got)
		}
		if got := s.ask(t, "many"); got != "<nil>" {
			t.Errorf("many requests: %s", got)
		}
		if got := s.ask(t, "late"); got != "true" {
			t.Errorf("cancelled request: %s", got)
		}
		if got := s.ask(t, "resolvers"); !strings.Contains(got, ":53") || !strings.HasSuffix(got, "<nil>") {
			t.Errorf("resolvers: %s", got)
		}
		s.Close()
	}
	r.cancel()
	if err := r.wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if alive(r.ready.EnginePID) {
		t.Error("the engine is still there")
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unix socket is still there: %v", err)
	}
	if d := cmp.Diff(before, fds(t)); d != "" {
		t.Errorf("descriptors left (-before +after):\n%s", d)
	}
}

// A context that ends while the engine is not ready yet ends the engine.
func TestCancelBeforeReady(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := monitor.Run(ctx, config(nstest.New(t).Target(t), nstest.TUN(t), engineConfig{Mode: "mute"}), func(monitor.Ready) error {
		t.Error("ready was called")
		return nil
	})
	if err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("got %v after %v", err, time.Since(began))
	}
}

func TestStart(t *testing.T) {
	tun := nstest.TUN(t)
	target := nstest.New(t).Target(t)
	t.Chdir(t.TempDir())
	p, ready, err := monitor.Start(config(target, tun, engineConfig{Mode: "serve"}, tcp(loopback), monitor.Listen{Network: "unix", Path: "m.sock"}))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, at := range []struct{ network, address string }{{"tcp", ready.Bound[0][0].String()}, {"unix", "m.sock"}} {
		s, err := talk(at.network, at.address, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	fi, err := os.Stat("m.sock")
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", fi.Mode(), err)
	}
	if os.Getuid() != 0 {
		// Not even to the user that it belongs to; root sees everything.
		if _, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID())); !errors.Is(err, os.ErrPermission) {
			t.Errorf("the monitor's descriptors can be seen: %v", err)
		}
		if _, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", ready.EnginePID)); !errors.Is(err, os.ErrPermission) {
			t.Errorf("the engine's descriptors can be seen: %v", err)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if alive(p.PID()) || alive(ready.EnginePID) {
		t.Error("a process is left")
	}
	if _, err := os.Lstat("m.sock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unix socket is still there: %v", err)
	}
	if p.Err() != nil {
		t.Errorf("Err: %v", p.Err())
	}
	if err := p.Guard(os.Stdin); !errors.Is(err, monitor.ErrGone) {
		t.Errorf("Guard after Close: %v, want ErrGone", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// Whatever fails before ready comes back as the monitor's own error, typed.
func TestStartErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := netip.MustParseAddrPort(taken.Addr().String())
	target := nstest.New(t).Target(t)
	tests := []struct {
		name string
		cfg  monitor.Config
		is   error
		text string
	}{
		{"port in use", config(target, "/nonexistent", engineConfig{Mode: "serve"}, tcp(port)), unix.EADDRINUSE, fmt.Sprintf("listen tcp %v: port is already in use", port)},
		{"no node", config(target, "/nonexistent", engineConfig{Mode: "serve"}), unix.ENOENT, "sudo modprobe tun"},
		{"no namespace", config(netns.Target{}, "", engineConfig{Mode: "serve"}), nil, "setns net"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := fds(t)
			_, _, err := monitor.Start(tt.cfg)
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v, %q", err, tt.is, tt.text)
			}
			if d := cmp.Diff(before, fds(t)); d != "" {
				t.Errorf("descriptors left (-before +after):\n%s", d)
			}
		})
	}
}

func TestPublishPath(t *testing.T) {
	tun := nstest.TUN(t)
	var tooMany []netns.PortRange
	for i := range netns.MaxReplyRules + 1 {
		tooMany = append(tooMany, netns.PortRange{First: uint16(1 + 2*i), Last: uint16(1 + 2*i)})
	}
	few := []netns.PortRange{{First: 80, Last: 80}}
	tests := []struct {
		name       string
		path       string
		ports      []netns.PortRange
		kernel     bool
		reason, is string
	}{
		{"auto", "", few, true, "", ""},
		{"kernel", monitor.PathKernel, few, true, "", ""},
		{"tap", monitor.PathTAP, few, false, "", ""},
		{"no ports", monitor.PathKernel, nil, false, "", ""},
		{"auto falls back", monitor.PathAuto, tooMany, false, "too many port ranges", ""},
		{"kernel fails loudly", monitor.PathKernel, tooMany, false, "", "publish path kernel: too many port ranges"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(nstest.New(t).Target(t), tun, engineConfig{Mode: "serve"})
			cfg.PublishPath, cfg.KernelPorts = tt.path, tt.ports
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var got monitor.Ready
			err := monitor.Run(ctx, cfg, func(r monitor.Ready) error { got = r; cancel(); return nil })
			if tt.is != "" {
				if err == nil || !strings.Contains(err.Error(), tt.is) {
					t.Errorf("got %v, want %q", err, tt.is)
				}
				return
			}
			if err != nil || got.Kernel != tt.kernel || (got.KernelReason == "") != (tt.reason == "") || !strings.Contains(got.KernelReason, tt.reason) {
				t.Errorf("kernel %v, reason %q, error %v; want %v, %q", got.Kernel, got.KernelReason, err, tt.kernel, tt.reason)
			}
		})
	}
}

// Many listeners go over in several messages.
func TestManyListeners(t *testing.T) {
	const n = 10000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max < n+200 {
		t.Skipf("at most %d open files here, needs %d", limit.Max, n+200)
	}
	elsewhere := netip.MustParseAddrPort("127.0.0.78:0") // where nobody else looks for a port
	cfg := config(nstest.New(t).Target(t), nstest.TUN(t), engineConfig{Mode: "serve"})
	cfg.Listen = append(cfg.Listen, tcp(elsewhere))
	for range n - 2 {
		cfg.Listen = append(cfg.Listen, monitor.Listen{Network: "udp", Addrs: []netip.AddrPort{elsewhere}})
	}
	cfg.Listen = append(cfg.Listen, tcp(elsewhere))
	p, ready, err := monitor.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, i := range []int{0, n - 1} {
		s, err := talk("tcp", ready.Bound[i][0].String(), 5*time.Second)
		if err != nil {
			t.Fatalf("listener %d: %v", i, err)
		}
		s.Close()
	}
}

// A plain device that somebody else opened is used as it is.
func TestGivenDevice(t *testing.T) {
	target := nstest.New(t).Target(t)
	tun, err := target.OpenTUN(nstest.TUN(t))
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	ifr, err := unix.NewIfreq("tap0")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(int(tun.Fd()), unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	cfg := config(target, "/nonexistent", engineConfig{Mode: "serve"}, tcp(loopback))
	cfg.Device = tun
	p, ready, err := monitor.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if ready.Offload != 0 || ready.OffloadReason != "" {
		t.Errorf("offload %v, reason %q", ready.Offload, ready.OffloadReason)
	}
	s, err := talk("tcp", ready.Bound[0][0].String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// The same as an ordinary user, who joins the user namespace, and whose processes
// depend on not being dumpable.
func TestAsOrdinaryUser(t *testing.T) {
	nstest.RunAsOrdinaryUser(t, "TestRun", "TestStart", "TestEngineKilled", "TestLauncherKilled", "TestMonitorKilled")
}
