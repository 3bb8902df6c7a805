// Package link is the gVisor link endpoint over a [tap.Device].
//
// Receiving is one goroutine: one read a frame of up to 64 KiB, the source guard
// (guard.go), the fast paths that need no TCP/IP stack (Handler), then gVisor.
// Frames reach gVisor in buffers sized to what they hold. A frame whose
// virtio-net header vouches for no checksum is verified here, because gVisor
// knows that trust only per link and not per frame.
//
// Sending is one writev a packet, with segmentation and checksum left to the
// kernel where the device has the offloads.
//
// Nothing that the guest sends ends the loop: what makes no sense is counted in
// Stats and dropped.
package link
