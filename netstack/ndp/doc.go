// Package ndp is the router of the guest's IPv6 link: it advertises a prefix, from which
// the guest makes its address (RFC 4862), itself as the default route, and the resolver
// (RFC 8106). Neighbour discovery proper is the full stack's.
//
// # Invariants
//
//   - Input neither blocks nor keeps the frame.
//   - One goroutine sends. Solicitations that wait for it are bounded; what exceeds them is
//     counted and dropped, and asked again by the guest's kernel.
package ndp
