package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lifetime bounds the child. It takes about 6 ms on a busy machine; what could
// hold it up is the opening of a device node on a file system that hangs.
const lifetime = 5 * time.Second

// maxMade is how many descriptors one child makes at most, a power of two. To make and
// to end the child costs as much as 100 sockets.
const maxMade = 512

// What the child is asked to make.
const (
	makeTUN int32 = iota
	makeSockets
)

// Steps of the child, in the order of stepNames.
const (
	childStarted int32 = iota
	childDumpable
	childSetnsUser
	childSetnsNet
	childOpenTUN
	childSocket
	childSetsockopt
	childDone
)

var stepNames = [...]string{StepClone, StepDumpable, StepSetnsUser, StepSetnsNet, StepOpenTUN, StepSocket, StepSetsockopt, StepWait}

// exchange is what parent and child tell each other, in a page that both map
// shared. It lies outside of the Go heap, so its addresses are plain numbers that
// hold in both address spaces.
type exchange struct {
	// From the parent.
	op                      int32
	userFD, netFD           uintptr // userFD: ^0 for none
	path                    uintptr // address of a NUL-terminated path, for makeTUN
	family, kind, proto     uintptr // for makeSockets
	level, option, v6option uintptr // socket options to set to 1; 0 for none
	n                       int32
	one                     int32   // the value 1, for setsockopt
	oneAddr, pidfdAddr      uintptr // of one, and of pidfd

	// From the child.
	step, errno, made int32
	fds               [maxMade]int32

	// From the kernel.
	pidfd int32
}

// cloneChild clones the process and does the child's whole work. In the child it
// does not return.
//
// It must not grow the stack (nosplit), be instrumented (norace) or be inlined
// into something that is, and touches nothing but x, which lies outside the heap.
// syscall.RawSyscall and RawSyscall6 are themselves nosplit and norace.
//
//go:nosplit
//go:norace
//go:noinline
func cloneChild(x *exchange) (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.CLONE_FILES|unix.CLONE_PIDFD)|uintptr(unix.SIGCHLD), 0, x.pidfdAddr, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}

	var fd uintptr
	x.step = childDumpable
	if _, _, errno = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0, 0); errno != 0 {
		goto fail
	}
	x.step = childSetnsNet
	_, _, errno = syscall.RawSyscall(unix.SYS_SETNS, x.netFD, unix.CLONE_NEWNET, 0)
	if errno == unix.EPERM && x.userFD != ^uintptr(0) {
		x.step = childSetnsUser
		if _, _, errno = syscall.RawSyscall(unix.SYS_SETNS, x.userFD, unix.CLONE_NEWUSER, 0); errno != 0 {
			goto fail
		}
		// New credentials set the dumpable flag to fs.suid_dumpable (commit_creds in
		// kernel/cred.c), which may be 1.
		x.step = childDumpable
		if _, _, errno = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0, 0); errno != 0 {
			goto fail
		}
		x.step = childSetnsNet
		_, _, errno = syscall.RawSyscall(unix.SYS_SETNS, x.netFD, unix.CLONE_NEWNET, 0)
	}
	if errno != 0 {
		goto fail
	}

	if x.op == makeTUN {
		x.step = childOpenTUN
		if fd, _, errno = syscall.RawSyscall6(unix.SYS_OPENAT, ^uintptr(0)-99 /* AT_FDCWD, -100 */, x.path, unix.O_RDWR|unix.O_CLOEXEC, 0, 0, 0); errno != 0 {
			goto fail
		}
		x.fds[0] = int32(fd)
		x.made = 1
		goto done
	}
	for x.made < x.n {
		x.step = childSocket
		if fd, _, errno = syscall.RawSyscall(unix.SYS_SOCKET, x.family, x.kind, x.proto); errno != 0 {
			goto fail
		}
		// Recorded before it is configured: the parent closes what a failure leaves.
		// The mask keeps the index in range without a bounds check, which could panic.
		x.fds[x.made&(maxMade-1)] = int32(fd)
		x.made++
		x.step = childSetsockopt
		if x.option != 0 {
			if _, _, errno = syscall.RawSyscall6(unix.SYS_SETSOCKOPT, fd, x.level, x.option, x.oneAddr, 4, 0); errno != 0 {
				goto fail
			}
		}
		if x.v6option != 0 {
			if _, _, errno = syscall.RawSyscall6(unix.SYS_SETSOCKOPT, fd, x.level, x.v6option, x.oneAddr, 4, 0); errno != 0 {
				goto fail
			}
		}
	}
