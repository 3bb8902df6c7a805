package metrics

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// namespace is the first word of every name that is ours.
const namespace = "slipway"

const (
	fromContainer = "from_container"
	toContainer   = "to_container"
)

var (
	linkBytes   = counter("link_bytes_total", "Bytes of Ethernet frames at the TAP device.", "direction")
	linkPackets = counter("link_packets_total", "Ethernet frames at the TAP device; with offloads one frame holds up to 64 KiB.", "direction")
	linkDrops   = counter("drops_total", "Frames and datagrams that were not passed on.", "reason")

	fragments   = counter("fragments_total", "Fragments of IP packets from the container.")
	reassembled = counter("fragments_reassembled_total", "UDP and ICMP messages from the container that were put together of fragments.")
	leases      = gauge("dhcp_leases", "DHCP leases that clients hold.")

	tcpBytes      = counter("tcp_payload_bytes_total", "TCP payload through the TAP device.", "direction")
	tcpOpen       = gauge("tcp_flows_open", "TCP flows through the TAP device that are open.")
	tcpTotal      = counter("tcp_flows_total", "TCP flows through the TAP device.")
	tcpReset      = counter("tcp_flows_reset_total", "TCP flows that ended by a reset.")
	tcpFailed     = counter("tcp_flows_failed_total", "TCP flows that ended by an error other than a reset.")
	tcpBuffered   = gauge("tcp_buffered_bytes", "Bytes of TCP connections through the TAP device that are queued for one of their ends, with what each segment of them takes.")
	tcpBound      = counter("tcp_buffer_full_total", "How often little of --max-buffer was left, so that connections could queue only what was taken from them.")
	tcpHandshakes = counter("tcp_handshakes_failed_total", "TCP handshakes that the container did not finish.")
	tcpPending    = gauge("tcp_dials_pending", "TCP connections of the container that wait for their destination.")
	tcpHeld       = gauge("tcp_syns_held", "TCP connections of the container that wait to be begun.")
	tcpErrors     = counter("tcp_dial_errors_total", "TCP connections of the container that could not be made.", "reason")
	tcpResent     = counter("tcp_retransmits_total", "TCP segments that were sent to the container again.")
	tcpDialTime   = histogram("tcp_dial_duration_seconds", "Time from a connection's SYN to the answer of its destination, of the container's TCP connections that were made.")
	tcpFlowTime   = histogram("tcp_flow_duration_seconds", "How long TCP flows through the TAP device lived that have ended.")
	refused       = counter("refused_total", "What was refused because a limit was reached.", "limit")

	policyRefused = counter("policy_refusals_total", "Connections, datagrams and pings of the container to destinations that are closed to it.", "reason")

	udpBytes    = counter("udp_payload_bytes_total", "UDP payload passed on.", "direction")
	udpPackets  = counter("udp_datagrams_total", "UDP datagrams passed on.", "direction")
	udpOpen     = gauge("udp_sessions_open", "UDP sessions that are open.")
	udpTotal    = counter("udp_sessions_total", "UDP sessions.")
	udpEvicted  = counter("udp_sessions_evicted_total", "UDP sessions that ended early to make room for others.")
	dnsQueries  = counter("dns_queries_total", "DNS queries of the container.")
	dnsFailures = counter("dns_failures_total", "DNS queries that no resolver answered.")
	dnsFailover = counter("dns_failovers_total", "DNS queries for which a further resolver was asked, as the one before gave no answer in time.")
	dnsLatency  = histogram("dns_latency_seconds", "Time from a DNS query of the container by UDP to its answer, of those that were answered.")
	icmpRequest = counter("icmp_echo_requests_total", "ICMP echo requests of the container that were sent on.")
	icmpReply   = counter("icmp_echo_replies_total", "ICMP echo replies that were passed to the container.")
	restarts    = counter("engine_restarts_total", "How often the engine was started again after it had died.")

	container  = gauge("container_info", "Always 1, its labels tell whose network it is: the host name, pid or path by which it was called, and the number of its network namespace (lsns).", "name", "netns")
	processCPU = counter("process_cpu_seconds_total", "CPU time, user and system, of a process of the network, the present one.", "process")
	processRSS = gauge("process_resident_memory_bytes", "Resident memory of a process of the network.", "process")

	portLabelNames = []string{"container_port", "listen", "path", "protocol"}
	portOpen       = gauge("port_connections_open", "Connections (UDP: sessions) of a published port that are open.", portLabelNames...)
	portTotal      = counter("port_connections_total", "Connections (UDP: sessions) of a published port.", portLabelNames...)
	portRefused    = counter("port_connections_refused_total", "Connections of a published port that were refused.", portLabelNames...)
	portSockets    = counter("port_socket_failures_total", "How often the container's namespace gave no sockets for published ports.")
	portAccepts    = counter("port_accept_failures_total", "How often no client of a published port could be accepted for want of descriptors or memory; it waits in the kernel's backlog.")
	portsWaiting   = gauge("port_connections_waiting", "Clients of published ports that wait until their connection may begin, those in the kernel's backlog aside.")
	portsWaited    = counter("port_connections_waited_total", "Clients of published ports that found no place at once, those in the kernel's backlog aside.")
	portBytes      = counter("port_payload_bytes_total", "Payload through a published port.", "container_port", "direction", "listen", "path", "protocol")
)

// netstackGauges are the counters of gVisor that also fall, tcpip.TCPStats.
var netstackGauges = map[string]bool{
	"tcp_current_established": true,
	"tcp_current_connected":   true,
}

