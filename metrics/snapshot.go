package metrics

import "time"

// Source is what counts. Snapshot is called once for each scrape, possibly by several
// goroutines at a time.
type Source interface {
	Snapshot() Snapshot
}

// Traffic in one direction each. From and to are seen from the container.
type Traffic struct {
	FromBytes, ToBytes     uint64
	FromPackets, ToPackets uint64
}

// Snapshot is the state at one moment: totals since the engine started, and gauges
// named Open or Pending. Keys of maps are snake_case words of a fixed set.
type Snapshot struct {
	// Link counts whole Ethernet frames at the TAP device; a frame of up to 64 KiB is
	// one packet where the device has offloads.
	Link Traffic
	// Fragments of IP packets that came from the container, and Reassembled, the UDP and
	// echo messages that were put together of them. Others miss a part, or made room.
	Fragments, Reassembled uint64
	// Leases of DHCP that clients hold.
	Leases int64
	// Drops are frames and datagrams that were not passed on, by reason.
	Drops map[string]uint64

	// TCPFromBytes and TCPToBytes are payload through the TAP device.
	TCPFromBytes, TCPToBytes uint64
	FlowsOpen                int64
	FlowsTotal               uint64
	// FlowsReset ended by a reset, FlowsFailed by another error.
	FlowsReset, FlowsFailed uint64
	Buffered                int64  // bytes that are queued now
	BufferFull              uint64 // how often little memory was left for them
	HandshakesFailed        uint64 // the container went away during the handshake
	DialsPending            int64
	SYNsHeld                int64             // connections that wait to be begun
	DialErrors              map[string]uint64 // by reason
	Retransmits             uint64            // TCP segments sent again to the container
	// DialTime is from the container's SYN to the answer of its destination, of the
	// connections that were made; FlowTime is how long flows lived that have ended.
	DialTime, FlowTime Histogram
	// Refused counts what a limit refused, by the name of the limit.
	Refused map[string]uint64
	// PolicyRefusals counts destinations that were closed to the container, by reason.
	PolicyRefusals map[string]uint64

	// UDP counts datagrams and their payload.
	UDP   UDP
	DNS   DNS
	ICMP  ICMP
	Ports []Port
	// PortSocketFailures is how often the container's namespace gave no sockets for them.
	PortSocketFailures uint64
	// PortAcceptFailures is how often a client of theirs could not be accepted.
	PortAcceptFailures uint64
	// PortsWaiting and PortsWaited are how many of their clients wait for a place, and have.
	PortsWaiting   int64
	PortsWaited    uint64
	EngineRestarts uint64
	Container      Container
	// Processes are those of the network, by name; one of which nothing is known is not
	// there.
	Processes map[string]Process
	// GVisor are gVisor's own counters by their snake_case name, like tcp_retransmits.
	GVisor map[string]uint64
}

// UDP sessions of the NAT table.
type UDP struct {
	Traffic
	SessionsOpen    int64
	SessionsTotal   uint64
	SessionsEvicted uint64 // ended early to make room
}

// DNS relay.
type DNS struct {
	Queries  uint64
	Failures uint64 // got no answer from any resolver
	// Failovers are queries for which a further resolver was asked.
	Failovers uint64
	// Latency is from a query by UDP to its answer.
	Latency Histogram
}

// Histogram of durations.
type Histogram struct {
	Bounds []float64 // upper bounds in seconds, which are part of their buckets, rising
	Counts []uint64  // of each bucket alone, and of what is above all bounds
	Sum    float64   // seconds
}

// Container is whose network it is.
type Container struct {
	Name      string // what a person calls it
	Namespace string // number of its network namespace
}

// Process of the network.
type Process struct {
	CPU      time.Duration
	Resident uint64 // bytes of memory
}

// ICMP echo relay.
type ICMP struct {
	Requests uint64 // from the container
	Replies  uint64 // to the container
}

// Port is one published port.
type Port struct {
	Protocol      string // "tcp" or "udp"
	Listen        string // address and port on the host
	ContainerPort uint16
	Path          string // "kernel" or "tap"
	Open          int64  // connections or sessions
	Total         uint64
	Refused       uint64
	// FromBytes and ToBytes are payload, seen from the container.
	FromBytes, ToBytes uint64
}
