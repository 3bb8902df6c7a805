package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = 15 * time.Second // for a program to say that it is ready
	stopTimeout  = 3 * time.Second  // from SIGTERM to SIGKILL, where the program itself does not end
	sayTimeout   = 3 * time.Second  // for a program to say its version
	deathTimeout = time.Second      // from the close of a dying process's sockets to our hearing of its end
	outputDelay  = deathTimeout / 4 // for which its output is read after its end, where a descendant keeps that open
	tailSize     = 4 << 10          // bytes of a program's output that are kept for its error
)

// process is a running program with everything that it started in its process group.
type process struct {
	args   []string
	cmd    *exec.Cmd
	output *tail
	done   chan struct{} // closed when it has ended
	err    error         // why, valid after done
}

// launch starts a program. files become its descriptors 3 and up; watch is the text in
// its output that closes process.output.seen.
func launch(args []string, attr *syscall.SysProcAttr, watch string, files ...*os.File) (*process, error) {
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Setpgid = true
	p := &process{args: args, output: newTail(watch), done: make(chan struct{})}
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.SysProcAttr = attr
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.ExtraFiles = files
	// A descendant that keeps the output open must not keep us from hearing of the end.
	p.cmd.WaitDelay = outputDelay
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name(), err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// name of the program, also where nsenter(1) starts it.
func (p *process) name() string {
	args := p.args
	if i := slices.Index(args, "--"); filepath.Base(args[0]) == "nsenter" && i >= 0 && i+1 < len(args) {
		args = args[i+1:]
	}
	return filepath.Base(args[0])
}

// ended is nil while the program runs, and otherwise an error that holds its last words.
func (p *process) ended() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	status := "exit status 0"
	if p.err != nil {
		status = p.err.Error()
	}
	if words := p.output.last(); words != "" {
		status += ": " + words
	}
	return fmt.Errorf("%s ended: %s", p.name(), status)
}

// await waits until ready is closed; it is an error when the program ends first.
func (p *process) await(ctx context.Context, ready <-chan struct{}) error {
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case <-ready:
		return nil
	case <-p.done:
		return p.ended()
	case <-timeout.C:
		return fmt.Errorf("%s is not ready after %s: %s", p.name(), startTimeout, p.output.last())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop ends the program: SIGTERM, and SIGKILL for its process group when that is not enough.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-p.done:
	case <-timeout.C:
	}
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
	<-p.done
}

// readyPipe gives the descriptor on which a program says that it is ready by one byte,
// and the channel that is closed then. The caller closes the file after the start.
func readyPipe() (*os.File, <-chan struct{}, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("pipe for readiness: %w", err)
	}
	ready := make(chan struct{})
	go func() {
		defer r.Close()
		if n, _ := r.Read(make([]byte, 1)); n == 1 {
			close(ready)
		}
	}()
	return w, ready, nil
}

// output runs a short program to its end and returns what it printed.
func output(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = stopTimeout
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, lastWords(out))
	}
	return string(out), nil
}

// tail keeps the end of what is written to it and watches for a text.
type tail struct {
	watch []byte
	seen  chan struct{} // closed when watch was written

	mu    sync.Mutex // guards the following fields
	kept  []byte
	found bool
}

func newTail(watch string) *tail {
	return &tail{watch: []byte(watch), seen: make(chan struct{})}
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, b...)
	if !t.found && len(t.watch) > 0 && bytes.Contains(t.kept, t.watch) {
		t.found = true
		close(t.seen)
	}
	if extra := len(t.kept) - tailSize; extra > 0 {
		t.kept = append(t.kept[:0], t.kept[extra:]...)
	}
	return len(b), nil
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return lastWords(t.kept)
}

// lastWords is the end of a program's output on one line, for an error.
func lastWords(out []byte) string {
	const lines, width = 4, 400
	text := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(text) > lines {
		text = text[len(text)-lines:]
	}
	for i := range text {
		text[i] = strings.TrimSpace(text[i])
	}
	joined := strings.Join(text, "; ")
	if len(joined) > width {
		joined = "..." + joined[len(joined)-width:]
	}
	return joined
}

// until is closed once met says so, for what nothing announces; after startTimeout nobody
// asks any more.
func until(ctx context.Context, met func() bool) <-chan struct{} {
	ready := make(chan struct{})
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	go func() {
		defer cancel()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for !met() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		close(ready)
	}()
	return ready
}
