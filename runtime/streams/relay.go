package streams

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A pipe through which busyAfter bytes have gone grows to pipeSize: the relay and those at
// its two sides wake each other less often. Others stay as the kernel makes them, and so
// does this one where the user's share of pipe memory is used up (pipe(7)): the network's
// relays splice, too.
const (
	busyAfter = 16 << 20
	pipeSize  = 256 << 10
)

// Relay moves the bytes of one stream between the far end of a workload's pipe, which it
// closes when it ends, and a file of the outside.
type Relay struct {
	pipe     *os.File // the far end
	outside  *os.File // kept open for from or to
	from, to file
	input    bool
	done     chan struct{}
	err      error // valid once done is closed

	mu    sync.Mutex // guards the following fields
	order order
	wake  int // an eventfd that orders ring, -1 when the relay has ended
}

// order is what the relay's owner wants of it.
type order int

const (
	goOn order = iota
	finish
	stop
)

// errGone says that nobody will take what the workload writes.
var errGone = errors.New("the reader has gone")

// Output starts to move what a workload writes into the pipe with this far end to a file
// of the outside. It owns the far end from here on, also when it fails.
func Output(far, to *os.File) (*Relay, error) {
	r := &Relay{pipe: far, outside: to}
	var errs [3]error
	r.from, errs[0] = own(int(far.Fd()))
	r.to, errs[1] = open(int(to.Fd()), unix.O_WRONLY)
	errs[2] = r.start()
	return r.started(errs[:])
}

// Input starts to move what there is in a file of the outside to a workload's pipe. It
// owns the far end from here on, also when it fails.
func Input(from, far *os.File) (*Relay, error) {
	r := &Relay{pipe: far, outside: from, input: true}
	var errs [3]error
	r.from, errs[0] = open(int(from.Fd()), unix.O_RDONLY)
	r.to, errs[1] = own(int(far.Fd()))
	errs[2] = r.start()
	return r.started(errs[:])
}

func (r *Relay) start() (err error) {
	r.done = make(chan struct{})
	r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return err
}

func (r *Relay) started(errs []error) (*Relay, error) {
	if err := errors.Join(errs...); err != nil {
		if errs[2] == nil {
			unix.Close(r.wake)
		}
		r.pipe.Close()
		return nil, fmt.Errorf("relay: %w", err)
	}
	go r.run()
	return r, nil
}

// Done is closed when the relay has ended and the far end of the pipe is closed.
func (r *Relay) Done() <-chan struct{} { return r.done }

// Err is why bytes were lost, once Done is closed. A side that has ended is no error.
func (r *Relay) Err() error { return r.err }

// Finish has the relay end when it has moved what is in the pipe now. It is for a workload
// that has ended: who else has the pipe open is not of the container any more.
func (r *Relay) Finish() { r.give(finish) }

// Close has the relay end now. It does not wait: a file of the outside may block a write
// for ever, which is what Done says.
func (r *Relay) Close() { r.give(stop) }

func (r *Relay) give(o order) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wake < 0 || r.order >= o {
		return
	}
	r.order = o
	// EAGAIN: it rings already.
	_, _ = unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (r *Relay) ordered() order {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.order
}

func (r *Relay) run() {
	defer close(r.done)
	err := r.relay()
	r.mu.Lock()
	unix.Close(r.wake)
	r.wake = -1
	r.mu.Unlock()
	r.pipe.Close()
	r.outside = nil
	switch {
	case errors.Is(err, errGone), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
	case err != nil:
		r.err = err
	}
}

