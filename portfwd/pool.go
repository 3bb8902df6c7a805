package portfwd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/relay"
)

// Namespace makes TCP sockets inside the container's network namespace: fresh,
// nonblocking, transparent (IP_TRANSPARENT, IPV6_TRANSPARENT) ones of family
// syscall.AF_INET or AF_INET6. It may return fewer than asked for with a nil
// error, but not none. [slipway/netstack/monitor.Client] is one.
type Namespace interface {
	Sockets(ctx context.Context, family, n int) (fds []int, err error)
}

// Pauses between attempts that failed for want of descriptors or the like.
const (
	minPause = 5 * time.Millisecond
	maxPause = time.Second
)

// A pool that runs low again within rush makes twice as many sockets at a time, up to
// growth times its size, and gives half of them back each time that it has not run low for
// calm: another process is made for each batch, which costs as much as 100 sockets.
const (
	rush   = 100 * time.Millisecond
	calm   = time.Second
	growth = 8
)

// pool keeps sockets of one family ready, so that a connection does not wait for
// another process to make one. fill runs in the background as long as its context.
type pool struct {
	family int
	size   atomic.Int32  // how many it keeps at the moment
	least  int32         // of size
	ready  chan int      // descriptors
	low    chan struct{} // says that ready is half empty
	failed atomic.Uint64 // calls of Sockets, or sockets, that were no good
	ns     Namespace
	log    *slog.Logger

	refilled func() // called when ready has more
}

func newPool(ns Namespace, family, size int, refilled func(), log *slog.Logger) *pool {
	p := &pool{
		family: family, least: int32(size), ready: make(chan int, max(size, min(size*growth, maxSockets, affordable()))), low: make(chan struct{}, 1),
		ns: ns, log: log, refilled: refilled,
	}
	p.size.Store(p.least)
	return p
}

// affordable is how many sockets a pool may keep so that the limit of open files leaves
// most of them to connections.
func affordable() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 0
	}
	return int(min(files.Cur, 1<<20) / 16)
}

// take returns a socket, which the caller closes, and false when there is none.
func (p *pool) take() (fd int, ok bool) {
	if p.runsLow() {
		select {
		case p.low <- struct{}{}:
		default: // fill knows
		}
	}
	select {
	case fd = <-p.ready:
		return fd, true
	default:
		return -1, false
	}
}

// fill refills the pool whenever it runs low, and empties it when ctx ends.
func (p *pool) fill(ctx context.Context) {
	defer p.drain()
	var pause time.Duration
	for {
		// What is taken meanwhile is not worth another process, unless it is half again.
		for p.runsLow() {
			err := p.add(ctx, int(p.size.Load())-len(p.ready))
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				pause = 0
				continue
			}
			if p.failed.Add(1); pause == 0 { // once for each time of trouble
				p.log.Warn("sockets of the container's namespace", "family", p.family, "err", err)
			}
			pause = min(max(2*pause, minPause), maxPause)
			if !sleep(ctx, pause) {
				return
			}
		}
		filled := time.Now()
		for !p.runsLow() { // else the word is from before
			var late <-chan time.Time
			if p.size.Load() > p.least {
				late = time.After(calm)
			}
			select {
			case <-p.low:
			case <-late:
				p.shrink()
			case <-ctx.Done():
				return
			}
		}
		if time.Since(filled) < rush {
			p.size.Store(min(2*p.size.Load(), int32(cap(p.ready))))
		}
	}
}

// shrink gives back what half the size does not need.
func (p *pool) shrink() {
	size := max(p.size.Load()/2, p.least)
	p.size.Store(size)
	for len(p.ready) > int(size) {
		fd, ok := p.take()
		if !ok {
			return
		}
		_ = unix.Close(fd)
	}
}

func (p *pool) runsLow() bool { return len(p.ready) <= int(p.size.Load())/2 }

// add asks for n sockets, for which ready has room.
func (p *pool) add(ctx context.Context, n int) error {
	fds, err := p.ns.Sockets(ctx, p.family, n)
	if err == nil && len(fds) == 0 {
		err = fmt.Errorf("none of %d sockets came", n)
	}
	for _, fd := range fds {
		if err == nil {
			err = relay.CheckSocket(fd, p.family)
		}
		if err == nil {
			err = relay.Prepare(fd)
		}
		if err == nil && n > 0 {
			p.ready <- fd
			n--
			continue
		}
		_ = unix.Close(fd)
	}
	p.refilled()
	return err
}

// duplicate returns another descriptor of f.
func duplicate(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	if cerr := raw.Control(func(old uintptr) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); cerr != nil {
		return -1, cerr
	}
	return fd, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
}

func (p *pool) drain() {
	for {
		select {
		case fd := <-p.ready:
			_ = unix.Close(fd)
		default:
			return
		}
	}
}

// sleep waits; it reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
