package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Drivers beyond those that every run knows.
const (
	DriverVeth           = "veth"          // a pair of kernel devices, no user-mode network
	DriverSlipwayPlain   = "slipway-plain" // a TAP device without offloads
	DriverSlipwayTAP     = "slipway-tap"   // published ports over the TAP device, as for UDP
	DriverSlipwayOld     = "slipway-old"   // another build, for [CompareBuilds]
	DriverGvisorTapVsock = "gvisor-tap-vsock"
	DriverRootlessKit    = "rootlesskit" // its network driver slirp4netns and its builtin port driver
	DriverBypass4netns   = "bypass4netns"
)

// Workloads beyond streams. Of those that ask and answer, DirectionUp is a client in the
// container and a server on the host; DirectionDown a client on the host and a server
// behind a published port.
const (
	WorkloadUDP           Workload = "udp"            // datagrams as fast as they can be sent; what arrives
	WorkloadUDPLossless   Workload = "udp-lossless"   // the highest rate found at which at most one in 1000 is lost
	WorkloadLatency       Workload = "latency"        // one request and answer after the other on one connection
	WorkloadLatencyLoaded Workload = "latency-loaded" // the same beside a TCP stream
	WorkloadConnect       Workload = "connect"        // connect, one request and answer, close
	WorkloadHTTP          Workload = "http"           // pages of nginx, asked for by wrk
	WorkloadDNS           Workload = "dns"            // queries to a resolver on the host, by UDP
	WorkloadStart         Workload = "start"          // from the driver's start to its being ready
	WorkloadPublish1000   Workload = "publish-1000"   // the same, with 1000 TCP ports to publish
	WorkloadPublish10000  Workload = "publish-10000"  // the same, with 10000 on every address, IPv4's and IPv6's
	WorkloadIdle          Workload = "idle"           // memory while nothing happens; its streams are open and say nothing
)

// DirectionBoth is into the container and out of it at once; its value is the sum.
const DirectionBoth Direction = "both"

// Suite is a choice of rows and of how to measure them.
type Suite struct {
	Name        string
	Text        string // what it is for, for a person
	Duration    time.Duration
	Omit        time.Duration
	Repetitions int
	MTUs        []int
	Streams     []int
	targets     bool // its rows are all that the targets are about
	blocks      func(Config) []block
}

// block is rows that have a workload in common: each driver in each direction under each
// of the conditions.
type block struct {
	workload   Workload
	directions []Direction
	drivers    []string // in the order of measuring; the host's own row comes first
	mtus       []int
	streams    []int
	sizes      []int
	distances  []distance
}

var (
	oneWay       = []Direction{DirectionUp}
	upDown       = []Direction{DirectionUp, DirectionDown}
	everyWay     = []Direction{DirectionUp, DirectionDown, DirectionBoth}
	published    = []Direction{DirectionDown, DirectionUp}
	publishedAll = []Direction{DirectionDown, DirectionUp, DirectionBoth}

	mainDrivers      = []string{DriverSlipway, DriverSlirp4netns, DriverPasta}
	hostAndMain      = append([]string{DriverHost}, mainDrivers...)
	streamDrivers    = []string{DriverHost, DriverVeth, DriverSlipway, DriverSlipwayPlain, DriverSlirp4netns, DriverPasta, DriverGvisorTapVsock, DriverRootlessKit, DriverBypass4netns}
	publishedDrivers = []string{DriverSlipway, DriverSlipwayTAP, DriverSlirp4netns, DriverPasta, DriverGvisorTapVsock, DriverRootlessKit}
	onlySlipway      = []string{DriverSlipway}
	peerDrivers      = []string{DriverSlirp4netns, DriverPasta, DriverGvisorTapVsock, DriverRootlessKit}
	articleDrivers   = []string{DriverHost, DriverVeth, DriverSlipway, DriverSlirp4netns, DriverRootlessKit}
)

// atOnce is how many connections or queries are under way at a time where a row measures
// how many there can be.
const atOnce = 16

// pagesAtOnce is the same of pages, idleFlows of flows that say nothing.
const (
	pagesAtOnce = 32
	idleFlows   = 2000
)

