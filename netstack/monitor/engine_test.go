package monitor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/monitor"
	"slipway/netstack/netns/nstest"
)

func TestEngineKilled(t *testing.T) {
	tun := nstest.TUN(t)
	target := nstest.New(t).Target(t)
	r := start(t, config(target, tun, engineConfig{Mode: "locked"}, tcp(loopback)))
	address := r.ready.Bound[0][0].String()
	pid := r.ready.EnginePID
	for restarts := 1; restarts <= 2; restarts++ {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		eventually(t, 5*time.Second, "the killed engine to go", func() bool { return !alive(pid) })
		// The listener is the same: a client that comes in between waits in its queue.
		s, err := talk("tcp", address, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(killed); took > time.Second {
			t.Errorf("served again after %v, want 1 s at most", took)
		}
		if s.restarts != restarts || s.pid == pid {
			t.Errorf("engine %d after %d, %d restarts; want another one, %d", s.pid, pid, s.restarts, restarts)
		}
		if got := s.ask(t, "sockets 2"); got != "2 <nil>" {
			t.Errorf("sockets: %s", got)
		}
		pid = s.pid
		s.Close()
	}
}

// However an engine ends, the next one comes, and the log says why.
func TestEngineEnds(t *testing.T) {
	tun := nstest.TUN(t)
	tests := []struct{ name, verb, log string }{
		{"exit", "exit", "exit status 1"},
		{"panic", "panic", "panic: on demand"},
		{"protocol", "rude", "protocol error"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(nstest.New(t).Target(t), tun, engineConfig{Mode: "serve"}, tcp(loopback))
			var log syncBuffer
			cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
			r := start(t, cfg)
			address := r.ready.Bound[0][0].String()
			s, err := talk("tcp", address, 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(s, tt.verb)
			eventually(t, 5*time.Second, "the engine to go", func() bool { return !alive(s.pid) })
			s.Close()
			next, err := talk("tcp", address, 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			next.Close()
			if next.restarts != 1 {
				t.Errorf("%d restarts, want 1", next.restarts)
			}
			if !strings.Contains(log.String(), tt.log) {
				t.Errorf("the log does not say %q: %s", tt.log, log.String())
			}
		})
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// An engine that cannot start is an error, not a loop.
func TestEngineNeverReady(t *testing.T) {
	tun := nstest.TUN(t)
	tests := []struct{ mode, want string }{
		{"exit", "no such option: --frob"},
		{"panic", "panic: broken invariant"},
		{"thief", "protocol error"},
	}
	for _, tt := range tests {
		t.Run(tt.mode, func(t *testing.T) {
			cfg := config(nstest.New(t).Target(t), tun, engineConfig{Mode: tt.mode}, tcp(loopback))
			cfg.PublishPath = monitor.PathTAP
			err := monitor.Run(context.Background(), cfg, func(monitor.Ready) error {
				t.Error("ready was called")
				return nil
			})
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "tried 5 times") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if tt.mode != "exit" {
				return
			}
			_, _, err = monitor.Start(cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Start: got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestReadyError(t *testing.T) {
	want := errors.New("nobody reads the ready descriptor")
	err := monitor.Run(context.Background(), config(nstest.New(t).Target(t), nstest.TUN(t), engineConfig{Mode: "serve"}),
		func(monitor.Ready) error { return want })
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}
