// Package streams joins the standard streams of a container's process to files
// outside of the container, which never reach it.
//
//	in the container                             outside
//	workload  0 ◀── pipe ◀───────────────────── Relay ◀── a file, socket or terminal
//	          1 ──▶ pipe ──────────────────────▶ Relay ──▶ a file, socket or terminal
//	          2 ──▶ pipe ──────────────────────▶ Relay ──▶ …
//
// Who starts the workload makes the pipes inside the container's user namespace
// ([Make]): a pipe belongs to the user who made it, and only where that user exists in
// the container the workload can open /dev/stdout by its name. The far ends travel up to
// the process that holds the files of the outside; that process runs one [Relay] for
// each, and decides what is at the other side: what its caller gave, or a log.
//
// Invariants:
//   - A file of the outside is neither changed (its O_NONBLOCK is shared with others) nor
//     closed, and nothing is read from it but what is moved into the pipe.
//   - Bytes keep their order. What the outside does not take stays in the pipe, so the
//     workload is held up, and nobody else.
//   - The end of one side is the end of the other: a reader that has gone is EPIPE and
//     SIGPIPE for the workload, the end of the input is the end of the workload's.
//   - A relay holds at most one buffer of bytes, beside what the pipe holds.
package streams