// appendTo writes a snapshot.
func (s Snapshot) appendTo(t *text) {
	t.both(linkBytes, s.Link.FromBytes, s.Link.ToBytes)
	t.both(linkPackets, s.Link.FromPackets, s.Link.ToPackets)
	t.each(linkDrops, s.Drops)
	t.counter(fragments, s.Fragments)
	t.counter(reassembled, s.Reassembled)
	t.gauge(leases, s.Leases)

	t.both(tcpBytes, s.TCPFromBytes, s.TCPToBytes)
	t.gauge(tcpOpen, s.FlowsOpen)
	t.counter(tcpTotal, s.FlowsTotal)
	t.counter(tcpReset, s.FlowsReset)
	t.counter(tcpFailed, s.FlowsFailed)
	t.gauge(tcpBuffered, s.Buffered)
	t.counter(tcpBound, s.BufferFull)
	t.counter(tcpHandshakes, s.HandshakesFailed)
	t.gauge(tcpPending, s.DialsPending)
	t.gauge(tcpHeld, s.SYNsHeld)
	t.each(tcpErrors, s.DialErrors)
	t.counter(tcpResent, s.Retransmits)
	t.histogram(tcpDialTime, s.DialTime)
	t.histogram(tcpFlowTime, s.FlowTime)
	t.each(refused, s.Refused)
	t.each(policyRefused, s.PolicyRefusals)

	t.both(udpBytes, s.UDP.FromBytes, s.UDP.ToBytes)
	t.both(udpPackets, s.UDP.FromPackets, s.UDP.ToPackets)
	t.gauge(udpOpen, s.UDP.SessionsOpen)
	t.counter(udpTotal, s.UDP.SessionsTotal)
	t.counter(udpEvicted, s.UDP.SessionsEvicted)
	t.counter(dnsQueries, s.DNS.Queries)
	t.counter(dnsFailures, s.DNS.Failures)
	t.counter(dnsFailover, s.DNS.Failovers)
	t.histogram(dnsLatency, s.DNS.Latency)
	t.counter(icmpRequest, s.ICMP.Requests)
	t.counter(icmpReply, s.ICMP.Replies)

	t.counter(restarts, s.EngineRestarts)
	t.head(container)
	t.level(container, 1, strings.ToValidUTF8(s.Container.Name, "\uFFFD"), s.Container.Namespace)
	t.processes(s.Processes)
	t.ports(s.Ports)
	t.counter(portSockets, s.PortSocketFailures)
	t.counter(portAccepts, s.PortAcceptFailures)
	t.gauge(portsWaiting, s.PortsWaiting)
	t.counter(portsWaited, s.PortsWaited)
	t.netstack(s.GVisor)
}

func (t *text) processes(all map[string]Process) {
	if len(all) == 0 {
		return
	}
	names := slices.Sorted(maps.Keys(all))
	t.head(processCPU)
	for _, name := range names {
		t.float(processCPU, all[name].CPU.Seconds(), name)
	}
	t.head(processRSS)
	for _, name := range names {
		t.count(processRSS, all[name].Resident, name)
	}
}

func (t *text) ports(in []Port) {
	if len(in) == 0 {
		return
	}
	ports := boundedPorts(in, maxPorts)
	keys := slices.SortedFunc(maps.Keys(ports), portLabels.compare)
	for _, family := range []struct {
		*family
		write func(f *family, p Port, inside string, l portLabels)
	}{
		{portOpen, func(f *family, p Port, inside string, l portLabels) {
			t.level(f, p.Open, inside, l.listen, l.path, l.protocol)
		}},
		{portTotal, func(f *family, p Port, inside string, l portLabels) {
			t.count(f, p.Total, inside, l.listen, l.path, l.protocol)
		}},
		{portRefused, func(f *family, p Port, inside string, l portLabels) {
			t.count(f, p.Refused, inside, l.listen, l.path, l.protocol)
		}},
		{portBytes, func(f *family, p Port, inside string, l portLabels) {
			t.count(f, p.FromBytes, inside, fromContainer, l.listen, l.path, l.protocol)
			t.count(f, p.ToBytes, inside, toContainer, l.listen, l.path, l.protocol)
		}},
	} {
		t.head(family.family)
		for _, l := range keys {
			family.write(family.family, ports[l], strconv.Itoa(int(l.containerPort)), l)
		}
	}
}

func (l portLabels) compare(m portLabels) int {
	return cmp.Or(cmp.Compare(l.protocol, m.protocol), cmp.Compare(l.listen, m.listen),
		cmp.Compare(l.containerPort, m.containerPort), cmp.Compare(l.path, m.path))
}

// netstackSeries are gVisor's counters in the order of writing. They are known only when
// they are seen, and then stay the same: what it takes to sort them is paid once.
type netstackSeries []struct {
	key string
	*family
}

var lastNetstack atomic.Pointer[netstackSeries]

// areThose of the values, all of them and no others.
func (n netstackSeries) areThose(values map[string]uint64) bool {
	if len(n) != len(values) {
		return false
	}
	for _, one := range n {
		if _, ok := values[one.key]; !ok {
			return false
		}
	}
	return true
}

// netstack writes gVisor's counters under their own names.
func (t *text) netstack(values map[string]uint64) {
	series := lastNetstack.Load()
	if series == nil || !series.areThose(values) {
		values = bounded(values, maxNetstack)
		series = &netstackSeries{}
		for _, key := range slices.Sorted(maps.Keys(values)) {
			*series = append(*series, struct {
				key string
				*family
			}{key, netstackFamily(key)})
		}
		lastNetstack.Store(series)
	}
	for _, one := range *series {
		t.counter(one.family, values[one.key])
	}
}

func netstackFamily(key string) *family {
	help := "gVisor's " + key + ", see tcpip.Stats."
	if netstackGauges[key] {
		return gauge("netstack_"+key, help)
	}
	return counter("netstack_"+key+"_total", help)
}
