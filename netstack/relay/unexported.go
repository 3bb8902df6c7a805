package relay

import (
	"fmt"
	"reflect"
	"sync"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// What gVisor does not export. Where it changes them, the program does not link, or ends
// before it does anything.

// receiveMemUsed is the memory in bytes of all segments that an endpoint has received and
// nobody has read: in its receive queue, out of order, and not looked at yet.
//
//go:linkname receiveMemUsed gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*Endpoint).receiveMemUsed
func receiveMemUsed(ep *tcp.Endpoint) int

// sendQueue is where an endpoint counts what it has to send.
var sendQueue = struct{ mutex, used uintptr }{
	mutex: offset[tcp.Endpoint]("sndQueueInfo", "sndQueueMu", "mu", "m", "m"),
	used:  offset[tcp.Endpoint]("sndQueueInfo", "TCPSndBufState", "SndBufUsed"),
}

// sendBufferUsed is how many bytes an endpoint has to send that were not acknowledged.
func sendBufferUsed(ep *tcp.Endpoint) int {
	mu := (*sync.Mutex)(unsafe.Add(unsafe.Pointer(ep), sendQueue.mutex))
	mu.Lock()
	defer mu.Unlock()
	return *(*int)(unsafe.Add(unsafe.Pointer(ep), sendQueue.used))
}

// offset is where a field of T begins, which the names lead to. It has to be a number or a
// mutex: nothing else is read.
func offset[T any](names ...string) uintptr {
	t := reflect.TypeFor[T]()
	var at uintptr
	for _, name := range names {
		field, ok := t.FieldByName(name)
		if !ok || len(field.Index) != 1 {
			panic(fmt.Sprintf("relay: %s has no field %s: gVisor has changed", t, name))
		}
		at += field.Offset
		t = field.Type
	}
	if t != reflect.TypeFor[int]() && t != reflect.TypeFor[sync.Mutex]() {
		panic(fmt.Sprintf("relay: %v is a %s: gVisor has changed", names, t))
	}
	return at
}
