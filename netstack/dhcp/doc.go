// Package dhcp gives the guest its addresses: a DHCPv4 server (RFC 2131) with a small
// pool, and a DHCPv6 server without one (RFC 8415 section 18.2.6), which only tells of the
// resolver; the IPv6 addresses themselves come from router advertisements.
//
// # Invariants
//
//   - Input neither blocks nor keeps the frame.
//   - There are never more than [Leases] leases, one for each Ethernet address, and no other
//     state. What a guest without an address gets is never longer than what every host must
//     be able to receive, 576 bytes.
//   - There is no other server on this link, so a client whose lease is not known here (the
//     server is younger than the lease) gets what it asks for when that is free, and a
//     refusal when it is not.
package dhcp
