package runtime

import (
	"fmt"
	"io"
	"os"
)

// outputCopy copies what a workload prints into a pipe to what the caller gave.
type outputCopy struct {
	in, out *os.File
	done    chan struct{} // closed when the last writer has gone, or nobody takes it any more
}

func newOutputCopy(to *os.File) (*outputCopy, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	k := &outputCopy{in: w, out: r, done: make(chan struct{})}
	go func() {
		defer close(k.done)
		defer r.Close()
		_, _ = io.Copy(to, r)
	}()
	return k, nil
}

// close ends the copy where it waits for more.
func (k *outputCopy) close() { _ = k.out.Close() }
