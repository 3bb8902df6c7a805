// Package relay joins two TCP connections until both have ended: a gVisor
// endpoint and a host socket (Run), or a client of a published port and a socket made
// in the guest's namespace (Splicer).
//
// Both pass on what TCP says: a FIN as a FIN, so that each direction ends on its
// own; a reset as a reset; and back-pressure, because nothing is read that the
// other side does not take.
package relay
