package relay

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxPipes bounds the pipes of the process. Beyond 1,024 pipes of 16 pages a user
	// is over /proc/sys/fs/pipe-user-pages-soft (pipe(7)) and gets pipes of one or two pages.
	maxPipes = 128
	// pipeBytes is what a pipe is asked to hold, so that a burst takes few splices: all
	// pipes together are half of that limit, which is 16,384 pages by default. A user
	// over it is refused and keeps the default of 64 KiB. With 128 KiB a stream takes a
	// third more CPU time, with 1 MiB as much.
	pipeBytes = 256 << 10
	// copyBytes is the buffer of the copying path, which serves small messages, the
	// first bytes of every burst, and everything while no pipe is to be had.
	copyBytes = 64 << 10
	// unsentBytes bounds what waits in a socket's send queue (TCP_NOTSENT_LOWAT in tcp(7)),
	// as tcp_wmem does by default; but that one is the container's to raise in its namespace.
	unsentBytes = 4 << 20
	// bulkBytes moved at once make the next attempt a splice; less make it a copy.
	bulkBytes = 16 << 10
	// stallCheck is how often a leg that cannot write looks whether its source was reset
	// meanwhile. Nobody reads from the source then, so no event tells.
	stallCheck = 5 * time.Second
)

// Keepalive of both legs: a NAT on the way keeps the flow, and a peer that is
// gone is noticed after 60 s + 4 × 30 s.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 30 * time.Second, Count: 4}

// longAgo is a deadline that wakes whoever waits on a connection.
var longAgo = time.Unix(1, 0)

// Counts is what one Splice moved, in bytes.
type Counts struct {
	FromGuest, ToGuest uint64
	Spliced            uint64 // of both, what never was copied into this process
}

// Splice relays between client, a connection of the host, and guest, one made in
// the guest's namespace, until both directions have ended, and returns with both
// closed. The end of one direction is passed on as a half close, and the other
// keeps running; a reset of one side resets the other. Bytes are counted in live
// as they are delivered (nil: nobody asks).
//
// An idle connection holds neither pipe nor buffer (two goroutines are all), a
// small message is copied, and a burst is moved by splice(2). Urgent data is
// relayed inline, as ordinary bytes.
//
// The error is nil after two clean ends. It wraps net.ErrClosed when somebody
// else closed one of the connections, and otherwise the errno that ended the relay.
func Splice(client, guest *net.TCPConn, live *Bytes) (Counts, error) {
	if live == nil {
		live = new(Bytes)
	}
	s := &splicing{a: client, b: guest}
	to, err := s.leg(client, guest, &live.ToGuest)
	if err != nil {
		return Counts{}, s.refuse(err)
	}
	from, err := s.leg(guest, client, &live.FromGuest)
	if err != nil {
		return Counts{}, s.refuse(err)
	}
	to.back, from.back = from, to
	done := make(chan struct{})
	go func() {
		defer close(done)
		from.run()
	}()
	to.run()
	<-done
	s.finish()
	return Counts{FromGuest: from.moved, ToGuest: to.moved, Spliced: to.spliced + from.spliced}, s.err
}

// Reset closes c with a RST, so that its peer does not take a cut stream for a whole one.
func Reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // fails only on a closed connection, as does Close
	_ = c.Close()
}

// splicing is one relayed pair.
type splicing struct {
	a, b  *net.TCPConn
	ended atomic.Int32 // directions that are over

	once sync.Once
	err  error // why the pair has to be reset; set once, read after both legs returned
}

func (s *splicing) fail(err error) { s.once.Do(func() { s.err = err }) }

// abort resets both sides, which ends the other leg too.
func (s *splicing) abort(err error) {
	s.fail(err)
	Reset(s.a)
	Reset(s.b)
}

// end counts one direction as over; the second one releases who watches.
func (s *splicing) end() {
	if s.ended.Add(1) == 2 {
		_ = s.a.SetReadDeadline(longAgo)
		_ = s.b.SetReadDeadline(longAgo)
	}
}

// refuse ends a pair that never ran.
func (s *splicing) refuse(err error) error {
	s.abort(err)
	return err
}

func (s *splicing) finish() {
	if s.err != nil {
		Reset(s.a)
		Reset(s.b)
		return
	}
	_ = s.a.Close()
	_ = s.b.Close()
}

