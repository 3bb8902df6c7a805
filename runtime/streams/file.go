package streams

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrDirectory refuses a directory as input: who has one open could leave its root
// through it.
var ErrDirectory = errors.New("it is a directory")

// CheckInput says why f cannot be the input of a workload.
func CheckInput(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fmt.Errorf("standard input: %w; give a file or a pipe", ErrDirectory)
	}
	return nil
}

// fileType is what a relay has to know of a file.
type fileType int

const (
	pipe fileType = iota // without a name: a reader that has gone does not come back
	fifo                 // a pipe with a name
	socket
	regular
	null   // /dev/null
	device // a terminal and the rest
)

func typeOf(fd int) (fileType, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return device, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.PIPEFS_MAGIC {
			return fifo, err
		}
		return pipe, nil
	case unix.S_IFSOCK:
		return socket, nil
	case unix.S_IFREG:
		return regular, nil
	case unix.S_IFCHR:
		if st.Rdev == unix.Mkdev(1, 3) { // Documentation/admin-guide/devices.txt
			return null, nil
		}
	}
	return device, nil
}

// file is one side of a relay.
type file struct {
	fd int
	fileType
	// parts bounds one write in bytes: what poll(2) says that a file takes is at least this
	// much, and more could block on a file without O_NONBLOCK.
	parts int
}

// bufferSize bounds one move in bytes.
const bufferSize = 128 << 10

// partSize is what a pipe takes without blocking when poll(2) says that it takes something
// (PIPE_BUF in pipe(7)), and about what a terminal does.
const partSize = 4096

// open describes a descriptor of the outside. It fails where that is closed to access,
// O_RDONLY or O_WRONLY: poll(2) would wait for ever.
func open(fd, access int) (file, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return file{}, err
	}
	if mode := flags & unix.O_ACCMODE; flags&unix.O_PATH != 0 || mode != access && mode != unix.O_RDWR {
		return file{}, fmt.Errorf("%w: not open for this direction", unix.EBADF)
	}
	t, err := typeOf(fd)
	f := file{fd: fd, fileType: t, parts: bufferSize}
	if t != regular && t != socket {
		f.parts = partSize
	}
	return f, err
}

// own describes the far end of a workload's pipe, which is ours alone.
func own(fd int) (file, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return file{}, err
	}
	return file{fd: fd, fileType: pipe, parts: bufferSize}, nil
}

// spliced reports whether bytes may go from f to to by reference. A regular file and
// others that share its offset could meet in one place: splice(2) takes no lock on it, as
// read(2) and write(2) do. And a socket without O_NONBLOCK would block.
func (f file) spliced(to file) bool {
	return (f.fileType == pipe || f.fileType == fifo) && (to.fileType == pipe || to.fileType == fifo || to.fileType == null)
}

// read reads what there is, EAGAIN when that is nothing.
func (f file) read(b []byte) (n int, err error) {
	for {
		if f.fileType == socket {
			n, _, err = unix.Recvfrom(f.fd, b, unix.MSG_DONTWAIT)
		} else {
			n, err = unix.Read(f.fd, b)
		}
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// write writes what the file takes, EAGAIN when that is nothing.
func (f file) write(b []byte) (n int, err error) {
	b = b[:min(len(b), f.parts)]
	for {
		if f.fileType == socket {
			n, err = unix.SendmsgN(f.fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		} else {
			n, err = unix.Write(f.fd, b)
		}
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// held is how many bytes lie in a pipe.
func (f file) held() (int, error) { return unix.IoctlGetInt(f.fd, unix.TIOCINQ) }

// stopInBackground does what reading a terminal from the background does, and polling it
// does not: it stops the process's group until it is in the foreground.
func (f file) stopInBackground() {
	if f.fileType != device {
		return
	}
	// An error says that it is no terminal, or not ours.
	if foreground, err := unix.IoctlGetInt(f.fd, unix.TIOCGPGRP); err == nil && foreground != unix.Getpgrp() {
		_ = unix.Kill(0, unix.SIGTTIN)
	}
}
