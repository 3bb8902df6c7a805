package monitor

import (
	"bytes"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

const (
	// maxOutput is how many writes to standard error may wait. Those of an engine have 32 KiB
	// at most, by os/exec.
	maxOutput = 256
	// flushTimeout is how long the end of a network waits for standard error.
	flushTimeout = time.Second
)

// output writes behind its caller. Standard error may be a terminal that was stopped by
// Ctrl-S, or a pipe that nobody reads: neither may hold up an engine that has something to
// say, nor the monitor that shall replace it. What cannot wait is dropped, and said.
type output struct {
	to    io.Writer
	queue chan func()
	lost  atomic.Uint64
	done  chan struct{} // closed when queue is closed and empty
}

func newOutput(to io.Writer) *output {
	o := &output{to: to, queue: make(chan func(), maxOutput), done: make(chan struct{})}
	go o.serve()
	return o
}

func (o *output) serve() {
	defer close(o.done)
	for write := range o.queue {
		write()
		if n := o.lost.Swap(0); n > 0 {
			fmt.Fprintf(o.to, "slipway: standard error is slow, %d writes to it were dropped\n", n)
		}
	}
}

// do calls write later. Nobody may call it after close.
func (o *output) do(write func()) {
	select {
	case o.queue <- write:
	default:
		o.lost.Add(1)
	}
}

// Write implements io.Writer. It never fails.
func (o *output) Write(b []byte) (int, error) {
	b = bytes.Clone(b)
	o.do(func() { _, _ = o.to.Write(b) })
	return len(b), nil
}

// close waits a moment for what is left.
func (o *output) close() {
	close(o.queue)
	select {
	case <-o.done:
	case <-time.After(flushTimeout):
	}
}