// leg prepares the direction from src to dst, and src for both.
func (s *splicing) leg(src, dst *net.TCPConn, live *atomic.Uint64) (*spliceLeg, error) {
	l := &spliceLeg{pair: s, src: src, dst: dst, live: live}
	var err error
	if l.in, err = src.SyscallConn(); err != nil {
		return nil, fmt.Errorf("splice: %w", err)
	}
	if l.out, err = dst.SyscallConn(); err != nil {
		return nil, fmt.Errorf("splice: %w", err)
	}
	// The first write finds the deadline past and sets the first stallCheck.
	_ = dst.SetWriteDeadline(longAgo)
	// Best effort: a connection works without, and one that is already reset says so when read.
	_ = src.SetNoDelay(true)
	_ = src.SetKeepAliveConfig(keepAlive)
	_ = l.in.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
	})
	return l, nil
}

// spliceLeg is one direction. Everything but pair belongs to the goroutine of run.
type spliceLeg struct {
	pair     *splicing
	src, dst *net.TCPConn
	in, out  syscall.RawConn
	live     *atomic.Uint64
	back     *spliceLeg  // the other direction
	finSent  atomic.Bool // src's FIN goes to dst

	bulk           bool // the last piece was large: splice the next
	moved, spliced uint64

	// What fill has taken from src and drain has not yet given to dst.
	pipe *splicePipe
	buf  *[copyBytes]byte
	off  int // into buf
	n    int // bytes left in pipe or buf
	eof  bool
	err  error // of the last system call

	stalled bool // dst has taken nothing since drain began to wait
}

// writeError is a failure of the side that is written to.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

func (l *spliceLeg) run() {
	err := l.pump()
	l.drop()
	var w *writeError
	switch {
	case err == nil:
		l.pair.end()
		if err := l.watch(); err != nil {
			l.pair.abort(err)
		}
	case errors.As(err, &w):
		// dst is dead, but what it said before (an early answer, then close) may still lie
		// unread: the other leg delivers that and then meets the end itself.
		l.pair.fail(err)
		l.pair.end()
	default:
		l.pair.abort(err)
	}
}

// pump moves bytes until src ends (nil, dst is half closed then) or something fails.
func (l *spliceLeg) pump() error {
	fill, drain := l.fill, l.drain // method values allocate: once a leg, not once a piece
	for {
		if err := l.in.Read(fill); err != nil {
			return fmt.Errorf("splice: read: %w", err)
		}
		if l.err != nil {
			return fmt.Errorf("splice: read: %w", l.err)
		}
		if l.eof {
			if resetUnseen(l.in, &l.back.finSent) {
				return fmt.Errorf("splice: read: %w", unix.ECONNRESET)
			}
			l.finSent.Store(true)
			if err := l.dst.CloseWrite(); err != nil {
				return &writeError{fmt.Errorf("splice: half close: %w", err)}
			}
			return nil
		}
		for l.n > 0 {
			switch err := l.out.Write(drain); {
			case errors.Is(err, os.ErrDeadlineExceeded):
				if l.stalled { // and not a deadline that ran out while nothing was written
					if err := pendingError(l.in); err != nil {
						return fmt.Errorf("splice: read: %w", err)
					}
				}
				l.stalled = false
				if err := l.dst.SetWriteDeadline(time.Now().Add(stallCheck)); err != nil {
					return fmt.Errorf("splice: write: %w", err)
				}
			case err != nil:
				return fmt.Errorf("splice: write: %w", err)
			case l.err != nil:
				return &writeError{fmt.Errorf("splice: write: %w", l.err)}
			}
		}
		l.release()
	}
}

// fill takes one piece from src: true with n, eof or err set, false to wait for
// more. Nothing is held while waiting.
func (l *spliceLeg) fill(fd uintptr) bool {
	l.err = nil
	if l.bulk {
		if l.pipe = takePipe(); l.pipe != nil {
			n, err := retry(func() (int, error) { return splice(int(fd), l.pipe.w, pipeBytes) })
			if n > 0 {
				l.n, l.bulk = n, n >= bulkBytes
				return true
			}
			l.release()
			if err != nil && !errors.Is(err, unix.EAGAIN) {
				l.err = err
				return true
			}
			// Not yet the end, nor "nothing there": a splice stops before an urgent byte
			// (tcp_read_sock in net/ipv4/tcp.c) and says EAGAIN for ever, a read goes on.
		}
	}
	l.buf, l.off = copyBuffers.Get().(*[copyBytes]byte), 0
	n, err := retry(func() (int, error) { return unix.Read(int(fd), l.buf[:]) })
	switch {
	case n > 0:
		l.n, l.bulk = n, n >= bulkBytes
		return true
	case errors.Is(err, unix.EAGAIN):
		l.release()
		return false
	case err != nil:
		l.err = err
	default:
		l.eof = true
	}
	l.release()
	return true
}