// Suites in the order of their length, the first is that of a plain slipway bench.
func Suites() []Suite {
	return []Suite{
		{
			Name: "plain", Text: "streams both ways, from the container and through a published port",
			Duration: 4 * time.Second, Omit: time.Second, Repetitions: 5, MTUs: []int{ordinaryMTU}, Streams: []int{1},
			blocks: func(c Config) []block {
				return []block{
					{workload: WorkloadStream, directions: upDown, drivers: hostAndMain, mtus: c.MTUs, streams: c.Streams},
					{workload: WorkloadPublished, directions: published, drivers: mainDrivers, mtus: c.MTUs, streams: c.Streams},
				}
			},
		},
		{
			Name: "quick", Text: "the same in short, of published ports Slipway's only; under 90 s",
			Duration: time.Second, Omit: time.Second, Repetitions: 3, MTUs: []int{ordinaryMTU}, Streams: []int{1},
			blocks: func(c Config) []block {
				return []block{
					{workload: WorkloadStream, directions: upDown, drivers: hostAndMain, mtus: c.MTUs, streams: c.Streams},
					{workload: WorkloadPublished, directions: published, drivers: onlySlipway, mtus: c.MTUs, streams: c.Streams},
				}
			},
		},
		{
			Name: "article", Text: "a container's upload by the kernel (veth), and through slirp4netns: an article's two figures beside ours",
			Duration: 4 * time.Second, Omit: time.Second, Repetitions: 5, MTUs: []int{ordinaryMTU}, Streams: []int{1},
			blocks: func(c Config) []block {
				return []block{{workload: WorkloadStream, directions: oneWay, drivers: articleDrivers, mtus: c.MTUs, streams: c.Streams}}
			},
		},
		{
			Name: "targets", Text: "what the project's targets are about, and which of them are met; a quarter of an hour",
			Duration: time.Second, Repetitions: 4, MTUs: []int{ordinaryMTU, maxMTU}, Streams: []int{1, 4, 16},
			targets: true,
			blocks:  targetBlocks,
		},
		{
			Name: "full", Text: "every driver, every workload",
			Duration: 2 * time.Second, Omit: time.Second, Repetitions: 5, MTUs: []int{ordinaryMTU, 9000, maxMTU}, Streams: []int{1, 4, 16},
			targets: true,
			blocks:  func(c Config) []block { return append(fullBlocks(c), targetBlocks(c)...) },
		},
	}
}

// fullBlocks change one condition at a time: each MTU with the first number of streams,
// and each number of streams at the first MTU.
func fullBlocks(c Config) []block {
	first, one := c.MTUs[:1], []int{1}
	return []block{
		{workload: WorkloadStream, directions: everyWay, drivers: streamDrivers, mtus: c.MTUs, streams: c.Streams[:1]},
		{workload: WorkloadStream, directions: everyWay, drivers: streamDrivers, mtus: first, streams: c.Streams[1:]},
		{workload: WorkloadPublished, directions: publishedAll, drivers: publishedDrivers, mtus: c.MTUs, streams: c.Streams[:1]},
		{workload: WorkloadPublished, directions: publishedAll, drivers: publishedDrivers, mtus: first, streams: c.Streams[1:]},
		{workload: WorkloadStream, directions: upDown, drivers: hostAndMain, mtus: first, streams: one, distances: []distance{{10, 0}, {50, 0}, {50, 1}, {100, 0}}},
		{workload: WorkloadUDP, directions: upDown, drivers: hostAndMain, mtus: first, streams: one, sizes: []int{64, 1400, 8192}},
		{workload: WorkloadUDPLossless, directions: upDown, drivers: hostAndMain, mtus: first, streams: one, sizes: []int{64, 1400, 8192}},
		{workload: WorkloadLatency, directions: upDown, drivers: hostAndMain, mtus: first, streams: one, sizes: []int{64}},
		{workload: WorkloadLatencyLoaded, directions: upDown, drivers: hostAndMain, mtus: first, streams: one, sizes: []int{64}},
		{workload: WorkloadConnect, directions: upDown, drivers: hostAndMain, mtus: first, streams: []int{atOnce}, sizes: []int{64}},
		{workload: WorkloadHTTP, directions: upDown, drivers: hostAndMain, mtus: first, streams: []int{pagesAtOnce}, sizes: pageSizes},
		{workload: WorkloadDNS, directions: oneWay, drivers: hostAndMain, mtus: first, streams: []int{atOnce}},
		{workload: WorkloadStart, directions: oneWay, drivers: mainDrivers, mtus: first, streams: one},
		{workload: WorkloadPublish1000, directions: []Direction{DirectionDown}, drivers: mainDrivers, mtus: first, streams: one},
		{workload: WorkloadPublish10000, directions: []Direction{DirectionDown}, drivers: onlySlipway, mtus: first, streams: one},
		{workload: WorkloadIdle, directions: oneWay, drivers: mainDrivers, mtus: first, streams: []int{0}},
		{workload: WorkloadIdle, directions: oneWay, drivers: onlySlipway, mtus: first, streams: []int{idleFlows}},
	}
}

