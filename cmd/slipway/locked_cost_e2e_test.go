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

// pairedCost is what comes of measuring two costs in turns, in pairs.
type pairedCost struct {
	each        [2]float64 // means
	more, bound float64    // by which the second is more than the first, and its 95 % upper bound
}

// inPairs measures costPairs pairs.
func inPairs(costs [2]func() float64) pairedCost {
	var out pairedCost
	var sum, squares float64
	for i := range costPairs {
		var pair [2]float64
		for k := range pair {
			which := (i + k) % 2 // who comes first takes turns, too
			pair[which] = costs[which]()
			out.each[which] += pair[which] / costPairs
		}
		// Of quotients themselves the mean is too large, by the variance of what they are
		// divided by; of their logarithms it is not.
		more := math.Log(pair[1] / pair[0])
		sum += more
		squares += more * more
	}
	mean := sum / costPairs
	deviation := math.Sqrt((squares - costPairs*mean*mean) / (costPairs - 1))
	out.more = math.Expm1(mean)
	out.bound = math.Expm1(mean + studentT*deviation/math.Sqrt(costPairs))
	return out
}

// print prints a line, for a cost with the names of the two.
func (c pairedCost) print(first, second string) {
	const row = "| %-26s | %10s | %10s | %8s | %20s |\n"
	fmt.Printf(row, fmt.Sprintf("CPU-seconds/GB, %d pairs", costPairs), first, second, "more", "95 % upper bound")
	fmt.Printf(row, "up and down", fmt.Sprintf("%.3f", c.each[0]), fmt.Sprintf("%.3f", c.each[1]), fmt.Sprintf("%+.1f %%", 100*c.more), fmt.Sprintf("%+.1f %%", 100*c.bound))
}

// bulkBothWays lets bytes flow to the private host and back, and returns what that costs
// in CPU-seconds per GB.
func bulkBothWays(guest *agent, cpu func() time.Duration) float64 {
	guest.t.Helper()
	begin := cpu()
	bytes := int64(0)
	for _, way := range []byte{bulkUp, bulkDown} {
		var r bulkResult
		if err := json.Unmarshal([]byte(guest.do("bulk", at(gateway4, bulkPort), string(way), int64(costFlow))), &r); err != nil {
			guest.t.Fatal(err)
		}
		bytes += r.Bytes
	}
	return (cpu() - begin).Seconds() / (float64(bytes) / 1e9)
}

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
		costs[i] = func() float64 { return bulkBothWays(guest, s.cpu) }
		costs[i]() // what is made once is made
	}
	cost := inPairs(costs)
	cost.print("open", "locked up")
	if cost.bound >= costMost {
		t.Errorf("the 95 %% upper bound of the cost is %.1f %%, want less than %.0f %%", 100*cost.bound, 100*costMost)
	}
}

// cpu is the CPU time of a process and all below it.
func (p *process) cpu() time.Duration {
	p.t.Helper()
	sum := cpuTime(p.t, p.Process.Pid)
	for pid := range descendants(p.t, p.Process.Pid) {
		if pid != p.Process.Pid {
			sum += cpuTime(p.t, pid)
		}
	}
	return sum
}
