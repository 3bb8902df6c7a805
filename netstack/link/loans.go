package link

import "gvisor.dev/gvisor/pkg/buffer"

// maxLoans is how many large frames gVisor may hold before a buffer that it still holds
// comes round again. What one flow's receive queue holds fits in.
const maxLoans = 64

// loans are the buffers of the receive loop, each of bigFrame bytes. gVisor gets clones
// of them, and by the time that a buffer's turn comes again it has usually dropped its
// clone: the same memory is used again and again. A buffer that gVisor allocates is
// cleared first, which costs 6 % of all CPU time of a stream.
//
// There are as many as large frames have come, up to maxLoans.
type loans struct {
	views [maxLoans]*buffer.View
	turn  int
}

// next returns a buffer that nobody else looks at. What gVisor still holds stays its own:
// a new one takes its place.
func (l *loans) next() *buffer.View {
	v := &l.views[l.turn]
	l.turn = (l.turn + 1) % maxLoans
	if *v != nil && sharesChunk(*v) {
		(*v).Release()
		*v = nil
	}
	if *v == nil {
		*v = buffer.NewViewSize(bigFrame)
	}
	return *v
}

func (l *loans) release() {
	for _, v := range l.views {
		if v != nil {
			v.Release()
		}
	}
}
