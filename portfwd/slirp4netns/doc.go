// Package slirp4netns is the face of the drop-in for slirp4netns: its command line
// (Program, Options) and its API socket (Server). It changes nothing in any
// namespace and forwards no port; what it reads is handed to the caller.
//
// What clients can see is slirp4netns 1.3's: options, warnings, messages, the stream
// that each goes to, exit statuses, requests and replies. RootlessKit, Podman,
// Buildah and Docker parse all of these. Where 1.3 has a bug that no client can
// want, the bug is gone; the place says so.
package slirp4netns
