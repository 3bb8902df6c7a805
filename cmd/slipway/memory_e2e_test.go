//go:build e2e

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// manyForwards are as many as a host with a few hundred containers has.
	manyForwards = 2000
	firstForward = 20000 // the first one's port on the host
	// forwardGrowth is the most that a forward may take, in bytes.
	forwardGrowth = 32 << 10
	// idleMost is the most that a network of Slipway may take that has nothing to do.
	idleMost = 32 << 20
	// manyFlows are connections that wait, after firstFlows that have brought into memory
	// what all flows need; flowGrowth is the most that one may take, in bytes.
	firstFlows, manyFlows = 200, 1800
	flowGrowth            = 24 << 10
)

// resident is the memory of a process in bytes, VmRSS of proc_pid_status(5).
func resident(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("process %d has no memory", pid)
	return 0
}

// memory is that of the driver and all its processes. What they share, the program's
// text, is counted for each.
func (s *service) memory() (sum, processes int) {
	s.t.Helper()
	sum, processes = resident(s.t, s.Process.Pid), 1
	for pid := range descendants(s.t, s.Process.Pid) {
		if pid != s.Process.Pid {
			sum += resident(s.t, pid)
			processes++
		}
	}
	return sum, processes
}

// TestMemory: what a driver takes while it has nothing to do, what a connection that waits
// adds, and what 2,000 forwarded ports do. The table is on standard output.
func TestMemory(t *testing.T) {
	if !onPrivateHostWithin(t, 2*time.Minute) {
		return
	}
	const row = "| %-11s | %9s | %9s | %11s | %19s | %14s |\n"
	fmt.Printf(row, "", "processes", "idle, MiB", "a flow, KiB", "2,000 forwards, MiB", "a forward, KiB")
	const hostPort = 9100
	go echoStreams(hostListen(t, "tcp", at("127.0.0.1", hostPort)))
	for k, d := range drivers(t) {
		if _, err := d.version(); err != nil {
			t.Logf("no comparison with %s: %v", d.name, err)
			continue
		}
		guest, s := d.guestOf(t)
		guest.do("echo", "tcp4", fmt.Sprintf(":%d", guestPort))
		idle, processes := s.memory()
		guest.do("keep", at(gateway4, hostPort), firstFlows)
		few, _ := s.memory()
		guest.do("keep", at(gateway4, hostPort), manyFlows)
		flows, _ := s.memory()
		flow := (flows - few) / manyFlows
		first := firstForward + k*manyForwards
		for i := range manyForwards {
			s.publish(forward{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: first + i, GuestPort: guestPort})
		}
		many, _ := s.memory()
		each := (many - flows) / manyForwards
		fmt.Printf(row, d.name, strconv.Itoa(processes), fmt.Sprintf("%.1f", float64(idle)/(1<<20)), fmt.Sprintf("%.1f", float64(flow)/1024), fmt.Sprintf("%.1f", float64(many)/(1<<20)), fmt.Sprintf("%.1f", float64(each)/1024))
		if d.excused {
			continue
		}
		if idle > idleMost {
			t.Errorf("an idle network takes %d bytes, want %d at most", idle, idleMost)
		}
		if flow > flowGrowth {
			t.Errorf("a connection that waits takes %d bytes, want %d at most", flow, flowGrowth)
		}
		if each > forwardGrowth {
			t.Errorf("a forward takes %d bytes, want %d at most", each, forwardGrowth)
		}
		if n := len(s.call(`{"execute":"list_hostfwd"}`).Entries); n != manyForwards {
			t.Errorf("%d forwards are listed, want %d", n, manyForwards)
		}
		for _, i := range []int{0, manyForwards / 2, manyForwards - 1} {
			if err := echoed("tcp", at("127.0.0.1", first+i), 1000, 0); err != nil {
				t.Errorf("forward %d: %v", i, err)
			}
		}
	}
}
