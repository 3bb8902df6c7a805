// Package confine takes away from a process what it does not need, for ever.
//
// Lock is for the engine, the process that parses what a container sends: it
// leaves it sockets of the families IPv4 and IPv6, the descriptors that it holds,
// threads and memory, and nothing else. The layers overlap on purpose:
//
//	capabilities   none, on every thread; the bounding set is emptied where that
//	               is permitted (CAP_SETPCAP: root, not an ordinary user, whose
//	               bounding set is of no use under no_new_privs)
//	no_new_privs   nothing that is executed could gain a privilege
//	Landlock       no path of the file system at all, no abstract unix socket and
//	               no signal to a process outside; best effort, as far as the
//	               kernel has it (Linux 5.13, scopes 6.12)
//	seccomp        an allow-list of system calls; everything else is EPERM
//
// The lock-down is inherited by children for ever, so it comes after everything
// that must not carry it exists. The default action is an error and not a kill,
// because the Go runtime probes: it opens files below /sys and /proc, and names
// its mappings by prctl.
//
// Root, Restrict and DenyCalls are for a monitor that has made its device, where its
// user asks for them: a root directory of its own, then no capability but
// CAP_NET_BIND_SERVICE and no file beyond that root, then a deny-list of system calls.
//
// Lock works on all threads of the process, by syscall.AllThreadsSyscall, which a
// program linked with cgo does not have: build with CGO_ENABLED=0.
package confine
