// Package bench measures the gap between a container's network and the host's own
// loopback: the same iperf3 stream over 127.0.0.1, through Slipway, and through
// whatever other user-mode network is installed, in one run, one after the other,
// again and again. A suite is a choice of rows: drivers, workloads, MTUs, streams.
//
// It drives programs as a user would and imports nothing else of Slipway, so that
// what it measures is what a user gets.
//
//	slipway bench            the process that the user started: checks, prints, writes
//	 └ bench inside          pid 1 of a new user, mount, pid, ipc and network namespace:
//	    │                    the "host" of every row; lo up, congestion control set
//	    ├ bench hold         one for each network under test: an empty container
//	    ├ slipway attach, slipway run, slirp4netns, pasta, gvproxy, rootlesskit
//	    ├ bench generate path  what is far away, for the rows with a delay
//	    └ iperf3, nginx, wrk, bench generate
//	                         server and client of the row that is being measured
//
// Invariants:
//   - Nothing outlives the run. The kernel kills the whole pid namespace with its pid 1,
//     which ends when the pipe from its parent closes or its parent dies.
//   - The whole run, the host's side included, uses one congestion control that does not
//     pace. BBR, the default of some machines, paces loopback and hides the differences,
//     and iperf3's own -C would not reach the sockets of the programs under test.
//   - Rows are interleaved (A B C A B C ...), so that a machine that slows down slows
//     all of them; the first round is a warm-up and is not counted.
//   - A row that fails says why and the others go on. A driver that died is started again
//     for them.
//   - A driver is what it says: its processes run the program that was started, one of them
//     holds the sockets of the connection, every connection of the run uses its congestion
//     control, and on a path over a device that accounts for the payload.
//   - [Report] holds every raw sample; every other output is rendered from it.
package bench
