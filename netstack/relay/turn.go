package relay

import (
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// rushOf requests are worth a look at how fast they come.
const rushOf = 256

// Turn is that of the goroutine that hands gVisor the guest's segments: what one of them
// brings, the same goroutine writes to the host when gVisor is done with it. Otherwise a
// small request would wait until the flow's own goroutine has woken, which takes as long
// as the request itself. The zero value is ready for use.
type Turn struct {
	// Requests is how many turns had something to write.
	Requests atomic.Uint64
	// Rush gets a value for every rushOf of them, unless one lies there; nil: nobody listens.
	Rush chan struct{}

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
	if o == nil {
		return
	}
	o.pump()
	if t.Requests.Add(1)%rushOf == 0 {
		select {
		case t.Rush <- struct{}{}:
		default:
		}
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
