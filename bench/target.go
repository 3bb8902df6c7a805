package bench

import "time"

// target is a goal that the project sets itself: a quantity of Slipway's row, alone or
// beside that of a rival in the same run.
type target struct {
	of      rowsOf
	what    quantity
	than    comparison
	rival   rival // of none, the figure is the quantity itself
	limit   float64
	perFlow int // a difference is that of so many flows; 0: it is not divided
}

// rowsOf are rows that differ in nothing but the MTU. The best of them is meant.
type rowsOf struct {
	driver    string
	workload  Workload
	direction Direction
	mtu       int // 0: any
	streams   int
	size      int
	distance  distance
}

// comparison is how a figure is made and what it has to be.
type comparison string

const (
	ratioAtLeast     comparison = "at least so many times the rival's"
	ratioAtMost      comparison = "at most so many times the rival's"
	atMost           comparison = "at most that"
	differenceAtMost comparison = "at most so much more than the rival's"
)

func toHost(mtu, streams int) rowsOf {
	return rowsOf{DriverSlipway, WorkloadStream, DirectionUp, mtu, streams, 0, distance{}}
}

func fromHost(mtu, streams int) rowsOf {
	return rowsOf{DriverSlipway, WorkloadStream, DirectionDown, mtu, streams, 0, distance{}}
}

func onPort(driver string, d Direction) rowsOf {
	return rowsOf{driver, WorkloadPublished, d, ordinaryMTU, 1, 0, distance{}}
}

func asking(w Workload, d Direction, streams, size int) rowsOf {
	return rowsOf{DriverSlipway, w, d, ordinaryMTU, streams, size, distance{}}
}

func datagrams(d Direction, mtu, size int) rowsOf {
	return rowsOf{DriverSlipway, WorkloadUDP, d, mtu, 1, size, distance{}}
}

func farAway(d Direction, millis, lost int) rowsOf {
	return rowsOf{DriverSlipway, WorkloadStream, d, ordinaryMTU, 1, 0, distance{millis, lost}}
}

func alone(w Workload, d Direction, streams int) rowsOf {
	return rowsOf{DriverSlipway, w, d, ordinaryMTU, streams, 0, distance{}}
}

const (
	up, down = DirectionUp, DirectionDown

	megabyte = 1e6
	kibibyte = 1 << 10
)

