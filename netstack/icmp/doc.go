// Package icmp relays the guest's echo requests by ping sockets, the kernel's
// unprivileged ICMP sockets (icmp(7): net.ipv4.ping_group_range says who may have them).
//
// A session is one address and echo id of the guest and one destination. It has a socket of its own, since
// the kernel puts the socket's number in the place of the id; in replies and in the
// quotes of ICMP errors the guest's id is put back. The guest's TTL goes on less one, errors
// come back from whoever sent them, and so ping and traceroute work.
//
// # Invariants
//
//   - Input never blocks and does not keep the frame.
//   - A reply is taken only from the address that the session sends to.
//   - Sessions and requests a second are bounded; what exceeds them is counted and dropped.
//   - Each session has one goroutine, which ends with it; Close ends all of them.
package icmp