// relay moves bytes until one side has ended, or it is ordered to.
func (r *Relay) relay() error {
	var buf []byte
	splice := r.from.spliced(r.to)
	left := -1 // bytes that are still to be moved; -1 for no end
	moved := 0 // up to busyAfter
	for left != 0 {
		switch r.ordered() {
		case stop:
			return nil
		case finish:
			if left >= 0 {
				break
			}
			var err error
			if left, err = r.from.held(); err != nil {
				return fmt.Errorf("finish: %w", err)
			}
			continue
		}
		ready, err := r.awaitInput(left)
		if err != nil {
			return err
		}
		if !ready {
			if left > 0 {
				return nil // somebody else has taken the rest
			}
			continue
		}
		size := bufferSize
		if splice {
			size = pipeSize
		}
		if left > 0 {
			size = min(size, left)
		}
		var n int
		if splice {
			n, err = r.splice(size)
			if errors.Is(err, unix.EINVAL) { // a pipe that is open for appending, splice(2)
				splice = false
				continue
			}
		} else {
			if buf == nil {
				buf = make([]byte, bufferSize)
			}
			n, err = r.copy(buf[:size])
		}
		switch {
		case errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return err
		case n == 0:
			return nil
		}
		if left > 0 {
			left -= n
		}
		if moved < busyAfter {
			if moved += n; moved >= busyAfter {
				_, _ = unix.FcntlInt(uintptr(r.pipeFD()), unix.F_SETPIPE_SZ, pipeSize)
			}
		}
	}
	return nil
}

// pipeFD is the far end of the workload's pipe.
func (r *Relay) pipeFD() int {
	if r.input {
		return r.to.fd
	}
	return r.from.fd
}

// splice moves at most size bytes by reference.
func (r *Relay) splice(size int) (int, error) {
	n, err := unix.Splice(r.from.fd, nil, r.to.fd, nil, size, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, errors.Join(r.awaitOutput(), err)
	case errors.Is(err, unix.EINTR):
		err = unix.EAGAIN
	case err != nil && !errors.Is(err, unix.EPIPE):
		err = fmt.Errorf("splice: %w", err)
	}
	return int(n), err
}

// copy moves what fits into buf. It returns when all that it has read is written: what it
// holds nobody else does.
func (r *Relay) copy(buf []byte) (int, error) {
	n, err := r.from.read(buf)
	if err != nil || n == 0 {
		if r.input && errors.Is(err, unix.EIO) {
			err = nil // a terminal that was hung up, or that is not ours in the background
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ECONNRESET) {
			err = fmt.Errorf("read: %w", err)
		}
		return 0, err
	}
	for b := buf[:n]; len(b) > 0; {
		if err := r.awaitOutput(); err != nil {
			return 0, err
		}
		if r.ordered() == stop {
			return 0, nil
		}
		done, err := r.to.write(b)
		switch {
		case errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
			return 0, err
		case r.to.fileType == device && errors.Is(err, unix.EIO):
			return 0, errGone // a terminal that was hung up
		case err != nil:
			return 0, fmt.Errorf("write: %w", err)
		}
		b = b[max(done, 0):]
	}
	return n, nil
}

// awaitInput waits until there is something to read, and reports whether there is: an
// order ends the wait, too. With an end it does not wait. It fails with errGone when the
// reader of what the relay writes has gone meanwhile: a workload shall hear of that when it
// writes, and not one write later.
func (r *Relay) awaitInput(left int) (bool, error) {
	if r.input {
		r.from.stopInBackground()
	}
	fds := []unix.PollFd{{Fd: int32(r.from.fd), Events: unix.POLLIN}, {Fd: int32(r.wake), Events: unix.POLLIN}, {Fd: int32(r.to.fd)}}
	if r.to.fileType == fifo {
		fds[2].Fd = -1 // another reader may come
	}
	timeout := -1
	if left > 0 {
		timeout = 0
	}
	if err := r.poll(fds, timeout); err != nil {
		return false, err
	}
	if fds[2].Revents != 0 {
		return false, errGone
	}
	return fds[0].Revents != 0, nil
}

// awaitOutput waits until something can be written, or the writing fails, or there is an
// order.
func (r *Relay) awaitOutput() error {
	return r.poll([]unix.PollFd{{Fd: int32(r.to.fd), Events: unix.POLLOUT}, {Fd: int32(r.wake), Events: unix.POLLIN}}, -1)
}

// poll is poll(2). fds[1] is the eventfd, which it silences.
func (r *Relay) poll(fds []unix.PollFd, timeout int) error {
	for {
		_, err := unix.Poll(fds, timeout)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		break
	}
	if fds[1].Revents != 0 {
		_, _ = unix.Read(r.wake, make([]byte, 8)) // an order, for whoever asks next
	}
	return nil
}
