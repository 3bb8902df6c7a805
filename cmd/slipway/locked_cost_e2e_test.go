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
	costPairs = 30
	costFlow  = time.Second // each way
	// studentT is the 95 % quantile of Student's distribution, one-sided, for costPairs - 1
	// degrees of freedom.
	studentT = 1.699
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
	fmt.Printf("CPU-seconds per GB, up and down, %d pairs: open %.3f, locked up %.3f; %+.1f %% (95 %% upper bound %+.1f %%)\n",
		costPairs, each[0], each[1], 100*mean, 100*bound)
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