// drain gives dst what it takes of the piece: true when all is gone or err is
// set, false to wait for room.
func (l *spliceLeg) drain(fd uintptr) bool {
	l.err = nil
	for l.n > 0 {
		n, err := retry(func() (int, error) {
			if l.pipe == nil {
				return unix.Write(int(fd), l.buf[l.off:l.off+l.n])
			}
			return splice(l.pipe.r, int(fd), l.n)
		})
		switch {
		case errors.Is(err, unix.EAGAIN):
			l.stalled = true
			return false
		case err != nil:
			l.err = err
			return true
		case n <= 0:
			l.err = unix.EPIPE // cannot be: there are bytes to take and no error
			return true
		}
		l.stalled = false
		l.n -= n
		l.off += n
		l.moved += uint64(n)
		if l.pipe != nil {
			l.spliced += uint64(n)
		}
		l.live.Add(uint64(n))
	}
	return true
}

// watch waits, src having ended its direction, until the other direction is over
// too (nil) or src is reset: its peer has gone while an answer was awaited.
func (l *spliceLeg) watch() error {
	var reset error
	err := l.in.Read(func(fd uintptr) bool {
		reset = socketError(fd)
		return reset != nil
	})
	switch {
	case reset != nil:
		return fmt.Errorf("splice: read: %w", reset)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil // from end
	}
	return fmt.Errorf("splice: read: %w", err)
}

// release gives back the holder of a piece that is wholly delivered.
func (l *spliceLeg) release() {
	if l.pipe != nil {
		pipes.Put(l.pipe)
		l.pipe = nil
	}
	if l.buf != nil {
		copyBuffers.Put(l.buf)
		l.buf = nil
	}
}

// drop is release for a leg that ended with bytes undelivered: they must not
// turn up in the next connection that takes the pipe.
func (l *spliceLeg) drop() {
	if l.pipe != nil && l.n > 0 {
		runtime.SetFinalizer(l.pipe, nil)
		l.pipe.close()
		l.pipe = nil
	}
	l.n = 0
	l.release()
}

// copyBuffers holds what no leg is using at the moment.
var copyBuffers = sync.Pool{New: func() any { return new([copyBytes]byte) }}

// pipes holds empty pipes; pipesMade counts these and the ones in use. Pipes that
// the garbage collector takes out of the pool are closed by their finalizer.
var (
	pipes     sync.Pool
	pipesMade atomic.Int32
)

type splicePipe struct{ r, w int }

// takePipe returns an empty pipe, or nil when maxPipes or a limit of the system is
// reached: the caller copies then.
func takePipe() *splicePipe {
	if p, ok := pipes.Get().(*splicePipe); ok {
		return p
	}
	if pipesMade.Add(1) > maxPipes {
		pipesMade.Add(-1)
		return nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		pipesMade.Add(-1)
		return nil
	}
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeBytes)
	p := &splicePipe{r: fds[0], w: fds[1]}
	runtime.SetFinalizer(p, (*splicePipe).close)
	return p
}

func (p *splicePipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
	pipesMade.Add(-1)
}

// splice moves at most n bytes between a pipe and a socket, both non-blocking
// (splice(2)). It is a raw call: a large piece takes longer than the 20 µs after
// which the runtime gives the processor of a thread in a system call to another
// thread, and that costs more than it gains.
func splice(from, to, n int) (int, error) {
	moved, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	if errno != 0 {
		return 0, errno
	}
	return int(moved), nil
}

// retry repeats f while a signal interrupts it.
func retry(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// pendingError is socketError for a connection.
func pendingError(c syscall.RawConn) error {
	var pending error
	if err := c.Control(func(fd uintptr) { pending = socketError(fd) }); err != nil {
		return err
	}
	return pending
}

// socketError takes the asynchronous error of a socket, SO_ERROR in socket(7).
func socketError(fd uintptr) error {
	errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}
