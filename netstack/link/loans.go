package link

import "gvisor.dev/gvisor/pkg/buffer"

// maxLoans is how many large frames, 16 MiB in all, gVisor may hold before the next one
// is in a buffer of its own. 16 streams hold more than half as many.
const maxLoans = 256

// loans are the buffers of the receive loop, each of bigFrame bytes. gVisor gets clones
// of them, and once it has dropped its clone, the same memory is used again. A buffer that
// gVisor allocates is cleared first, which costs 6 % of all CPU time of a stream.
//
// There are as many as gVisor has held at a time, up to maxLoans, and they stay.
type loans struct {
	views []*buffer.View
	turn  int // where the search for a free one begins
}

// next returns a buffer that nobody else looks at.
func (l *loans) next() *buffer.View {
	for range l.views {
		if v := l.pass(); !sharesChunk(*v) {
			return *v
		}
	}
	if len(l.views) < maxLoans {
		l.views = append(l.views, buffer.NewViewSize(bigFrame))
		return l.views[len(l.views)-1]
	}
	// What gVisor still holds stays its own: a new one takes its place. Each has its turn, so
	// that what is held for long leaves, and does not take the place of what comes back soon.
	v := l.pass()
	(*v).Release()
	*v = buffer.NewViewSize(bigFrame)
	return *v
}

// pass goes on to the next place, and returns this one.
func (l *loans) pass() **buffer.View {
	v := &l.views[l.turn]
	l.turn = (l.turn + 1) % len(l.views)
	return v
}

func (l *loans) release() {
	for _, v := range l.views {
		v.Release()
	}
}
