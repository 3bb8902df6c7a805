package monitor

import (
	"io"
	"strings"
	"sync"
)

// maxWords bounds each end of what is kept of a process's standard error, in bytes.
const maxWords = 4 << 10

// lastWords passes a process's standard error on and keeps its beginning, where a
// panic says what it is, and its end.
type lastWords struct {
	to io.Writer

	mu   sync.Mutex // guards the following fields
	head []byte
	tail []byte
}

// Write never fails: a closed terminal must not end the process that writes.
func (w *lastWords) Write(b []byte) (int, error) {
	w.mu.Lock()
	if n := min(maxWords-len(w.head), len(b)); n > 0 {
		w.head = append(w.head, b[:n]...)
	}
	w.tail = append(w.tail, b[max(0, len(b)-maxWords):]...)
	w.tail = append(w.tail[:0], w.tail[max(0, len(w.tail)-maxWords):]...)
	w.mu.Unlock()
	_, _ = w.to.Write(b)
	return len(b), nil
}

// String is the line that says most: a panic's first, otherwise the last.
func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range strings.Lines(string(w.head)) {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return strings.TrimSpace(line)
		}
	}
	lines := strings.Split(strings.TrimSpace(string(w.tail)), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
