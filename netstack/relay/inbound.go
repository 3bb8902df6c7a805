package relay

import (
	"io"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/waiter"
)

// maxChunk is the most that is read from the host at once, in bytes: what gVisor
// sends as one segment where the link takes 64 KiB. It reserves
// header.TCPTotalHeaderMaximumSize for the headers (transport/tcp/snd.go, sendData);
// one byte more, and every chunk would cost a second, tiny segment.
const maxChunk = 65535 - header.TCPTotalHeaderMaximumSize - 1

// small is the most that is read at once while no more comes at a time, in bytes. That
// takes two system calls for an answer, one to read it and one that finds no more, where
// asking for the length first takes four.
const small = 4096

// smallBuffer is the endpoint's send buffer after manySmalls small messages, in bytes of
// payload. gVisor keeps what was read at once as a segment, and a segment of one byte takes
// a thousand. While a guest takes none of a host's small messages, they gather in the
// host's socket, and come from there in one piece.
const (
	smallBuffer = 16 << 10
	manySmalls  = 64
)

var smalls = sync.Pool{New: func() any { return new([small]byte) }}

// inbound is the direction host → guest. It is the Payloader from which the
// endpoint fills its segments, so the kernel copies straight into them.
type inbound struct {
	fd     int
	large  bool         // as much as fills small came at a time
	inARow int          // how often that was not so
	chunk  *[small]byte // nil while held is empty
	held   []byte       // what was read into chunk and the endpoint has not taken yet
	known  int          // bytes that lie in the receive queue, at the least
	left   int
	read   int
	errno  unix.Errno
	eof    bool
	werr   tcpip.Error
	stall  *time.Ticker // nil until the guest has once taken nothing
	idle   bool         // nothing was read since it ticked
	window sendWindow
	ep     tcpip.Endpoint
	try    func(fd uintptr) bool
}

// Len implements tcpip.Payloader.
func (i *inbound) Len() int { return i.left }

// Read implements tcpip.Payloader. An error here makes the endpoint's Write fail
// with ErrBadBuffer; errno tells why.
func (i *inbound) Read(p []byte) (int, error) {
	if len(p) == 0 || i.left == 0 {
		if i.left == 0 && len(p) != 0 {
			return 0, io.EOF
		}
		return 0, nil
	}
	p = p[:min(len(p), i.left)]
	n := copy(p, i.held)
	i.held = i.held[n:]
	if n < len(p) {
		k, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(i.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p[n:]))), uintptr(len(p)-n))
		switch {
		case errno == 0:
			n += int(k)
		case n == 0 || errno != unix.EAGAIN && errno != unix.EINTR:
			i.errno = errno
		}
	}
	i.read += n
	i.left -= n
	if n == 0 && i.errno != 0 {
		return 0, i.errno
	}
	if n < len(p) && i.left > 0 {
		// Less than the kernel said that there is: gVisor would ask for the rest for ever.
		i.left, i.errno = 0, unix.EPROTO
		return n, i.errno
	}
	return n, nil
}

// toGuest runs the direction host → guest until FIN, failure or stop.
func (f *flow) toGuest() {
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	f.queue.EventRegister(&entry)
	defer f.queue.EventUnregister(&entry)
	i := &inbound{ep: f.ep, window: newSendWindow(f)}
	i.try = i.attempt
	defer i.end()
	for {
		i.read, i.errno, i.werr = 0, 0, nil
		i.window.open()
		if err := f.raw.Read(i.try); err != nil {
			f.hostError("read", err)
			return
		}
		if i.read > 0 {
			i.idle = false
			for _, b := range f.bytes {
				b.ToGuest.Add(uint64(i.read))
			}
			i.window.wrote(i.read)
		}
		switch i.werr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			if !i.wait(f, ready) {
				return
			}
			continue
		case *tcpip.ErrBadBuffer:
			if i.errno == 0 || i.errno == unix.EAGAIN || i.errno == unix.EINTR {
				continue
			}
		default:
			f.guestError("write", i.werr)
			return
		}
		if i.errno != 0 {
			f.hostError("read", i.errno)
			return
		}
		if i.eof {
			if resetUnseen(f.raw, &f.finPassed) {
				f.hostError("read", unix.ECONNRESET)
				return
			}
			f.finSent.Store(true)
			// The guest may have closed already; then there is nobody to tell.
			_ = f.ep.Shutdown(tcpip.ShutdownWrite)
			return
		}
	}
}

