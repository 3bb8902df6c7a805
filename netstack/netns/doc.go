// Package netns makes descriptors inside another user and network namespace, and
// sets up links, addresses, routes and policy rules there.
//
// A Go process cannot join a user namespace: setns(CLONE_NEWUSER) wants a single
// thread (setns(2)). It need not. A socket belongs for ever to the namespace in
// which it was made, and an open /dev/net/tun to the one in force when it was
// opened, so it is enough that somebody else makes the descriptors. Here that is
// a child of a raw clone(CLONE_FILES|SIGCHLD): it shares the descriptor table, so
// what it makes is there in the parent when it has gone.
//
// Invariants:
//
//   - The child runs one function that makes raw system calls and nothing else: no
//     Go runtime, no stack growth, no signal handler, no allocation.
//   - The child is non-dumpable before its first setns. A container's root that
//     sees its pid could otherwise take the parent's descriptors by pidfd_getfd.
//   - The child lives for a bounded time, and is always waited for.
//   - What comes back is checked before it is handed out; on any error every
//     descriptor that was made is closed.
//
// The namespace is joined with the caller's own credentials where that is allowed:
// root may open a /dev/net/tun of mode 0600, the root of a container may not.
// Only when that gives EPERM, as for an ordinary user, is the user namespace
// joined first.
package netns
