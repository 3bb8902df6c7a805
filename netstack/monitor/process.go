package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// The kinds of message between launcher and monitor, beside kindHello and
// kindReady.
const (
	kindConfig  = "config"  // launcher to monitor
	kindGuard   = "guard"   // launcher to monitor: a pidfd
	kindGuarded = "guarded" // monitor to launcher: it has the pidfd
	kindFailed  = "failed"  // monitor to launcher: its last message
)

// Bounds of messages between launcher and monitor.
const (
	maxConfigBody = 16 << 20 // bytes
	startLimit    = 90 * time.Second
	closeTimeout  = 5 * time.Second
)

// configBody is the body of kindConfig. Its descriptors are those of Files, in
// order.
type configBody struct {
	Config Config     `json:"config"`
	Files  []fileRole `json:"files"`
	Level  slog.Level `json:"level"`
}

// fileRole says which field of Config a descriptor is.
type fileRole string

const (
	fileUser     fileRole = "user"
	fileNet      fileRole = "net"
	fileDevice   fileRole = "device"
	fileWorkload fileRole = "workload"
)

// readyBody is the body of kindReady on the way to the launcher.
type readyBody struct {
	Ready Ready        `json:"ready"`
	Files []socketFile `json:"files,omitempty"`
}

// Process is a monitor that Start has started, as its launcher sees it.
type Process struct {
	cmd  *exec.Cmd
	conn *conn
	done chan struct{}

	mu     sync.Mutex // guards the following fields
	err    error
	files  []socketFile
	guards []chan error // who waits for kindGuarded, in order
	closed bool
}

// Start starts a monitor as a process of its own and returns when the first engine
// serves. The files of cfg stay the caller's and may be closed afterwards. An error
// is the monitor's own; nothing is left of it then.
//
// The monitor ends everything when this process ends, however it ends.
func Start(cfg Config) (*Process, Ready, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, Ready{}, err
	}
	socket := os.NewFile(uintptr(theirs), "monitor socket")
	conn, err := newConn(ours, maxConfigBody, 0)
	if err != nil {
		return nil, Ready{}, errors.Join(err, socket.Close())
	}
	p := &Process{conn: conn, done: make(chan struct{})}
	p.cmd = &exec.Cmd{
		Path: selfExe, Args: []string{"slipway", "monitor"}, Dir: "/", Env: environ(),
		Stderr: os.Stderr, ExtraFiles: []*os.File{socket},
		// A session of its own: the terminal's signals are the launcher's.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = p.cmd.Start()
	socket.Close()
	if err != nil {
		return nil, Ready{}, errors.Join(fmt.Errorf("start the monitor: %w", err), conn.close())
	}
	ready, err := p.handshake(cfg)
	if err != nil {
		conn.close()
		p.reap()
		return nil, Ready{}, err
	}
	go p.read()
	return p, ready, nil
}

// handshake gives the monitor its configuration and waits until it is ready.
func (p *Process) handshake(cfg Config) (Ready, error) {
	if err := p.conn.unix.SetReadDeadline(time.Now().Add(startLimit)); err != nil {
		return Ready{}, err
	}
	if _, err := p.expect(kindHello); err != nil {
		return Ready{}, err
	}
	if err := p.sendConfig(cfg); err != nil {
		return Ready{}, err
	}
	msg, err := p.expect(kindReady)
	if err != nil {
		return Ready{}, err
	}
	var body readyBody
	if err := msg.decode(&body); err != nil {
		return Ready{}, err
	}
	p.files = body.Files
	return body.Ready, p.conn.unix.SetReadDeadline(time.Time{})
}

func (p *Process) expect(kind string) (*message, error) {
	msg, err := p.conn.recv()
	if err != nil {
		return nil, fmt.Errorf("the monitor ended before it was ready: %w", err)
	}
	switch msg.kind {
	case kind:
		return msg, nil
	case kindFailed:
		return nil, msg.failure()
	}
	return nil, fmt.Errorf("%w: the monitor sent %q", errProtocol, msg.kind)
}

// failure is the error of a kindFailed message.
func (m *message) failure() error {
	var f failure
	if err := m.decode(&f); err != nil {
		return err
	}
	if err := f.err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: a failure without words", errProtocol)
}

func (p *Process) sendConfig(cfg Config) error {
	var err error
	if cfg.Listen, err = absolute(cfg.Listen); err != nil {
		return err
	}
	body := configBody{Config: cfg, Level: level(cfg.Log)}
	var fds []int
	for _, f := range []struct {
		role fileRole
		file *os.File
	}{{fileUser, cfg.Target.User}, {fileNet, cfg.Target.Net}, {fileDevice, cfg.Device}, {fileWorkload, cfg.Workload}} {
		if f.file != nil {
			body.Files = append(body.Files, f.role)
			fds = append(fds, int(f.file.Fd()))
		}
	}
	return p.conn.send(kindConfig, 0, body, fds)
}

// level is the lowest level that log shows; the monitor has a logger of its own.
func level(log *slog.Logger) slog.Level {
	if log != nil {
		for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
			if log.Enabled(context.Background(), l) {
				return l
			}
		}
	}
	return slog.LevelError
}

// read takes the monitor's messages until it has gone.
func (p *Process) read() {
	for {
		msg, err := p.conn.recv()
		if err != nil {
			break
		}
		p.mu.Lock()
		switch {
		case msg.kind == kindGuarded && len(p.guards) > 0:
			p.guards[0] <- nil
			p.guards = p.guards[1:]
		case msg.kind == kindFailed:
			p.err = msg.failure()
		}
		p.mu.Unlock()
	}
	p.conn.close()
	p.reap()
	p.mu.Lock()
	p.closed = true
	for _, g := range p.guards {
		g <- ErrGone
	}
	p.guards = nil
	p.mu.Unlock()
	close(p.done)
}

// reap waits for the process, which ends by itself when its socket is closed, and
// kills it when it does not.
func (p *Process) reap() {
	kill := time.AfterFunc(closeTimeout, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	_ = p.cmd.Wait() // how it ended is in its last message, or is a signal that nobody asks about
}

// PID is the monitor's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the monitor has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says why the monitor ended before Close: its own error, or nil when it was
// killed or is still there.
func (p *Process) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Guard hands over the pidfd of the workload, for the monitor to kill when this
// process ends. It returns when the monitor has it.
func (p *Process) Guard(pidfd *os.File) error {
	held := make(chan error, 1)
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return fmt.Errorf("guard the workload: %w", ErrGone)
	}
	p.guards = append(p.guards, held)
	// Under the lock, so that the answers come in the order of the requests.
	err := p.conn.send(kindGuard, 0, nil, []int{int(pidfd.Fd())})
	if err != nil {
		p.guards = p.guards[:len(p.guards)-1]
	}
	p.mu.Unlock()
	if err == nil {
		err = <-held
	}
	if err != nil {
		return fmt.Errorf("guard the workload: %w", err)
	}
	return nil
}

// Close ends the monitor, which kills the guarded workload, and waits until it has
// gone. It unlinks the sockets that a killed monitor left. It may be called again.
func (p *Process) Close() error {
	// Only the sending half: the reader still takes the monitor's last message. Errors
	// say that the reader has closed the socket, because the monitor has gone.
	_ = p.conn.unix.CloseWrite()
	_ = p.conn.unix.SetReadDeadline(time.Now().Add(closeTimeout))
	<-p.done
	for _, f := range p.files {
		f.unlink()
	}
	return nil
}
