package tap

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxPieces bounds the pieces of one write: a segment of large writes is headers and a few
// views. Those of a segment that was put together of many small ones are gathered.
const maxPieces = 64

// Writer holds what one goroutine needs to write frames without allocating. The
// zero value is ready for use; it must not be shared.
type Writer struct {
	iov [1 + maxPieces]unix.Iovec
	hdr [HeaderLen]byte
	n   int
	// flat is a frame, or its beginning, in one piece; it grows to the largest seen.
	flat     []byte
	gathered bool // flat is the first piece
}

// Reset begins a frame with header h, which a plain device leaves out.
func (w *Writer) Reset(h Header) {
	h.Put(w.hdr[:])
	w.iov[0].Base = &w.hdr[0]
	w.iov[0].SetLen(HeaderLen)
	w.n, w.gathered = 1, false
}

// Append adds a piece to the frame. b must stay unchanged until WriteTo returns.
func (w *Writer) Append(b []byte) {
	if len(b) == 0 {
		return
	}
	if w.n == len(w.iov) {
		w.gather()
	}
	w.iov[w.n].Base = unsafe.SliceData(b)
	w.iov[w.n].SetLen(len(b))
	w.n++
}

// gather copies all pieces into one.
func (w *Writer) gather() {
	pieces := w.iov[1:w.n]
	if w.gathered {
		pieces = pieces[1:]
	} else {
		w.flat = w.flat[:0]
	}
	for _, v := range pieces {
		w.flat = append(w.flat, unsafe.Slice(v.Base, v.Len)...)
	}
	clear(w.iov[1:w.n])
	w.iov[1].Base = unsafe.SliceData(w.flat)
	w.iov[1].SetLen(len(w.flat))
	w.n, w.gathered = 2, true
}

// WriteTo hands the frame to the kernel with one write. It never blocks: a TAP
// takes a frame or refuses it. EIO means that the link is down, EINVAL a frame
// that the kernel finds malformed, ENOBUFS no memory; none of them ends the
// device.
func (w *Writer) WriteTo(d *Device) error {
	defer clear(w.iov[1:w.n]) // do not keep the pieces alive
	if d.plain != nil {
		w.gather()
		_, err := d.plain.Write(w.flat)
		return err
	}
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, d.fd, uintptr(unsafe.Pointer(&w.iov[0])), uintptr(w.n))
	if errno != 0 {
		return errno
	}
	return nil
}

// Reader holds what the one goroutine that reads a Device needs.
type Reader struct {
	d     *Device
	conn  syscall.RawConn
	iov   [3]unix.Iovec
	hdr   [HeaderLen]byte
	n     int
	errno unix.Errno
	park  func(fd uintptr) bool
}

// NewReader returns the reader of d; there must be only one.
func NewReader(d *Device) (*Reader, error) {
	conn, err := d.file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("read TAP %q: %w", d.name, err)
	}
	r := &Reader{d: d, conn: conn}
	r.park = func(uintptr) bool {
		r.readv()
		return r.errno != unix.EAGAIN && r.errno != unix.EINTR
	}
	return r, nil
}

func (r *Reader) readv() {
	n, _, errno := unix.RawSyscall(unix.SYS_READV, r.d.fd, uintptr(unsafe.Pointer(&r.iov[0])), uintptr(len(r.iov)))
	r.n, r.errno = int(n), errno
}

// TryRead reads one frame into buf and, what does not fit there, into rest. It
// returns unix.EAGAIN when none is waiting. n is the frame's length in bytes,
// without the virtio-net header. ErrHeader means a frame whose header makes no
// sense; n is right then, too.
func (r *Reader) TryRead(buf, rest []byte) (h Header, n int, err error) {
	if r.d.plain != nil {
		n, err = r.tryPlain(buf)
		return h, n, err
	}
	r.aim(buf, rest)
	r.readv()
	return r.result()
}

// tryPlain reads one plain frame into buf, which is larger than any.
func (r *Reader) tryPlain(buf []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, r.d.fd, uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// TryReadFlat is TryRead into one buffer, of which frame is a part then; it should have room for
// HeaderLen bytes more than the largest frame. It takes an eighth less time than a read into pieces.
func (r *Reader) TryReadFlat(buf []byte) (h Header, frame []byte, err error) {
	if r.d.plain != nil {
		n, err := r.tryPlain(buf)
		return h, buf[:n:n], err
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READ, r.d.fd, uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
	if errno != 0 {
		return h, nil, errno
	}
	b := buf[:n:n]
	frame = b[min(len(b), HeaderLen):]
	h, err = ParseHeader(b[:len(b)-len(frame)], len(frame))
	return h, frame, err
}

// Read is TryRead that waits for a frame. It returns os.ErrClosed once the
// device is closed.
func (r *Reader) Read(buf, rest []byte) (h Header, n int, err error) {
	if r.d.plain != nil {
		n, err = r.d.plain.Read(buf)
		return h, n, err
	}
	r.aim(buf, rest)
	if err := r.conn.Read(r.park); err != nil {
		return h, 0, err
	}
	return r.result()
}

func (r *Reader) aim(buf, rest []byte) {
	r.iov[0].Base = &r.hdr[0]
	r.iov[0].SetLen(HeaderLen)
	r.iov[1].Base = unsafe.SliceData(buf)
	r.iov[1].SetLen(len(buf))
	r.iov[2].Base = unsafe.SliceData(rest)
	r.iov[2].SetLen(len(rest))
}

func (r *Reader) result() (Header, int, error) {
	if r.errno != 0 {
		return Header{}, 0, r.errno
	}
	n := max(r.n-HeaderLen, 0)
	h, err := ParseHeader(r.hdr[:min(r.n, HeaderLen)], n)
	return h, n, err
}