// wait blocks until the endpoint notifies ready. It reports false when the flow has been
// stopped, or has nobody to wait for any more: the poller tells of a reset by the host only
// who reads, which nobody does while the guest does not. What came before the reset is the
// guest's for lingerTime at the least, and for as long as it takes some of it.
func (i *inbound) wait(f *flow, ready <-chan struct{}) bool {
	if i.stall == nil {
		i.stall = time.NewTicker(lingerTime)
	}
	for {
		select {
		case <-ready:
			i.window.earn()
			return true
		case <-f.stopped:
			return false
		case <-i.stall.C:
			if i.idle && resetUnseen(f.raw, &f.finPassed) {
				f.hostError("read", unix.ECONNRESET)
				return false
			}
			i.idle = true
		}
	}
}

// attempt moves what lies in the socket's receive queue. It reports false when
// that is nothing and the poller shall wait.
func (i *inbound) attempt(fd uintptr) bool {
	i.fd = int(fd)
	if !i.large || len(i.held) > 0 {
		return i.attemptSmall()
	}
	i.release()
	// The length is asked for first: the endpoint reserves that much, and memory
	// that a short read leaves unused would stay pinned until it is acknowledged.
	n := i.known
	if n < maxChunk {
		if n, i.errno = i.queued(); i.errno != 0 {
			return true
		}
	}
	if n == 0 {
		var b [1]byte
		k, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EAGAIN:
			acknowledge(i.fd)
			return false
		case errno == unix.EINTR:
			return true
		case errno != 0:
			i.errno = errno
			return true
		case k == 0:
			i.eof = true
			return true
		}
		n = 1
	}
	i.expect(n)
	i.left = min(n, maxChunk)
	_, i.werr = i.ep.Write(i, tcpip.WriteOptions{})
	i.known = max(n-i.read, 0)
	if i.errno != 0 {
		i.known = 0
	}
	return true
}

// expect notes how many bytes came, since more of the kind will.
func (i *inbound) expect(n int) {
	i.large = n >= small
	if !i.large {
		i.inARow++
		i.window.small = i.inARow >= manySmalls
		return
	}
	i.inARow, i.window.small = 0, false
}

// queued is how many bytes lie in the socket's receive queue, SIOCINQ in tcp(7).
func (i *inbound) queued() (int, unix.Errno) {
	var n int32
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(i.fd), unix.TIOCINQ, uintptr(unsafe.Pointer(&n)))
	return int(n), errno
}

// attemptSmall is attempt for what fits in small.
func (i *inbound) attemptSmall() bool {
	if len(i.held) == 0 {
		if i.chunk == nil {
			i.chunk = smalls.Get().(*[small]byte) //nolint:forcetypeassert // nothing else is put there
		}
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(i.fd), uintptr(unsafe.Pointer(i.chunk)), small)
		switch {
		case errno == unix.EAGAIN:
			i.release()
			return false
		case errno == unix.EINTR:
			return true
		case errno != 0:
			i.errno = errno
			return true
		case n == 0:
			i.eof = true
			return true
		}
		i.held = i.chunk[:n]
		if i.expect(int(n)); i.large {
			return i.attemptRest()
		}
	}
	i.left = len(i.held)
	_, i.werr = i.ep.Write(i, tcpip.WriteOptions{Atomic: true})
	return true
}

// attemptRest is attempt after small was filled: what lies in the socket's receive queue
// behind it goes into the same segment. A segment of its own before that would fill the
// window of a guest whose MTU is as large as its window.
func (i *inbound) attemptRest() bool {
	n, errno := i.queued()
	if errno != 0 {
		i.errno = errno
		return true
	}
	n += len(i.held)
	i.left = min(n, maxChunk)
	_, i.werr = i.ep.Write(i, tcpip.WriteOptions{})
	if i.known = max(n-i.read, 0); len(i.held) > 0 || i.errno != 0 {
		i.known = 0
	}
	return true
}

func (i *inbound) end() {
	i.release()
	if i.stall != nil {
		i.stall.Stop()
	}
}

// release gives the buffer for small answers back: a flow that waits has none.
func (i *inbound) release() {
	if i.chunk != nil {
		smalls.Put(i.chunk)
		i.chunk, i.held = nil, nil
	}
}
