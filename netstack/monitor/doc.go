// Package monitor is the privileged half of a network. It holds what must survive
// the engine, the process that parses what the container sends and may therefore
// die: the TAP device, the listening sockets, the way into the container's
// namespaces. It never reads a byte of the guest.
//
//	launcher ──fd 3── monitor ──fd 3── engine
//
// Start, Process and Serve are the two ends of the left connection, Client and the
// monitor's request loop those of the right one. Where there is no launcher, Run is
// the monitor in the foreground. Both connections are SEQPACKET socket pairs: one
// JSON object a packet, descriptors beside it (SCM_RIGHTS, unix(7)).
//
// Invariants:
//
//   - Every listener is bound before anything else happens, so a port in use fails
//     before a process, a device or a namespace has been touched.
//   - Monitor and engine are non-dumpable before they get the first descriptor.
//   - The engine is not trusted: what it may ask is short, carries no descriptors,
//     and a wrong word ends it.
//   - An engine that dies is replaced, at once the first time and with a growing
//     delay afterwards; one that never gets ready five times in a row is an error.
//   - The end of the launcher is the end of all: its socket's end of file makes the
//     monitor kill the guarded workload, end the engine, unlink its sockets and go.
//     The end of the monitor is the end of the engine: parent-death signal, and end
//     of file.
//   - Descriptors that the monitor only keeps are plain numbers outside of the
//     runtime's poller, which would wake it for each packet and connection.
package monitor
