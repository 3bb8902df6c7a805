package relay

import (
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

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
	// leastPipe is what a pipe has to hold to be worth it. Where the user is over that limit a
	// new one has two pages or one, and a copy is cheaper; another is asked for after pipePause.
	leastPipe = 64 << 10
	pipePause = time.Second
	// sparePipes is how many empty pipes a loop keeps.
	sparePipes = 4
)

// copyBuffers holds what no pair is using at the moment.
var copyBuffers = sync.Pool{New: func() any { return new([copyBytes]byte) }}

// pipesMade counts the pipes of the process.
var pipesMade atomic.Int32

// splicePipe is a pipe, both ends non-blocking.
type splicePipe struct{ r, w int }

// takePipe returns an empty pipe, or nil when maxPipes or a limit of the system is
// reached: the caller copies then.
func (l *loop) takePipe() *splicePipe {
	if n := len(l.pipes); n > 0 {
		p := l.pipes[n-1]
		l.pipes = l.pipes[:n-1]
		return p
	}
	if !l.refused.IsZero() && time.Since(l.refused) < pipePause {
		return nil
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
	p := &splicePipe{r: fds[0], w: fds[1]}
	if _, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeBytes); err != nil {
		if got, err := unix.FcntlInt(uintptr(p.w), unix.F_GETPIPE_SZ, 0); err != nil || got < leastPipe {
			p.close()
			l.refused = time.Now()
			return nil
		}
	}
	return p
}

// givePipe takes an empty pipe back.
func (l *loop) givePipe(p *splicePipe) {
	if len(l.pipes) == sparePipes {
		p.close()
		return
	}
	l.pipes = append(l.pipes, p)
}

func (p *splicePipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
	pipesMade.Add(-1)
}

// release gives back the holder of a piece that is wholly delivered.
func (l *loop) release(d *direction) {
	if d.pipe != nil {
		l.givePipe(d.pipe)
		d.pipe = nil
	}
	if d.buf != nil {
		copyBuffers.Put(d.buf)
		d.buf = nil
	}
}

// drop is release for a direction that ended with bytes undelivered: they must not
// turn up in the next connection that takes the pipe.
func (l *loop) drop(d *direction) {
	if d.pipe != nil && d.n > 0 {
		d.pipe.close()
		d.pipe = nil
	}
	d.n = 0
	l.release(d)
}

// The calls below are raw: none of them blocks, and a large piece takes longer than
// the 20 µs after which the runtime gives the processor of a thread in a system call to
// another thread, which costs more than it gains.

// splice moves at most n bytes between a pipe and a socket, both non-blocking
// (splice(2)).
func splice(from, to, n int) (int, unix.Errno) {
	for {
		moved, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errno == 0 {
			return int(moved), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

func receive(fd int, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

func send(fd int, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}
