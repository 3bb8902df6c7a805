package metrics

import (
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// namespace is the first word of every name that is ours.
const namespace = "slipway"

// desc of a metric of ours.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
}

const (
	fromContainer = "from_container"
	toContainer   = "to_container"
)

var (
	linkBytes   = desc("link_bytes_total", "Bytes of Ethernet frames at the TAP device.", "direction")
	linkPackets = desc("link_packets_total", "Ethernet frames at the TAP device; with offloads one frame holds up to 64 KiB.", "direction")
	linkDrops   = desc("drops_total", "Frames and datagrams that were not passed on.", "reason")

	fragments   = desc("fragments_total", "Fragments of IP packets from the container.")
	reassembled = desc("fragments_reassembled_total", "UDP and ICMP messages from the container that were put together of fragments.")
	leases      = desc("dhcp_leases", "DHCP leases that clients hold.")

	tcpBytes      = desc("tcp_payload_bytes_total", "TCP payload through the TAP device.", "direction")
	tcpOpen       = desc("tcp_flows_open", "TCP flows through the TAP device that are open.")
	tcpTotal      = desc("tcp_flows_total", "TCP flows through the TAP device.")
	tcpReset      = desc("tcp_flows_reset_total", "TCP flows that ended by a reset.")
	tcpFailed     = desc("tcp_flows_failed_total", "TCP flows that ended by an error other than a reset.")
	tcpHandshakes = desc("tcp_handshakes_failed_total", "TCP handshakes that the container did not finish.")
	tcpPending    = desc("tcp_dials_pending", "TCP connections of the container that wait for their destination.")
	tcpErrors     = desc("tcp_dial_errors_total", "TCP connections of the container that could not be made.", "reason")
	tcpResent     = desc("tcp_retransmits_total", "TCP segments that were sent to the container again.")
	tcpDialTime   = desc("tcp_dial_duration_seconds", "Time from a connection's SYN to the answer of its destination, of the container's TCP connections that were made.")
	tcpFlowTime   = desc("tcp_flow_duration_seconds", "How long TCP flows through the TAP device lived that have ended.")
	refused       = desc("refused_total", "What was refused because a limit was reached.", "limit")

	policyRefused = desc("policy_refusals_total", "Connections, datagrams and pings of the container to destinations that are closed to it.", "reason")

	udpBytes    = desc("udp_payload_bytes_total", "UDP payload passed on.", "direction")
	udpPackets  = desc("udp_datagrams_total", "UDP datagrams passed on.", "direction")
	udpOpen     = desc("udp_sessions_open", "UDP sessions that are open.")
	udpTotal    = desc("udp_sessions_total", "UDP sessions.")
	udpEvicted  = desc("udp_sessions_evicted_total", "UDP sessions that ended early to make room for others.")
	dnsQueries  = desc("dns_queries_total", "DNS queries of the container.")
	dnsFailures = desc("dns_failures_total", "DNS queries that no resolver answered.")
	dnsFailover = desc("dns_failovers_total", "DNS queries for which a further resolver was asked, as the one before gave no answer in time.")
	dnsLatency  = desc("dns_latency_seconds", "Time from a DNS query of the container by UDP to its answer, of those that were answered.")
	icmpRequest = desc("icmp_echo_requests_total", "ICMP echo requests of the container that were sent on.")
	icmpReply   = desc("icmp_echo_replies_total", "ICMP echo replies that were passed to the container.")
	restarts    = desc("engine_restarts_total", "How often the engine was started again after it had died.")

	container  = desc("container_info", "Always 1, its labels tell whose network it is: the host name, pid or path by which it was called, and the number of its network namespace (lsns).", "name", "netns")
	processCPU = desc("process_cpu_seconds_total", "CPU time, user and system, of a process of the network, the present one.", "process")
	processRSS = desc("process_resident_memory_bytes", "Resident memory of a process of the network.", "process")

	portLabelNames = []string{"protocol", "listen", "container_port", "path"}
	portOpen       = desc("port_connections_open", "Connections (UDP: sessions) of a published port that are open.", portLabelNames...)
	portTotal      = desc("port_connections_total", "Connections (UDP: sessions) of a published port.", portLabelNames...)
	portRefused    = desc("port_connections_refused_total", "Connections of a published port that were refused.", portLabelNames...)
	portBytes      = desc("port_payload_bytes_total", "Payload through a published port.", append(portLabelNames, "direction")...)
)

// netstackGauges are the counters of gVisor that also fall, tcpip.TCPStats.
var netstackGauges = map[string]bool{
	"tcp_current_established": true,
	"tcp_current_connected":   true,
}

var _ prometheus.Collector = collector{}

