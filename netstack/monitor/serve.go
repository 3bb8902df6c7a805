package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/confine"
)

// Serve is the process that Start has started; it returns when its work is done. An
// error that could not be told to the launcher is returned.
func Serve() error {
	if err := confine.NonDumpable(); err != nil {
		return err
	}
	// Standard error is the launcher's, and may be a pipe that nobody reads any more.
	signal.Ignore(unix.SIGPIPE)
	conn, err := newConn(socketFD, maxConfigBody, 8)
	if err != nil {
		return fmt.Errorf("monitor: %w", err)
	}
	s := &server{conn: conn}
	defer s.watching.Wait()
	defer s.close()
	err = s.serve()
	if err == nil || conn.send(kindFailed, 0, newFailure(err), nil) == nil {
		return nil
	}
	return fmt.Errorf("monitor: %w", err)
}

// server is the monitor's end of a launcher's connection.
type server struct {
	conn     *conn
	cfg      Config
	watching sync.WaitGroup

	mu       sync.Mutex // guards the following fields
	workload []int      // pidfds
}

func (s *server) serve() error {
	if err := s.receiveConfig(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.watching.Go(func() { s.watch(cancel) })
	return run(ctx, s.cfg, func(r Ready, files []socketFile) error {
		return s.conn.send(kindReady, 0, readyBody{r, files}, nil)
	})
}

func (s *server) receiveConfig() error {
	if err := s.conn.unix.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	if err := s.conn.send(kindHello, 0, nil, nil); err != nil {
		return err
	}
	msg, err := s.conn.recv()
	if err != nil {
		return fmt.Errorf("receive configuration: %w", err)
	}
	defer msg.closeFiles()
	if err := s.conn.unix.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	var body configBody
	if msg.kind != kindConfig {
		return fmt.Errorf("%w: got %q, want %q", errProtocol, msg.kind, kindConfig)
	}
	if err := msg.decode(&body); err != nil {
		return err
	}
	if len(body.Files) != len(msg.fds) {
		return fmt.Errorf("%w: %d files announced, %d came", errProtocol, len(body.Files), len(msg.fds))
	}
	s.cfg = body.Config
	s.cfg.Log = newLogger(body.Level)
	for i, role := range body.Files {
		switch role {
		case fileUser:
			s.cfg.Target.User = os.NewFile(uintptr(msg.take(i)), "user namespace")
		case fileNet:
			s.cfg.Target.Net = os.NewFile(uintptr(msg.take(i)), "network namespace")
		case fileDevice:
			s.cfg.Device = os.NewFile(uintptr(msg.take(i)), "tap:"+s.cfg.Link.Name)
		case fileWorkload:
			s.workload = append(s.workload, msg.take(i))
		default:
			return fmt.Errorf("%w: file %q", errProtocol, role)
		}
	}
	return nil
}

// newLogger writes to standard error, for a person: without the time.
func newLogger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// watch takes the launcher's messages until it has gone, and ends everything then.
func (s *server) watch(cancel context.CancelFunc) {
	defer cancel()
	for {
		msg, err := s.conn.recv()
		if err != nil {
			break
		}
		if msg.kind != kindGuard || len(msg.fds) != 1 {
			msg.closeFiles()
			s.cfg.Log.Error("the launcher sent what the monitor does not know", "kind", msg.kind)
			break
		}
		s.mu.Lock()
		s.workload = append(s.workload, msg.take(0))
		s.mu.Unlock()
		if err := s.conn.send(kindGuarded, 0, nil, nil); err != nil {
			break
		}
	}
	s.killWorkload()
}

// killWorkload kills what is guarded.
func (s *server) killWorkload() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fd := range s.workload {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			s.cfg.Log.Error("the workload cannot be killed", "error", err)
		}
	}
}

func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	closeAll(s.workload)
	s.workload = nil
	s.conn.close()
}
