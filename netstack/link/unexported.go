package link

import (
	_ "unsafe" // for linkname

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// What gVisor does not export. Where it changes them, the program does not link.

// handleConnected and handleConnecting are what gVisor's processors, a goroutine for each
// CPU, call for an endpoint that has segments in its queue (transport/tcp/dispatcher.go).
//
//go:linkname handleConnected gvisor.dev/gvisor/pkg/tcpip/transport/tcp.handleConnected
func handleConnected(ep *tcp.Endpoint)

//go:linkname handleConnecting gvisor.dev/gvisor/pkg/tcpip/transport/tcp.handleConnecting
func handleConnecting(ep *tcp.Endpoint)

// sharesChunk reports whether another view has the memory of v, too.
//
//go:linkname sharesChunk gvisor.dev/gvisor/pkg/buffer.(*View).sharesChunk
func sharesChunk(v *buffer.View) bool
