package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/netns"
)

// selfExe is this program, whatever has become of the file it was started from.
const selfExe = "/proc/self/exe"

// stopTimeout is how long an engine may take to end by itself when its socket is
// closed.
const stopTimeout = 500 * time.Millisecond

// The kinds of message between engine and monitor.
const (
	kindHello     = "hello"     // both ways up: the sender is non-dumpable
	kindStart     = "start"     // monitor to engine
	kindReady     = "ready"     // engine to monitor, monitor to launcher
	kindSockets   = "sockets"   // request and reply
	kindResolvers = "resolvers" // request and reply
	kindListen    = "listen"    // request and reply
	kindUnlisten  = "unlisten"  // request and reply
	kindStatus    = "status"    // request and reply
)

// startBody is the body of kindStart. Its descriptors are the device, then the
// listeners, then the sockets of the forwards.
type startBody struct {
	Config   json.RawMessage `json:"config"`
	Name     string          `json:"name"`
	Offload  uint32          `json:"offload"`
	MAC      []byte          `json:"mac"`
	Kernel   bool            `json:"kernel"`
	Restarts int             `json:"restarts"`
	Groups   []int           `json:"groups"` // how many listeners each group has

	Container string `json:"container"`
	Namespace uint64 `json:"namespace"`

	Forwards []forwardBody `json:"forwards,omitempty"`
}

type socketsRequest struct {
	Family int `json:"family"`
	N      int `json:"n"`
}

type socketsReply struct {
	Failure failure `json:"failure"`
}

type resolversReply struct {
	Failure   failure          `json:"failure"`
	Resolvers []netip.AddrPort `json:"resolvers,omitempty"`
}

// engine is one engine process.
type engine struct {
	cmd    *exec.Cmd
	conn   *conn
	words  *lastWords
	ready  chan struct{} // closed when the engine says so
	talked chan struct{} // closed when the request loop has ended
	exited chan struct{} // closed when the process has ended
	kill   chan struct{} // gets a value when it does not end by itself

	talkErr error // why the request loop ended, set before talked is closed
	state   error // why the process ended, set before exited is closed
}

// maxRequest bounds the body of an engine's request in bytes.
const maxRequest = 4 << 10

func (m *monitor) startEngine(restarts int) (*engine, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(theirs), "engine socket")
	defer socket.Close()
	c, err := newConn(ours, maxRequest, 0)
	if err != nil {
		return nil, err
	}
	e := &engine{
		conn: c, words: &lastWords{to: m.output},
		ready: make(chan struct{}), talked: make(chan struct{}), exited: make(chan struct{}), kill: make(chan struct{}, 1),
	}
	e.cmd = &exec.Cmd{
		Path: m.program, Args: []string{"slipway", "engine"}, Dir: "/", Env: environ(),
		Stdin: m.null, Stdout: m.null, Stderr: e.words, ExtraFiles: []*os.File{socket},
		// A process group of its own: what a terminal's Ctrl-C does is the monitor's to
		// decide.
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true},
		WaitDelay:   time.Second,
	}
	started := make(chan error)
	go e.live(started)
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start the engine: %w", err), c.close())
	}
	go func() {
		defer close(e.talked)
		e.talkErr = m.talk(e, restarts)
	}()
	return e, nil
}

// live starts the process and kills it, all on one thread, until it has ended. The
// parent-death signal is sent when the thread that forked has gone (prctl(2)). And where
// confine.Restrict was, each thread has a Landlock domain of its own, and may send signals
// only to a process that it has started itself (LANDLOCK_SCOPE_SIGNAL in landlock(7)).
func (e *engine) live(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := e.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	go func() {
		if e.state = e.cmd.Wait(); e.state == nil {
			e.state = errors.New("exit status 0")
		}
		close(e.exited)
	}()
	select {
	case <-e.exited:
	case <-e.kill:
		_ = e.cmd.Process.Kill() // an error says that it has ended
		<-e.exited
	}
}

// stop ends the process and the request loop, and waits for both. It may be called
// again.
func (e *engine) stop() {
	e.conn.close()
	defer time.AfterFunc(stopTimeout, func() {
		select {
		case e.kill <- struct{}{}:
		default: // it was sent before
		}
	}).Stop()
	<-e.exited
	<-e.talked
}

// obituary is why the engine ended, with what it said last.
func (e *engine) obituary(cause error) error {
	if cause == nil || errors.Is(cause, io.EOF) || errors.Is(cause, unix.ECONNRESET) || errors.Is(cause, unix.EPIPE) {
		cause = e.state
	}
	if w := e.words.String(); w != "" {
		return fmt.Errorf("%w: %s", cause, w)
	}
	return cause
}

// talk answers the engine until it is gone. The engine may be in the hands of an
// attacker: a wrong word ends it.
func (m *monitor) talk(e *engine, restarts int) error {
	hello, ready := false, false
	for {
		msg, err := e.conn.recv()
		if err != nil {
			return err
		}
		switch {
		case msg.kind == kindHello && !hello:
			hello = true
			err = m.sendStart(e, restarts)
		case msg.kind == kindReady && hello && !ready:
			ready = true
			close(e.ready)
		case msg.kind == kindSockets && hello:
			err = m.replySockets(e, msg)
		case msg.kind == kindResolvers && hello:
			err = m.replyResolvers(e, msg)
		case msg.kind == kindListen && hello:
			err = m.replyListen(e, msg)
		case msg.kind == kindUnlisten && hello:
			err = m.replyUnlisten(e, msg)
		case msg.kind == kindStatus && hello:
			err = m.replyStatus(e, msg)
		default:
			err = fmt.Errorf("%w: the engine sent %q", errProtocol, msg.kind)
		}
		if err != nil {
			return err
		}
	}
}

func (m *monitor) sendStart(e *engine, restarts int) error {
	fds, sizes := m.listeners.flat()
	asked, more := m.forwards.bodies()
	fds = append(fds, more...)
	return e.conn.send(kindStart, 0, startBody{
		Config: m.cfg.Engine, Name: m.cfg.Link.Name, Offload: uint32(m.result.Offload), MAC: m.mac,
		Kernel: m.result.Kernel, Restarts: restarts, Groups: sizes,
		Container: m.cfg.Container, Namespace: m.namespace(),
		Forwards: asked,
	}, append([]int{m.device}, fds...))
}

func (m *monitor) replySockets(e *engine, msg *message) error {
	var req socketsRequest
	if err := msg.decode(&req); err != nil {
		return err
	}
	if !m.result.Kernel || req.Family != unix.AF_INET && req.Family != unix.AF_INET6 || req.N < 1 || req.N > netns.MaxSockets {
		return fmt.Errorf("%w: %d sockets of family %d asked for", errProtocol, req.N, req.Family)
	}
	files, err := m.cfg.Target.Sockets(req.Family, req.N)
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	err = e.conn.send(kindSockets, msg.id, socketsReply{newFailure(err)}, fds)
	for _, f := range files {
		f.Close()
	}
	if errors.Is(err, errUnsent) {
		return e.conn.send(kindSockets, msg.id, socketsReply{newFailure(err)}, nil)
	}
	return err
}

func (m *monitor) replyResolvers(e *engine, msg *message) error {
	list, err := m.resolvers.current()
	return e.conn.send(kindResolvers, msg.id, resolversReply{newFailure(err), list}, nil)
}

// environ is the environment of monitor and engine: what steers the Go runtime, and
// none of the user's secrets.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return !strings.HasPrefix(kv, "GO") && !strings.HasPrefix(kv, "TZ=")
	})
}
