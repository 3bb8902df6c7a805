package relay

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Turn is that of the goroutine that hands gVisor the guest's segments: what one of them
// brings, the same goroutine writes to the host when gVisor is done with it. Otherwise a
// small request would wait until the flow's own goroutine has woken, which takes as long
// as the request itself. The zero value is ready for use.
type Turn struct {
	mu   sync.Mutex     // guards the following fields
	ep   tcpip.Endpoint // whose turn it is
	flow *outbound      // of ep, once it was notified
}

// Begin says that gVisor gets segments of ep now.
func (t *Turn) Begin(ep tcpip.Endpoint) {
	t.mu.Lock()
	t.ep = ep
	t.mu.Unlock()
}

// End says that it is done with them. It never waits for host or guest.
func (t *Turn) End() {
	t.mu.Lock()
	o := t.flow
	t.ep, t.flow = nil, nil
	t.mu.Unlock()
	if o != nil {
		o.pump()
	}
}

// notes reports whether o will be pumped at the end of this turn.
func (t *Turn) notes(o *outbound) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ep == nil || t.ep != o.flow.ep {
		return false
	}
	t.flow = o
	return true
}
