// Package runtime is the rootless launcher: it makes a container out of an
// image, gives it a network, and stays in the foreground until it ends.
//
//	launcher (slipway run)                     stage (slipway stage), pid 1 of the container
//	  clone(NEWUSER|NEWNS|NEWPID|NEWNET|...) ──▶ waits
//	  newuidmap, newgidmap ──── mapped ────────▶ executes itself again: root of the user namespace
//	                                             executes itself again from a read-only copy
//	                       ◀── ready [TAP] ────
//	  starts the network's monitor
//	                       ──── start ─────────▶ root file system, pivot_root, /proc /sys /dev, sysctls
//	                       ◀── streams ──────── its pipes or its terminal; the other ends are the launcher's
//	                       ◀── exec ─────────── user, capabilities
//	                       ──── go ────────────▶ no_new_privs, seccomp, execve
//	  forwards signals, waits                    is the workload
//
// Invariants:
//   - Everything the container writes is memory of its own mount namespace;
//     nothing is left when it ends, however it ends.
//   - The stage is not dumpable from its mapping until it becomes the workload,
//     and runs from a copy of the binary that nobody can write: container root
//     may own the binary's file.
//   - Launcher killed: the kernel kills the container (PR_SET_PDEATHSIG), and
//     so does whoever guards it, the monitor or, without a network of ours, a
//     guard process; a workload may have switched the first one off by changing
//     its user. Monitor or guard killed: the launcher kills the container.
//     Workload gone: its pid namespace dies with it, and the launcher ends the
//     rest.
package runtime
