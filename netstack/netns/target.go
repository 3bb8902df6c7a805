package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Target is a network namespace and, when it is not reached with the caller's own
// credentials, the user namespace that owns it. The files are namespace files
// (namespaces(7)); the holder of a Target keeps the namespaces alive. Methods may
// be called from several goroutines at once, but not together with Close.
type Target struct {
	User *os.File // nil: there is no user namespace to join
	Net  *os.File
}

// FromPID opens the network namespace of a process and the user namespace that
// owns it. For a process that has gone the error is os.ErrNotExist.
func FromPID(pid int) (Target, error) {
	// Both files are opened below one descriptor of the process's directory, so
	// they are of the same process even when the pid is used again.
	path := "/proc/" + strconv.Itoa(pid)
	dir, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Target{}, &Error{Step: StepOpen, Path: path, Err: err}
	}
	defer unix.Close(dir)
	net, err := openNamespace(dir, "ns/net", path+"/ns/net", unix.CLONE_NEWNET)
	if err != nil {
		return Target{}, err
	}
	user, err := owner(net)
	if err != nil {
		// An owner outside of the caller's view: what the process itself lives in is
		// the best guess that is left.
		user, err = openNamespace(dir, "ns/user", path+"/ns/user", unix.CLONE_NEWUSER)
	}
	return finish(net, user, err)
}

// FromPath opens the network namespace file net, and user, the file of the user
// namespace to join before it. An empty user means the one that owns net.
func FromPath(net, user string) (Target, error) {
	n, err := openNamespace(unix.AT_FDCWD, net, net, unix.CLONE_NEWNET)
	if err != nil {
		return Target{}, err
	}
	var u *os.File
	if user == "" {
		if u, err = owner(n); errors.Is(err, unix.EPERM) {
			// The owner is an ancestor of the caller's own user namespace, or a stranger
			// to it; setns(net) will say so.
			u, err = nil, nil
		}
	} else {
		u, err = openNamespace(unix.AT_FDCWD, user, user, unix.CLONE_NEWUSER)
	}
	return finish(n, u, err)
}

// finish drops a user namespace that is the caller's own: joining it is an error
// (EINVAL, setns(2)), and not needed.
func finish(net, user *os.File, err error) (Target, error) {
	if err != nil {
		return Target{}, errors.Join(err, net.Close())
	}
	if user == nil {
		return Target{Net: net}, nil
	}
	own, err := sameNamespace(user, "/proc/self/ns/user")
	if err != nil {
		return Target{}, errors.Join(err, user.Close(), net.Close())
	}
	if own {
		return Target{Net: net}, user.Close()
	}
	return Target{User: user, Net: net}, nil
}

// Close closes both files.
func (t Target) Close() error {
	var err error
	for _, f := range []*os.File{t.User, t.Net} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// openNamespace opens path below dir and checks that it is a namespace of the
// kind (a CLONE_NEW* bit). name is the path for messages.
func openNamespace(dir int, path, name string, kind int) (*os.File, error) {
	// O_NONBLOCK: a FIFO in place of a namespace file must not hang the caller.
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &Error{Step: StepOpen, Path: name, Err: err}
	}
	got, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || got != kind {
		unix.Close(fd)
		return nil, &Error{Step: StepNamespace, Path: name, Err: fmt.Errorf("it is no %s namespace", kindName(kind))}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, &Error{Step: StepOpen, Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func kindName(kind int) string {
	if kind == unix.CLONE_NEWNET {
		return "network"
	}
	return "user"
}

// owner returns the user namespace that owns a network namespace (ioctl_ns(2)).
func owner(net *os.File) (*os.File, error) {
	fd, err := unix.IoctlRetInt(int(net.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return nil, &Error{Step: StepOpen, Path: net.Name() + " owner", Err: err}
	}
	return os.NewFile(uintptr(fd), net.Name()+" owner"), nil
}

// sameNamespace compares namespaces the way namespaces(7) says: by device and
// inode.
func sameNamespace(f *os.File, path string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &a); err != nil {
		return false, &Error{Step: StepOpen, Path: f.Name(), Err: err}
	}
	if err := unix.Stat(path, &b); err != nil {
		return false, &Error{Step: StepOpen, Path: path, Err: err}
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}
