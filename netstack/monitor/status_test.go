package monitor_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"slipway/netstack/monitor"
	"slipway/netstack/netns/nstest"
)

// status asks an engine for what its monitor tells.
func (s *session) status(t *testing.T) monitor.Status {
	t.Helper()
	var got monitor.Status
	answer := s.ask(t, "status")
	if err := json.Unmarshal([]byte(answer), &got); err != nil {
		t.Fatalf("status: %q: %v", answer, err)
	}
	return got
}

// TestStatus: the locked engine learns what the kernel dropped at the device, and what
// both processes use; of a device that the container has deleted, nothing.
func TestStatus(t *testing.T) {
	tun := nstest.TUN(t)
	target := nstest.New(t).Target(t)
	cfg := config(target, tun, engineConfig{Mode: "locked"}, tcp(loopback))
	cfg.Status = true
	// The engine of these tests reads no frame, so the queue fills.
	cfg.Link.TxQueueLen = 1
	cfg.KernelPorts = nil
	r := start(t, cfg)
	s, err := talk("tcp", r.ready.Bound[0][0].String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := s.status(t)
	if before.DeviceDrops == nil || before.Monitor == nil || before.Engine == nil {
		t.Fatalf("the status is incomplete: %+v", before)
	}
	for name, u := range map[string]*monitor.Usage{"monitor": before.Monitor, "engine": before.Engine} {
		if u.Resident < 1<<20 {
			t.Errorf("the %s has %d bytes of memory", name, u.Resident)
		}
	}

	// Each neighbour that is looked for is a frame.
	const frames = 10
	sockets, err := target.Sockets(unix.AF_INET, frames)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range sockets {
		to := &unix.SockaddrInet4{Port: 80, Addr: [4]byte{10, 0, 2, byte(200 + i)}}
		if err := unix.Connect(int(f.Fd()), to); !errors.Is(err, unix.EINPROGRESS) {
			t.Errorf("connect: %v, want %v", err, unix.EINPROGRESS)
		}
		defer f.Close()
	}
	eventually(t, 5*time.Second, "all but one frame counted as dropped", func() bool {
		got := s.status(t).DeviceDrops
		return got != nil && *got >= *before.DeviceDrops+frames-1
	})

	h, err := target.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.LinkDel(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "no drops of a device that is gone", func() bool {
		got := s.status(t)
		return got.DeviceDrops == nil && got.Monitor != nil
	})
}

// TestStatusNotOffered: an engine that asks although it may not is ended.
func TestStatusNotOffered(t *testing.T) {
	tun := nstest.TUN(t)
	r := start(t, config(nstest.New(t).Target(t), tun, engineConfig{Mode: "serve"}, tcp(loopback)))
	s, err := talk("tcp", r.ready.Bound[0][0].String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write([]byte("status\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the engine's end", func() bool { return !alive(r.ready.EnginePID) })
}

// TestContainerNamed: engines are told whose network they serve.
func TestContainerNamed(t *testing.T) {
	tun := nstest.TUN(t)
	target := nstest.New(t).Target(t)
	cfg := config(target, tun, engineConfig{Mode: "serve"}, tcp(loopback))
	cfg.Container = "web"
	r := start(t, cfg)
	s, err := talk("tcp", r.ready.Bound[0][0].String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(target.Net.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Name      string
		Namespace uint64
	}
	if err := json.Unmarshal([]byte(s.ask(t, "container")), &got); err != nil {
		t.Fatal(err)
	}
	if got.Name != "web" || got.Namespace != st.Ino {
		t.Errorf("the container is %q in %d, want web in %d", got.Name, got.Namespace, st.Ino)
	}
}