// targets of the project, in the order of printing. Their rows are those of the suite
// "targets". "Peer" is the best of the others doing the same, at its best MTU.
var targets = []target{
	// TCP from the container to the host, over the TAP device.
	{of: toHost(ordinaryMTU, 1), what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.5},
	{of: toHost(maxMTU, 1), what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.5},
	{of: toHost(ordinaryMTU, 1), what: speed, than: ratioAtLeast, rival: peer, limit: 2.5},
	{of: toHost(maxMTU, 1), what: speed, than: ratioAtLeast, rival: peer, limit: 2.5},
	{of: toHost(ordinaryMTU, 1), what: speed, than: ratioAtLeast, rival: only(DriverSlirp4netns, ordinaryMTU), limit: 25},
	{of: toHost(ordinaryMTU, 1), what: speed, than: ratioAtLeast, rival: peerAtOrdinaryMTU, limit: 11},
	{of: toHost(ordinaryMTU, 4), what: share, than: ratioAtLeast, rival: oneStream, limit: 1},
	{of: toHost(ordinaryMTU, 16), what: share, than: ratioAtLeast, rival: oneStream, limit: 1},
	{of: toHost(ordinaryMTU, 1), what: cpu, than: atMost, limit: 0.22},
	{of: toHost(ordinaryMTU, 1), what: systemCPU, than: ratioAtMost, rival: only(DriverSlirp4netns, maxMTU), limit: 0.6},
	{of: toHost(ordinaryMTU, 1), what: systemCPU, than: ratioAtMost, rival: only(DriverPasta, 0), limit: 1},

	// TCP from the host to the container, over the TAP device.
	{of: fromHost(ordinaryMTU, 1), what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.45},
	{of: fromHost(maxMTU, 1), what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.45},
	{of: fromHost(ordinaryMTU, 1), what: speed, than: ratioAtLeast, rival: peer, limit: 1.05},
	{of: fromHost(maxMTU, 1), what: speed, than: ratioAtLeast, rival: peer, limit: 1.05},
	{of: fromHost(ordinaryMTU, 1), what: speed, than: ratioAtLeast, rival: only(DriverSlirp4netns, ordinaryMTU), limit: 9},
	{of: fromHost(ordinaryMTU, 1), what: speed, than: ratioAtLeast, rival: only(DriverPasta, ordinaryMTU), limit: 15},
	{of: fromHost(ordinaryMTU, 4), what: share, than: ratioAtLeast, rival: oneStream, limit: 1},
	{of: fromHost(ordinaryMTU, 16), what: share, than: ratioAtLeast, rival: oneStream, limit: 1},
	{of: fromHost(ordinaryMTU, 1), what: cpu, than: atMost, limit: 0.28},
	{of: fromHost(ordinaryMTU, 1), what: systemCPU, than: ratioAtMost, rival: only(DriverSlirp4netns, maxMTU), limit: 0.6},
	{of: fromHost(ordinaryMTU, 1), what: systemCPU, than: ratioAtMost, rival: only(DriverPasta, 0), limit: 1},

	// Published ports.
	{of: onPort(DriverSlipway, down), what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.8},
	{of: onPort(DriverSlipway, up), what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.8},
	{of: onPort(DriverSlipway, down), what: speed, than: ratioAtLeast, rival: only(DriverPasta, 0), limit: 1},
	{of: onPort(DriverSlipway, up), what: speed, than: ratioAtLeast, rival: only(DriverPasta, 0), limit: 0.95},
	{of: onPort(DriverSlipway, down), what: cpu, than: atMost, limit: 0.10},
	{of: onPort(DriverSlipway, up), what: cpu, than: atMost, limit: 0.10},
	{of: onPort(DriverSlipway, down), what: systemCPU, than: ratioAtMost, rival: only(DriverPasta, 0), limit: 1},
	{of: onPort(DriverSlipway, up), what: systemCPU, than: ratioAtMost, rival: only(DriverPasta, 0), limit: 1},
	{of: onPort(DriverSlipwayTAP, down), what: speed, than: ratioAtLeast, rival: only(DriverSlirp4netns, 0), limit: 2.5},
	{of: onPort(DriverSlipwayTAP, up), what: speed, than: ratioAtLeast, rival: only(DriverSlirp4netns, 0), limit: 2.5},

	// Connections, requests and pages.
	{of: asking(WorkloadConnect, up, atOnce, echoSize), what: speed, than: ratioAtLeast, rival: peer, limit: 1},
	{of: asking(WorkloadConnect, down, atOnce, echoSize), what: speed, than: ratioAtLeast, rival: peer, limit: 1.25},
	{of: asking(WorkloadLatency, up, 1, echoSize), what: p50, than: ratioAtMost, rival: peer, limit: 1.05},
	{of: asking(WorkloadLatency, up, 1, echoSize), what: p99, than: ratioAtMost, rival: peer, limit: 1.05},
	{of: asking(WorkloadLatency, down, 1, echoSize), what: p50, than: ratioAtMost, rival: peer, limit: 0.85},
	{of: asking(WorkloadLatency, down, 1, echoSize), what: p99, than: ratioAtMost, rival: peer, limit: 0.85},
	{of: asking(WorkloadHTTP, up, pagesAtOnce, pageSizes[1]), what: speed, than: ratioAtLeast, rival: peer, limit: 1.3},
	{of: asking(WorkloadHTTP, down, pagesAtOnce, pageSizes[1]), what: speed, than: ratioAtLeast, rival: peer, limit: 1.3},

	// UDP.
	{of: datagrams(up, ordinaryMTU, 1400), what: speed, than: ratioAtLeast, rival: peer, limit: 2},
	{of: datagrams(up, ordinaryMTU, 1400), what: cpu, than: ratioAtMost, rival: fastestPeer, limit: 0.45},
	{of: datagrams(down, ordinaryMTU, 1400), what: speed, than: ratioAtLeast, rival: peer, limit: 2},
	{of: datagrams(down, ordinaryMTU, 1400), what: cpu, than: ratioAtMost, rival: fastestPeer, limit: 0.45},
	{of: datagrams(up, 0, 8192), what: speed, than: ratioAtLeast, rival: peer, limit: 2},
	{of: datagrams(down, 0, 8192), what: speed, than: ratioAtLeast, rival: peer, limit: 2},

	// Long paths.
	{of: farAway(up, 100, 0), what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.9},
	{of: farAway(down, 100, 0), what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.9},
	{of: farAway(up, 50, 1), what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.9},
	{of: farAway(down, 50, 1), what: speed, than: ratioAtLeast, rival: hostLoopback, limit: 0.9},

	// Getting ready, and doing nothing.
	{of: alone(WorkloadStart, up, 1), what: ready, than: differenceAtMost, rival: only(DriverSlirp4netns, 0), limit: (30 * time.Millisecond).Seconds()},
	{of: alone(WorkloadPublish1000, down, 1), what: ready, than: differenceAtMost, rival: nothingPublished, limit: (50 * time.Millisecond).Seconds()},
	{of: alone(WorkloadPublish1000, down, 1), what: memory, than: differenceAtMost, rival: nothingPublished, limit: 10 * megabyte},
	{of: alone(WorkloadPublish10000, down, 1), what: ready, than: differenceAtMost, rival: nothingPublished, limit: (300 * time.Millisecond).Seconds()},
	{of: alone(WorkloadIdle, up, 0), what: memory, than: atMost, limit: 32 * megabyte},
	{of: alone(WorkloadIdle, up, idleFlows), what: memory, than: differenceAtMost, rival: noFlows, limit: 24 * kibibyte, perFlow: idleFlows},
}
