package link

import "gvisor.dev/gvisor/pkg/buffer"

// maxLoans is how many large frames, 16 MiB in all, gVisor may hold before the next one
// is in a buffer of its own. 16 streams hold more than half as many.
const maxLoans = 256

// loans are the buffers of the receive loop, each of bigFrame bytes. gVisor gets clones
// of them, and once it has dropped its clone, the same memory is used again: the first that
// is free, so that as little as can be is in use, which the CPU's caches hold. A buffer
// that gVisor allocates is cleared first, which costs 6 % of all CPU time of a stream.
//
// There are as many as gVisor has held at a time, up to maxLoans.
type loans struct{ views []*buffer.View }

// next returns a buffer that nobody else looks at.
func (l *loans) next() *buffer.View {
	for _, v := range l.views {
		if !sharesChunk(v) {
			return v
		}
	}
	v := buffer.NewViewSize(bigFrame)
	if len(l.views) < maxLoans {
		l.views = append(l.views, v)
		return v
	}
	// What gVisor still holds stays its own: a new one takes its place.
	l.views[0].Release()
	l.views[0] = v
	return v
}

func (l *loans) release() {
	for _, v := range l.views {
		v.Release()
	}
}
