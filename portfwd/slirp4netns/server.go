package slirp4netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
)

// Config is what a Server needs.
type Config struct {
	Forwards Forwards
	// Guest and Guest6 are where a forward without an address of the guest goes; the
	// zero Addr: it has to name one.
	Guest, Guest6 netip.Addr
	// Peer says who may ask. nil: SameUser.
	Peer func(*net.UnixConn) error
	// Log takes lines as upstream writes them to stderr, in single writes that may be
	// concurrent. nil: none.
	Log io.Writer
	// Limits: zero values stand for DefaultLimits.
	Limits Limits
}

// Limits bound what clients can make a Server hold.
type Limits struct {
	// Conns are served at once. Others stay in the listener's queue.
	Conns int
	// Request is how long a client may take to send its request, and once more to
	// read the reply.
	Request time.Duration
	// Crowded is how long it may take to send its request while others wait.
	Crowded time.Duration
}

// DefaultLimits are far above what clients need: each sends a line and reads one.
var DefaultLimits = Limits{Conns: 64, Request: 10 * time.Second, Crowded: time.Second}

const (
	// A client that sends more than a request would lose the reply to ECONNRESET if
	// the connection were closed before it is read (unix_release_sock in
	// net/unix/af_unix.c), so that much more is read, for that long.
	drainBytes = 1 << 20
	drainTime  = time.Second
	// acceptPause lets others give back what accept(2) is short of.
	acceptPause = 100 * time.Millisecond
)

// Stats counts what a Server has met.
type Stats struct {
	Requests     uint64 // answered, well or badly
	Failed       uint64 // answered with an error
	Denied       uint64 // by Peer
	TimedOut     uint64 // without a whole request
	Waited       uint64 // for others to end
	AcceptErrors uint64
}

// Server answers the requests of the API socket, one a connection.
type Server struct {
	cfg Config

	mu     sync.Mutex                  // guards the following field
	asking map[*net.UnixConn]time.Time // clients that have not sent their request, and since when

	requests, failed, denied, timedOut, waited, acceptErrors atomic.Uint64
}

// NewServer returns a Server.
func NewServer(cfg Config) *Server {
	if cfg.Peer == nil {
		cfg.Peer = SameUser
	}
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	if cfg.Limits.Conns == 0 {
		cfg.Limits.Conns = DefaultLimits.Conns
	}
	if cfg.Limits.Request == 0 {
		cfg.Limits.Request = DefaultLimits.Request
	}
	if cfg.Limits.Crowded == 0 {
		cfg.Limits.Crowded = DefaultLimits.Crowded
	}
	return &Server{cfg: cfg, asking: make(map[*net.UnixConn]time.Time)}
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	return Stats{
		Requests: s.requests.Load(), Failed: s.failed.Load(), Denied: s.denied.Load(),
		TimedOut: s.timedOut.Load(), Waited: s.waited.Load(), AcceptErrors: s.acceptErrors.Load(),
	}
}

// Serve answers on l until ctx is done or l is closed, and closes it. No client
// outlives it.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer func() {
		if stop() {
			l.Close()
		}
	}()
	slots := make(chan struct{}, s.cfg.Limits.Conns)
	for {
		c, err := l.AcceptUnix()
		switch {
		case err == nil:
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return nil
		default: // EMFILE and its like: the client stays in the queue
			s.acceptErrors.Add(1)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			s.waited.Add(1)
			s.hurry()
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				c.Close()
				return nil
			}
		}
		clients.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, c)
		})
	}
}

// hurry leaves less time to those who have not sent their request.
func (s *Server) hurry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, since := range s.asking {
		_ = c.SetReadDeadline(since.Add(s.cfg.Limits.Crowded))
	}
}

// asks notes that c has not sent its request yet; the result ends that.
func (s *Server) asks(c *net.UnixConn) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking[c] = time.Now()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.asking, c)
	}
}

// past makes every wait on a connection end.
var past = time.Unix(1, 0)

// serve answers one client.
func (s *Server) serve(ctx context.Context, c *net.UnixConn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(s.cfg.Limits.Request))
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(past) })
	defer stop()

	answer, err := s.answer(ctx, c)
	late := errors.Is(err, os.ErrDeadlineExceeded)
	s.requests.Add(1)
	if err != nil {
		s.failed.Add(1)
		fmt.Fprintf(s.cfg.Log, "api_handler: %v\n", err)
		answer = refusal(err)
	}
	b, err := json.Marshal(answer)
	if err != nil { // no type among the replies can fail
		return
	}
	if !extend(ctx, c, s.cfg.Limits.Request) {
		return
	}
	if _, err := c.Write(b); err != nil {
		return // the client has left
	}
	_ = c.CloseWrite()
	if late {
		return // all that it has sent was read, and others want its place
	}
	if extend(ctx, c, drainTime) {
		_, _ = io.CopyN(io.Discard, c, drainBytes)
	}
}

// extend gives c more time, unless ctx is done.
func extend(ctx context.Context, c *net.UnixConn, d time.Duration) bool {
	_ = c.SetDeadline(time.Now().Add(d))
	// The other order would let a deadline of now+d overwrite that of the past.
	return ctx.Err() == nil
}

// answer reads a request and does what it says.
func (s *Server) answer(ctx context.Context, c *net.UnixConn) (any, error) {
	if err := s.cfg.Peer(c); err != nil {
		s.denied.Add(1)
		return nil, &badRequest{"permission denied", err}
	}
	done := s.asks(c)
	req, err := s.read(c)
	done()
	if err != nil {
		return nil, err
	}
	return s.handle(ctx, req)
}

// read returns as soon as one whole value is in, however many writes it took: not every
// client half-closes. At the end, or after too long, what there is counts.
func (s *Server) read(c *net.UnixConn) (object, error) {
	buf := make([]byte, 0, maxRequest)
	for {
		n, readErr := c.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if len(buf) == maxRequest {
			return nil, errTooLarge
		}
		if n > 0 {
			req, err := parse(buf)
			if !errors.Is(err, errIncomplete) {
				fmt.Fprintf(s.cfg.Log, "apifd event\napi_handler: got request: %s\n", strings.Map(oneLine, strings.TrimSpace(string(buf))))
				return req, err
			}
		}
		if readErr != nil {
			if errors.Is(readErr, os.ErrDeadlineExceeded) {
				s.timedOut.Add(1)
				return nil, &badRequest{unparsable, readErr}
			}
			return nil, errParse
		}
	}
}

// oneLine keeps what a client sends from looking like lines of the log.
func oneLine(r rune) rune {
	if unicode.IsControl(r) {
		return ' '
	}
	return r
}

// refusal is how the client hears of err.
func refusal(err error) failure {
	var f failure
	desc := err.Error()
	if b := (*badRequest)(nil); errors.As(err, &b) {
		desc = b.desc
	}
	f.Error.Desc = "bad request: " + desc
	return f
}
