package relay

import (
	"io"
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

// inbound is the direction host → guest. It is the Payloader from which the
// endpoint fills its segments, so the kernel copies straight into them.
type inbound struct {
	fd    int
	known int // bytes that lie in the receive queue, at the least
	left  int
	read  int
	errno unix.Errno
	eof   bool
	werr  tcpip.Error
	ep    tcpip.Endpoint
	try   func(fd uintptr) bool
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
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(i.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(min(len(p), i.left)))
	if errno != 0 {
		i.errno = errno
		return 0, errno
	}
	i.read += int(n)
	i.left -= int(n)
	if i.left == 0 || int(n) < len(p) {
		i.left = 0
		return int(n), io.EOF
	}
	return int(n), nil
}

// toGuest runs the direction host → guest until FIN, failure or stop.
func (f *flow) toGuest() {
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	f.queue.EventRegister(&entry)
	defer f.queue.EventUnregister(&entry)
	i := &inbound{ep: f.ep}
	i.try = i.attempt
	for {
		i.read, i.errno, i.werr = 0, 0, nil
		if err := f.raw.Read(i.try); err != nil {
			f.hostError("read", err)
			return
		}
		if i.read > 0 {
			for _, b := range f.bytes {
				b.ToGuest.Add(uint64(i.read))
			}
		}
		switch i.werr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			if !f.wait(ready) {
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

// attempt moves what lies in the socket's receive queue. It reports false when
// that is nothing and the poller shall wait.
func (i *inbound) attempt(fd uintptr) bool {
	i.fd = int(fd)
	// The length is asked for first: the endpoint reserves that much, and memory
	// that a short read leaves unused would stay pinned until it is acknowledged.
	n := i.known
	if n < maxChunk {
		var queued int32
		if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, fd, unix.TIOCINQ, uintptr(unsafe.Pointer(&queued))); errno != 0 {
			i.errno = errno
			return true
		}
		n = int(queued)
	}
	if n == 0 {
		var b [1]byte
		k, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EAGAIN:
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
	i.left = min(n, maxChunk)
	_, i.werr = i.ep.Write(i, tcpip.WriteOptions{})
	i.known = max(n-i.read, 0)
	if i.errno != 0 {
		i.known = 0
	}
	return true
}