// targetBlocks are the rows that the targets name, and those of the peers that may be the
// best at that. Requests and small datagrams do not depend on the MTU.
func targetBlocks(c Config) []block {
	first, one := c.MTUs[:1], []int{1}
	all := append([]string{DriverHost, DriverSlipway}, peerDrivers...)
	inwards := []Direction{DirectionDown}
	return []block{
		{workload: WorkloadStream, directions: upDown, drivers: all, mtus: c.MTUs, streams: one},
		{workload: WorkloadStream, directions: upDown, drivers: []string{DriverHost, DriverSlipway}, mtus: first, streams: c.Streams},
		{workload: WorkloadPublished, directions: published, drivers: publishedDrivers, mtus: first, streams: one},
		{workload: WorkloadPublished, directions: published, drivers: []string{DriverSlirp4netns}, mtus: c.MTUs, streams: one},
		{workload: WorkloadStream, directions: upDown, drivers: []string{DriverHost, DriverSlipway}, mtus: first, streams: one, distances: []distance{{100, 0}, {50, 1}}},
		{workload: WorkloadUDP, directions: upDown, drivers: all, mtus: first, streams: one, sizes: []int{1400}},
		{workload: WorkloadUDP, directions: upDown, drivers: all, mtus: c.MTUs, streams: one, sizes: []int{8192}},
		{workload: WorkloadLatency, directions: upDown, drivers: all, mtus: first, streams: one, sizes: []int{echoSize}},
		{workload: WorkloadConnect, directions: upDown, drivers: all, mtus: first, streams: []int{atOnce}, sizes: []int{echoSize}},
		{workload: WorkloadHTTP, directions: oneWay, drivers: all, mtus: c.MTUs, streams: []int{pagesAtOnce}, sizes: pageSizes[1:]},
		{workload: WorkloadHTTP, directions: inwards, drivers: all, mtus: first, streams: []int{pagesAtOnce}, sizes: pageSizes[1:]},
		{workload: WorkloadStart, directions: oneWay, drivers: mainDrivers[:2], mtus: first, streams: one},
		{workload: WorkloadPublish1000, directions: inwards, drivers: onlySlipway, mtus: first, streams: one},
		{workload: WorkloadPublish10000, directions: inwards, drivers: onlySlipway, mtus: first, streams: one},
		{workload: WorkloadIdle, directions: oneWay, drivers: mainDrivers, mtus: first, streams: []int{0}},
		{workload: WorkloadIdle, directions: oneWay, drivers: onlySlipway, mtus: first, streams: []int{idleFlows}},
	}
}

// LookSuite finds a suite by its name.
func LookSuite(name string) (Suite, error) {
	var names []string
	for _, s := range Suites() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Suite{}, fmt.Errorf("%w: no suite %q, the suites are %s", ErrConfig, name, strings.Join(names, ", "))
}

// cells of a block, in the order of measuring and printing.
func (k block) cells() []Cell {
	sizes, distances := k.sizes, k.distances
	if len(sizes) == 0 {
		sizes = []int{0}
	}
	if len(distances) == 0 {
		distances = []distance{{}}
	}
	var cells []Cell
	for _, direction := range k.directions {
		for _, mtu := range k.mtus {
			for _, streams := range k.streams {
				for _, size := range sizes {
					for _, d := range distances {
						for _, driver := range k.drivers {
							c := Cell{
								Driver: driver, Workload: k.workload, Direction: direction, MTU: mtu,
								Streams: streams, Size: size, DelayMillis: d.millis, LostPerThousand: d.lostPerThousand, Unit: unitOf(k.workload),
							}
							if driver == DriverHost {
								c.MTU, c.Direction = 0, DirectionLoopback
							}
							cells = append(cells, c)
						}
					}
				}
			}
		}
	}
	return cells
}

func unitOf(w Workload) Unit {
	switch w {
	case WorkloadLatency, WorkloadLatencyLoaded, WorkloadStart, WorkloadPublish1000, WorkloadPublish10000:
		return UnitSeconds
	case WorkloadIdle:
		return UnitBytes
	case WorkloadConnect, WorkloadHTTP, WorkloadDNS:
		return UnitPerSecond
	default:
		return UnitBitsPerSecond
	}
}

// catalogue lists every row of the configuration's suite, in the order of measuring and
// printing. Two rows of the host that are the same are one. Another build of Slipway, where
// there is one, does all that Slipway does, right after it.
func catalogue(c Config) []Cell {
	suite, err := LookSuite(c.Suite)
	if err != nil || len(c.MTUs) == 0 || len(c.Streams) == 0 {
		return nil
	}
	var cells []Cell
	seen := map[string]bool{}
	for _, k := range suite.blocks(c) {
		for _, cell := range k.cells() {
			if seen[cell.ID()] {
				continue
			}
			seen[cell.ID()] = true
			cells = append(cells, cell)
			if cell.Driver == DriverSlipway && c.Peers[DriverSlipwayOld] != "" {
				cell.Driver = DriverSlipwayOld
				cells = append(cells, cell)
			}
		}
	}
	return cells
}

// yardstick is the row of the host that a row is divided by.
func (c Cell) yardstick() Cell {
	c.Driver, c.Direction, c.MTU = DriverHost, DirectionLoopback, 0
	if c.Workload == WorkloadPublished {
		c.Workload = WorkloadStream
	}
	return c
}

// cells are the rows that the configuration asks for, and those of the host beside them.
func (c Config) cells() []Cell {
	all := catalogue(c)
	if len(c.Only) == 0 {
		return all
	}
	wanted := map[string]bool{}
	for _, cell := range all {
		if slices.ContainsFunc(c.Only, cell.matches) {
			wanted[cell.ID()], wanted[cell.yardstick().ID()] = true, true
		}
	}
	return slices.DeleteFunc(all, func(cell Cell) bool { return !wanted[cell.ID()] })
}

func cellIDs(cells []Cell) []string {
	ids := make([]string, len(cells))
	for i, c := range cells {
		ids[i] = c.ID()
	}
	return ids
}
