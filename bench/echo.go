package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A request and its answer are echoSize bytes; the first byte of a request says what
// the server does after the answer.
const (
	echoSize  = 64
	echoKeep  = 'k' // it waits for another one
	echoClose = 'c' // it closes first, as a web server does: the TIME-WAIT is its own
)

// echoMost connections are served at a time; those beyond wait.
const echoMost = 4096

// patience of a client with an answer.
const patience = 5 * time.Second

func echoServer(b *bed, e ends, _ Cell) command {
	return command{b.generate(e.server, "echo-server", anyAddress(otherPort)), serving}
}

// serveEcho answers requests until the process is killed.
func serveEcho(addr string, out io.Writer) error {
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return fmt.Errorf("%w: %w", errGenerate, err)
	}
	defer l.Close()
	if err := announce(out); err != nil {
		return err
	}
	room := make(chan struct{}, echoMost)
	for {
		room <- struct{}{}
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("%w: %w", errGenerate, err)
		}
		go func() {
			defer func() { conn.Close(); <-room }()
			request := make([]byte, echoSize)
			for {
				if _, err := io.ReadFull(conn, request); err != nil {
					return // the client has gone
				}
				if _, err := conn.Write(request); err != nil || request[0] == echoClose {
					return
				}
			}
		}()
	}
}

// askers ask at the same time until the time is over, and count.
type askers struct {
	duration time.Duration

	mu     sync.Mutex // guards the following field
	result generated
}

// run lets so many ask. ask makes one request and returns the bytes that it moved.
func (a *askers) run(atOnce int, asker func() (ask func() (int, error), stop func(), err error)) *generated {
	begin := time.Now()
	end := begin.Add(a.duration)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			ask, stop, err := asker()
			if err != nil {
				a.count(0, 0, 1, err)
				return
			}
			defer stop()
			var done, bytes, failed uint64
			var first error
			for time.Now().Before(end) {
				n, err := ask()
				if err != nil {
					failed++
					first = errors.Join(first, err)
					if !errors.Is(err, os.ErrDeadlineExceeded) {
						break // it will not get better
					}
					if failed > maxFailures {
						break
					}
					continue
				}
				done++
				bytes += uint64(n)
			}
			a.count(done, bytes, failed, first)
		})
	}
	all.Wait()
	a.result.Seconds = time.Since(begin).Seconds()
	return &a.result
}

func (a *askers) count(done, bytes, failed uint64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.result.Count += done
	a.result.Bytes += bytes
	a.result.Failed += failed
	if err != nil && a.result.Error == "" {
		a.result.Error = err.Error()
	}
}
