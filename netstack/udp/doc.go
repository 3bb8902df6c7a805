// Package udp carries the guest's UDP datagrams to host sockets and back without
// going through the full stack.
//
//	guest ──TAP──▶ link RX loop ─▶ NAT.Input ─▶ session ─▶ sendmsg, UDP_SEGMENT ──▶ host
//	guest ◀──TAP── Config.Write ◀─ one frame, or a USO frame ◀─ recvmmsg, UDP_GRO ◀── host
//
// Mapping is endpoint-independent (RFC 4787 REQ-1): a session is one guest address
// and port, and has one unconnected host socket for each family it talks to.
// Filtering is address-dependent. What the guest sees as the source of a reply is the
// address that it sent to, whatever Config.Route made of it.
//
// Unicast datagrams without IPv4 options or IPv6 extension headers are taken, whole or in fragments,
// which are put together here; Input returns false for all others, which are the full stack's. To the
// guest goes a datagram above the MTU as one frame, where its kernel takes that.
//
// # Invariants
//
//   - Input never blocks, and neither keeps nor changes the frame. Datagrams of one run that
//     leave together are copied to a batch, which Flush sends.
//   - One goroutine reads every host socket and sweeps idle sessions; Close ends it.
//   - A descriptor is closed only while nobody uses it (socket.mu), so that no datagram
//     can reach another flow through a descriptor number that was used again.
//   - Sessions, addresses per session, clients of a published port, batches, incomplete datagrams and
//     ICMP errors are bounded, and what was refused is counted.
//   - A packet of an existing session costs no allocation in either direction.
package udp
