package relay

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// lingerTime is how long the guest may take for what is left to be sent to it after both
// sides have closed. gVisor itself would wait as long as the guest answers that its window
// is closed; Linux bounds the same by tcp_orphan_retries (tcp(7)). It is also how long one
// side may leave untaken what the other one sent before it reset the connection. A variable
// for the tests.
var lingerTime = time.Minute

// lingering is an endpoint after its flow.
type lingering struct {
	entry waiter.Entry
	timer *time.Timer
	once  sync.Once
	gone  func()
}

// linger closes ep, and calls gone once all that was sent has arrived, or was given up.
func linger(ep tcpip.Endpoint, queue *waiter.Queue, gone func()) {
	l := &lingering{gone: gone}
	l.timer = time.AfterFunc(lingerTime, ep.Abort)
	// It stays registered: the queue ends with the endpoint.
	l.entry.Init(l, waiter.EventHUp)
	queue.EventRegister(&l.entry)
	ep.Close()
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateClose, tcp.StateError:
		l.end()
	}
}

// NotifyEvent implements waiter.EventListener.
func (l *lingering) NotifyEvent(waiter.EventMask) { l.end() }

func (l *lingering) end() {
	l.once.Do(func() {
		l.timer.Stop()
		l.gone()
	})
}