// collector turns a snapshot into metrics at the time of a scrape.
type collector struct{ src Source }

// Describe sends nothing: which counters gVisor has is known only when it is asked.
// The registry then checks every scrape instead.
func (collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.src.Snapshot()
	e := emitter{ch}
	e.both(linkBytes, s.Link.FromBytes, s.Link.ToBytes)
	e.both(linkPackets, s.Link.FromPackets, s.Link.ToPackets)
	e.each(linkDrops, s.Drops)
	e.counter(fragments, s.Fragments)
	e.counter(reassembled, s.Reassembled)
	e.gauge(leases, s.Leases)

	e.both(tcpBytes, s.TCPFromBytes, s.TCPToBytes)
	e.gauge(tcpOpen, s.FlowsOpen)
	e.counter(tcpTotal, s.FlowsTotal)
	e.counter(tcpReset, s.FlowsReset)
	e.counter(tcpFailed, s.FlowsFailed)
	e.counter(tcpHandshakes, s.HandshakesFailed)
	e.gauge(tcpPending, s.DialsPending)
	e.each(tcpErrors, s.DialErrors)
	e.counter(tcpResent, s.Retransmits)
	e.histogram(tcpDialTime, s.DialTime)
	e.histogram(tcpFlowTime, s.FlowTime)
	e.each(refused, s.Refused)
	e.each(policyRefused, s.PolicyRefusals)

	e.both(udpBytes, s.UDP.FromBytes, s.UDP.ToBytes)
	e.both(udpPackets, s.UDP.FromPackets, s.UDP.ToPackets)
	e.gauge(udpOpen, s.UDP.SessionsOpen)
	e.counter(udpTotal, s.UDP.SessionsTotal)
	e.counter(udpEvicted, s.UDP.SessionsEvicted)
	e.counter(dnsQueries, s.DNS.Queries)
	e.counter(dnsFailures, s.DNS.Failures)
	e.counter(dnsFailover, s.DNS.Failovers)
	e.histogram(dnsLatency, s.DNS.Latency)
	e.counter(icmpRequest, s.ICMP.Requests)
	e.counter(icmpReply, s.ICMP.Replies)
	e.counter(restarts, s.EngineRestarts)
	e.gauge(container, 1, strings.ToValidUTF8(s.Container.Name, "\uFFFD"), s.Container.Namespace)
	for name, p := range s.Processes {
		e.ch <- prometheus.MustNewConstMetric(processCPU, prometheus.CounterValue, p.CPU.Seconds(), name)
		e.ch <- prometheus.MustNewConstMetric(processRSS, prometheus.GaugeValue, float64(p.Resident), name)
	}

	for l, p := range boundedPorts(s.Ports, maxPorts) {
		labels := []string{l.protocol, l.listen, strconv.Itoa(int(l.containerPort)), l.path}
		e.gauge(portOpen, p.Open, labels...)
		e.counter(portTotal, p.Total, labels...)
		e.counter(portRefused, p.Refused, labels...)
		e.both(portBytes, p.FromBytes, p.ToBytes, labels...)
	}
	e.netstack(s.GVisor)
}

// emitter sends constant metrics.
type emitter struct{ ch chan<- prometheus.Metric }

func (e emitter) counter(d *prometheus.Desc, v uint64, labels ...string) {
	e.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (e emitter) gauge(d *prometheus.Desc, v int64, labels ...string) {
	e.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
}

func (e emitter) both(d *prometheus.Desc, from, to uint64, labels ...string) {
	labels = labels[:len(labels):len(labels)]
	e.counter(d, from, append(labels, fromContainer)...)
	e.counter(d, to, append(labels, toContainer)...)
}

func (e emitter) each(d *prometheus.Desc, values map[string]uint64) {
	for key, v := range bounded(values, maxReasons) {
		e.counter(d, v, key)
	}
}

// histogram sends a histogram. Its count is that of its buckets.
func (e emitter) histogram(d *prometheus.Desc, h Histogram) {
	var count uint64
	buckets := make(map[float64]uint64, len(h.Bounds))
	for i, n := range h.Counts {
		count += n
		if i < len(h.Bounds) {
			buckets[h.Bounds[i]] = count
		}
	}
	e.ch <- prometheus.MustNewConstHistogram(d, count, h.Sum, buckets)
}

// netstack sends gVisor's counters under their own names.
func (e emitter) netstack(values map[string]uint64) {
	for key, v := range bounded(values, maxNetstack) {
		help := "gVisor's " + key + ", see tcpip.Stats."
		if netstackGauges[key] {
			e.gauge(desc("netstack_"+key, help), int64(v))
			continue
		}
		e.counter(desc("netstack_"+key+"_total", help), v)
	}
}
