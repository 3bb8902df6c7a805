package main

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack"
)

const (
	// rushTick is how often it is looked whether there is a rush of requests.
	rushTick = 50 * time.Millisecond
	// rushRequests in one rushTick are many. With rushCPU of CPU time, nearly a whole CPU, they
	// are a rush, which lasts until half of either is left.
	rushRequests = 100
	rushCPU      = rushTick * 8 / 10
)

// rush is that of a container's small requests.
type rush struct{ on bool }

// tick says whether there is a rush, after a rushTick with so much in it.
func (r *rush) tick(requests uint64, cpu time.Duration) bool {
	least, busy := uint64(rushRequests), rushCPU
	if r.on {
		least, busy = least/2, busy/2
	}
	r.on = requests >= least && cpu >= busy
	return r.on
}

// shareCPUs has the engine run on half of the CPUs during a rush, until done. What one of
// its goroutines wakes is then done next, on the same CPU; otherwise the runtime wakes
// another thread for it, and lets that look for work for a while, where client and server
// could run. Streams, which give several goroutines work all the time, get all CPUs, and so
// does who asks little.
func shareCPUs(stack *netstack.Stack, done <-chan struct{}) {
	all := runtime.GOMAXPROCS(0)
	half := max(1, all/2)
	tick := time.NewTicker(rushTick)
	defer tick.Stop()
	var r rush
	for {
		tick.Stop() // nothing wakes an engine of which nothing is asked
		select {
		case <-done:
			return
		case <-stack.Rush():
		}
		tick.Reset(rushTick)
		requests, cpu := stack.Requests(), cpuUsed()
		for many := true; many; {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			n, c := stack.Requests(), cpuUsed()
			many = n-requests >= rushRequests/2
			want := all
			if r.tick(n-requests, c-cpu) {
				want = half
			}
			if want != runtime.GOMAXPROCS(0) {
				runtime.GOMAXPROCS(want) // stops the world for some microseconds
			}
			requests, cpu = n, c
		}
	}
}

// cpuUsed is the CPU time of the process so far, getrusage(2).
func cpuUsed() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
