// Package netstack is the network of one guest: a gVisor TCP/IP stack behind a TAP
// whose other end is in the guest's network namespace.
//
// The way of a byte, outwards:
//
//	guest's kernel → TAP → link (receive loop, guard)
//	    ├ DHCP, router solicitations → dhcp, ndp → answer
//	    ├ UDP      → udp (NAT table)     → host socket
//	    ├ echo     → icmp (ping socket)  → host
//	    └ the rest → gVisor TCP → tcp.go (policy, dial first, then accept)
//	                            → relay (endpoint ⇄ host socket)
//
// A destination is decided in one place, [Policy.Route], and exactly the address
// that it returns is dialled. Names are resolved by the host's resolvers (dns).
// Nothing here knows how the TAP came to be, or who else is on the host.
package netstack
