package link

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Turn hears which endpoint the receive loop hands a segment to.
type Turn interface {
	// Begin comes before gVisor gets a segment of ep.
	Begin(ep tcpip.Endpoint)
	// End comes when gVisor is done with it.
	End()
}

// take hands gVisor a small segment of a connection and lets it do its work here, in the
// receive loop, where it would wake one of its processors otherwise: to wait for a
// goroutine to wake takes as long as all the rest. What gVisor has done for the relay,
// the end of the turn completes. Acknowledgements to the guest go last: they are in
// nobody's way then.
func (e *Endpoint) take(d stack.NetworkDispatcher, ep *tcp.Endpoint, frame buffer.Buffer) {
	if !ep.TryLock() {
		dispatch(d, frame) // whoever has it is not waited for
		return
	}
	ep.ResumeWork()
	e.queue.begin()
	e.cfg.Turn.Begin(ep)
	// While a user has an endpoint, gVisor queues segments and wakes nobody.
	ep.LockUser()
	dispatch(d, frame)
	// The lock is free from here, and the endpoint a user's still.
	ep.ResumeWork()
	switch state := ep.EndpointState(); {
	case state == tcp.StateSynRecv:
		handleConnecting(ep)
	case connected(state):
		handleConnected(ep)
	}
	// Whatever is in the queue still, a processor is woken for.
	ep.LockUser()
	ep.UnlockUser()
	e.cfg.Turn.End()
	e.queue.release()
}

func connected(s tcp.EndpointState) bool {
	switch s {
	case tcp.StateEstablished, tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateCloseWait, tcp.StateLastAck, tcp.StateClosing:
		return true
	}
	return false
}

// endpoint is gVisor's of the connection that a frame belongs to, whose TCP header begins
// at segment (see headers); nil where there is none, and where the segment begins or resets
// a connection.
//
// A frame without a segment is never a connection's: of an ICMP error gVisor tells the
// endpoint that is meant, and locks it for that, which the receive loop would have locked.
func (e *Endpoint) endpoint(frame []byte, segment int) *tcp.Endpoint {
	if e.cfg.Stack == nil || segment == 0 {
		return nil
	}
	seg := header.TCP(frame[segment:])
	if seg.Flags()&(header.TCPFlagSyn|header.TCPFlagRst|header.TCPFlagAck) != header.TCPFlagAck {
		return nil
	}
	proto, id := segmentID(frame, segment)
	ep, _ := e.cfg.Stack.FindTransportEndpoint(proto, header.TCPProtocolNumber, id, e.cfg.NIC).(*tcp.Endpoint)
	return ep
}

// segmentID is whose endpoint the segment of a frame would be, whose TCP header begins at
// segment.
func segmentID(frame []byte, segment int) (tcpip.NetworkProtocolNumber, stack.TransportEndpointID) {
	var id stack.TransportEndpointID
	proto := tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(frame[12:]))
	if b := frame[header.EthernetMinimumSize:]; proto == header.IPv4ProtocolNumber {
		id.LocalAddress, id.RemoteAddress = header.IPv4(b).DestinationAddress(), header.IPv4(b).SourceAddress()
	} else {
		id.LocalAddress, id.RemoteAddress = header.IPv6(b).DestinationAddress(), header.IPv6(b).SourceAddress()
	}
	seg := header.TCP(frame[segment:])
	id.LocalPort, id.RemotePort = seg.DestinationPort(), seg.SourcePort()
	return proto, id
}
