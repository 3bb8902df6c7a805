// Package portfwd publishes ports of a container on the host: what -p says (Spec,
// Parse), the listeners, and the way a connection takes from them (Manager).
//
//	kernel   client ⇄ accepted socket ⇄ splice ⇄ socket made in the namespace ⇄ container  (relay.Splicer)
//	tap      client ⇄ accepted socket ⇄ gVisor ⇄ TAP ⇄ container
//
// Invariants:
//   - The container sees the client's own address and port. Clients that it would
//     take for itself or its network (loopback, link-local, its own addresses and
//     prefixes) are shown as the gateway, so no stranger ever looks local.
//   - The target is always the container's address, never its loopback.
//   - A refusal by the container reaches the client as a reset.
//   - Nothing that a client or the container does ends a listener: a lack of
//     descriptors slows accepts down.
//   - While Limits.Connections are open, clients wait in the kernel's backlog. The
//     connections of one client address, of an IPv6 /64, leave a tenth of the places
//     to others; the next ones of that address wait, in bounded number, and for as long
//     as the container has to answer. Then they are reset.
//
// Listening sockets and the sockets of the namespace are made elsewhere (package
// monitor); they are plain TCP (no MPTCP), so splicing works on every one.
package portfwd
