//go:build e2e

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"
	"time"
)

const (
	// Many short flows: what else the machine does changes from one second to the next.
	costPairs = 150
	costFlow  = 250 * time.Millisecond // each way
	// studentT is the 95 % quantile of Student's distribution, one-sided, for costPairs - 1
	// degrees of freedom.
	studentT = 1.655
	costMost = 0.05
)

// TestLockedCost: locking itself up costs the drop-in no more than one byte in twenty
// would, in CPU time for bytes carried both ways. Each pair is measured in turns.
func TestLockedCost(t *testing.T) {
	if !onPrivateHostWithin(t, 10*time.Minute) {
		return
	}
	if err := os.WriteFile(congestionControl, []byte("reno"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := agentBulkServer([]string{at("127.0.0.1", bulkPort)}); err != nil {
		t.Fatal(err)
	}
	open := drivers(t)[0]
	var costs [2]func() float64 // CPU-seconds per GB
	for i, d := range []driver{open, open.locked()} {
		guest, s := d.guestOf(t)
		unpaced(guest)
		costs[i] = func() float64 {
			begin := s.cpu()
			bytes := int64(0)
			for _, way := range []byte{bulkUp, bulkDown} {
				var r bulkResult
				if err := json.Unmarshal([]byte(guest.do("bulk", at(gateway4, bulkPort), string(way), int64(costFlow))), &r); err != nil {
					t.Fatal(err)
				}
				bytes += r.Bytes
			}
			return (s.cpu() - begin).Seconds() / (float64(bytes) / 1e9)
		}
		costs[i]() // what is made once is made
	}
	var sum, squares float64
	var each [2]float64
	for i := range costPairs {
		var pair [2]float64
		for k := range pair {
			which := (i + k) % 2 // who comes first takes turns, too
			pair[which] = costs[which]()
			each[which] += pair[which] / costPairs
		}
		more := pair[1]/pair[0] - 1
		sum += more
		squares += more * more
	}
	mean := sum / costPairs
	deviation := math.Sqrt((squares - costPairs*mean*mean) / (costPairs - 1))
	bound := mean + studentT*deviation/math.Sqrt(costPairs)
	const row = "| %-26s | %6s | %9s | %8s | %20s |\n"
	fmt.Printf(row, fmt.Sprintf("CPU-seconds/GB, %d pairs", costPairs), "open", "locked up", "more", "95 % upper bound")
	fmt.Printf(row, "up and down", fmt.Sprintf("%.3f", each[0]), fmt.Sprintf("%.3f", each[1]), fmt.Sprintf("%+.1f %%", 100*mean), fmt.Sprintf("%+.1f %%", 100*bound))
	if bound >= costMost {
		t.Errorf("the 95 %% upper bound of the cost is %.1f %%, want less than %.0f %%", 100*bound, 100*costMost)
	}
}

// cpu is the CPU time of the driver and all its processes.
func (s *service) cpu() time.Duration {
	s.t.Helper()
	sum := cpuTime(s.t, s.Process.Pid)
	for pid := range descendants(s.t, s.Process.Pid) {
		if pid != s.Process.Pid {
			sum += cpuTime(s.t, pid)
		}
	}
	return sum
}