done:
	x.step = childDone
fail:
	x.errno = int32(errno)
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// run fills in the rest of x, lets a child do it in the namespace t, and returns
// the descriptors that it made.
func (t Target) run(want exchange, path string) ([]int, error) {
	if t.Net == nil {
		return nil, &Error{Step: StepSetnsNet, Err: os.ErrInvalid}
	}
	page, err := unix.Mmap(-1, 0, max(os.Getpagesize(), 8192), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, &Error{Step: StepMap, Err: err}
	}
	defer func() { _ = unix.Munmap(page) }()
	x := (*exchange)(unsafe.Pointer(&page[0]))
	*x = want
	strings := page[unsafe.Sizeof(*x):]
	if len(path) >= len(strings) {
		return nil, &Error{Step: StepOpenTUN, Path: path, Err: unix.ENAMETOOLONG}
	}
	copy(strings, path) // the rest of the page is zero
	x.path = uintptr(unsafe.Pointer(&strings[0]))
	x.one = 1
	x.oneAddr = uintptr(unsafe.Pointer(&x.one))
	x.pidfdAddr = uintptr(unsafe.Pointer(&x.pidfd))
	x.netFD, x.userFD = t.Net.Fd(), ^uintptr(0)
	if t.User != nil {
		x.userFD = t.User.Fd()
	}

	pid, errno := cloneBlocked(x)
	runtime.KeepAlive(t.Net)
	runtime.KeepAlive(t.User)
	if errno != 0 {
		return nil, &Error{Step: StepClone, Err: errno}
	}
	waitErr := reap(int(pid), int(x.pidfd), lifetime)

	fds := make([]int, x.made)
	for i := range fds {
		fds[i] = int(x.fds[i])
	}
	if x.errno == 0 && x.step == childDone {
		return fds, nil
	}
	closeAll(fds)
	if x.errno == 0 {
		return nil, &Error{Step: StepWait, Err: fmt.Errorf("child ended in step %q: %w", stepNames[x.step], waitErr)}
	}
	return nil, &Error{Step: stepNames[x.step], Path: t.pathOf(x.step, path), Err: syscall.Errno(x.errno)}
}

func (t Target) pathOf(step int32, path string) string {
	switch {
	case step == childOpenTUN:
		return path
	case step == childSetnsNet:
		return t.Net.Name()
	case step == childSetnsUser && t.User != nil:
		return t.User.Name()
	}
	return ""
}

// cloneBlocked clones with every signal blocked, so that the child never enters a
// Go signal handler, and with the fork lock held, as every fork of a Go process.
func cloneBlocked(x *exchange) (uintptr, syscall.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	all, old := ^uint64(0), uint64(0)
	if _, _, e := syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0); e != 0 {
		return 0, e
	}
	pid, errno := cloneChild(x)
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return pid, errno
}

// errKilled is what a child that was killed from outside leaves.
var errKilled = errors.New("killed")

// reap waits for the child pid, kills it when it takes longer than limit, and
// closes pidfd. The error says why the child did not end by itself.
func reap(pid, pidfd int, limit time.Duration) error {
	defer unix.Close(pidfd)
	var late error
	deadline := time.Now().Add(limit)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int((left+time.Millisecond-1)/time.Millisecond))
		if n > 0 {
			break
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if left == 0 || err != nil {
			late = fmt.Errorf("no end within %v: %w", limit, errors.Join(os.ErrDeadlineExceeded, err))
			if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil {
				return errors.Join(late, err)
			}
			break
		}
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		switch {
		case late != nil:
			return late
		case err != nil:
			return err
		case ws.Signaled():
			return fmt.Errorf("%w by %v", errKilled, ws.Signal())
		}
		return nil
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
