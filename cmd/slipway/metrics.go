package main

import (
	"context"
	"maps"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"slipway/metrics"
	"slipway/netstack"
	"slipway/netstack/monitor"
	"slipway/portfwd"
)

// source shows the numbers of the stack and of the published ports as metrics.
type source struct {
	stack   *netstack.Stack
	ports   *portfwd.Manager
	monitor *monitor.Client
	start   *monitor.StartMessage
}

// statusTimeout is how long a scrape waits for the monitor.
const statusTimeout = time.Second

var _ metrics.Source = source{}

// Snapshot implements metrics.Source.
func (s source) Snapshot() metrics.Snapshot {
	n, queue := s.stack.Stats(), s.ports.Queue()
	drops := maps.Clone(n.Link.Dropped)
	d := n.UDP.Dropped
	maps.Copy(drops, map[string]uint64{
		"udp_malformed": d.Malformed, "udp_bad_checksum": d.Checksum, "udp_multicast": d.Multicast,
		"udp_denied": d.Denied, "udp_unreachable": d.Unreachable, "udp_no_socket": d.Socket,
		"udp_send_buffer_full": d.Buffer, "udp_send_failed": d.Send, "udp_filtered": d.Filtered,
		"udp_device_refused": d.Write, "udp_no_client_address": d.Clients,
		"udp_receive_buffer_full": d.Overflow, "udp_fragment_refused": d.Refused, "udp_incomplete": d.Incomplete,
		"dns_malformed": n.DNS.Malformed, "icmp_malformed": n.ICMP.Malformed, "icmp_denied": n.ICMP.Denied,
		"icmp_unreachable": n.ICMP.Unreachable, "icmp_no_ping_socket": n.ICMP.Unavailable, "icmp_send_failed": n.ICMP.Failed,
		"icmp_device_refused": n.ICMP.Write,
		"dhcp_malformed":      n.DHCP.Malformed + n.DHCP6.Malformed, "ndp_malformed": n.Router.Malformed,
		"dhcp_ignored": n.DHCP6.Ignored + n.DHCP.Naks, "udp_ttl_expired": d.TTL,
		"tx_queue_full": n.GVisor["nics_tx_packets_dropped_no_buffer_space"],
	})
	out := metrics.Snapshot{
		Link: metrics.Traffic{
			FromBytes: n.Link.RxBytes, ToBytes: n.Link.TxBytes, FromPackets: n.Link.RxPackets, ToPackets: n.Link.TxPackets,
		},
		Drops:     drops,
		Fragments: n.Link.RxFragments + n.UDP.Fragments, Reassembled: n.Reassembled + n.UDP.Reassembled, Leases: int64(n.DHCP.Leases),
		TCPFromBytes: n.TCPFromGuest, TCPToBytes: n.TCPToGuest,
		FlowsOpen: n.FlowsOpen, FlowsTotal: n.FlowsTotal, FlowsReset: n.FlowsReset, FlowsFailed: n.FlowsFailed,
		Buffered: n.Memory.Queued, BufferFull: n.Memory.Bound,
		HandshakesFailed: n.HandshakesFailed, DialsPending: n.DialsPending, SYNsHeld: n.SYNsHeld, DialErrors: n.DialErrors,
		DialTime: metrics.Histogram(n.DialTime), FlowTime: metrics.Histogram(n.FlowTime), PolicyRefusals: n.PolicyRefusals,
		Retransmits: n.GVisor["tcp_retransmits"],
		Refused: map[string]uint64{"flows": n.FlowsRefused + n.DialErrors["limit"], "pending_dials": n.DialsRefused, "held_syns": n.SYNsRefused, "dns_queries": n.DNS.Refused, "icmp_rate": n.ICMP.Limited,
			"dhcp_leases": n.DHCP.Refused, "router_solicitations": n.Router.Limited,
			"buffer": n.Memory.Resets, "dial_rate": n.DialsPaced, "udp_session_rate": d.Paced, "dns_query_rate": n.DNS.Paced, "icmp_error_rate": n.UDP.ICMPErrorsLimited,
			"published": queue.Reset, "neighbours": n.Link.NeighboursForgotten, "neighbour_moves": n.Link.NeighboursDoubted},
		UDP: metrics.UDP{
			Traffic: metrics.Traffic{
				FromBytes: n.UDP.RxBytes, ToBytes: n.UDP.TxBytes, FromPackets: n.UDP.RxDatagrams, ToPackets: n.UDP.TxDatagrams,
			},
			SessionsOpen: int64(n.UDP.Sessions), SessionsTotal: n.UDP.SessionsTotal, SessionsEvicted: n.UDP.SessionsEvicted,
		},
		// A connection to the resolver counts as one query: what it carries is not looked at.
		DNS: metrics.DNS{
			Queries: n.DNS.Queries + n.DNS.TCP, Failures: n.DNS.Failures + n.DNS.TCPFailures, Failovers: n.DNS.Failovers,
			Latency: metrics.Histogram(n.DNS.Latency),
		},
		ICMP:               metrics.ICMP{Requests: n.ICMP.Requests, Replies: n.ICMP.Replies},
		PortSocketFailures: s.ports.SocketFailures(), PortAcceptFailures: s.ports.AcceptErrors(),
		PortsWaiting: int64(queue.Waiting), PortsWaited: queue.Waited,
		EngineRestarts: uint64(s.start.Restarts),
		Container:      metrics.Container{Name: s.start.Container, Namespace: strconv.FormatUint(s.start.Namespace, 10)},
		GVisor:         n.GVisor,
	}
	s.addStatus(&out)
	for _, p := range s.ports.List() {
		port := metrics.Port{
			Protocol: string(p.Spec.Proto), ContainerPort: p.Spec.ContainerPort, Path: p.Path,
			Open: int64(p.Stats.Open), Total: p.Stats.Flows,
			Refused:   p.Stats.Refused + p.Stats.TimedOut + p.Stats.Failed + p.Stats.Limited,
			FromBytes: p.Stats.FromGuest, ToBytes: p.Stats.ToGuest,
		}
		if len(p.Bound) > 0 {
			port.Listen = p.Bound[0].String()
		}
		out.Ports = append(out.Ports, port)
	}
	return out
}

// addStatus adds what only the monitor can tell. Where it does not, that is missing:
// nothing is better than a wrong zero.
func (s source) addStatus(out *metrics.Snapshot) {
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	status, err := s.monitor.Status(ctx)
	if err != nil {
		return
	}
	if n := status.DeviceDrops; n != nil {
		out.Drops["device_queue_full"] = *n
	}
	out.Processes = make(map[string]metrics.Process)
	for name, u := range map[string]*monitor.Usage{"monitor": status.Monitor, "engine": status.Engine} {
		if u != nil {
			out.Processes[name] = metrics.Process{CPU: u.CPU, Resident: u.Resident}
		}
	}
}

// localAddr is the address that a socket is bound to; false for unix sockets.
func localAddr(f *os.File) (netip.AddrPort, bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, false
	}
	var sa unix.Sockaddr
	if err := raw.Control(func(fd uintptr) { sa, _ = unix.Getsockname(int(fd)) }); err != nil {
		return netip.AddrPort{}, false
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), true
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), true
	}
	return netip.AddrPort{}, false
}
