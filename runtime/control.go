package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// The launcher and the stage talk over one SOCK_SEQPACKET pair: small JSON
// messages, each with at most one descriptor. The stage's end closes by itself
// when the workload's execve(2) succeeds.

// kind of a message.
type kind string

const (
	// From the launcher.
	kindMapped kind = "mapped" // the id maps are written
	kindStart  kind = "start"  // the network is there: build the root
	kindGo     kind = "go"     // the answer to kindExec: signals are the workload's from here on
	// From the stage.
	kindReady    kind = "ready"    // waiting for kindStart; carries the plain TAP if one was asked for
	kindNotice   kind = "notice"   // something is less than asked; for the person
	kindTerminal kind = "terminal" // carries the master side of the workload's terminal
	kindStream   kind = "stream"   // carries the far end of one of the workload's standard streams, in the order of Shape.Names
	kindExec     kind = "exec"     // ready for execve
	kindFailed   kind = "failed"   // the container cannot start; the stage ends
)

// message is one packet. Text is shortened to maxText.
type message struct {
	Kind kind   `json:"kind"`
	Text string `json:"text,omitempty"`
	Code int    `json:"code,omitempty"` // kindFailed: exit status for the launcher
}

const (
	maxText    = 4096
	maxMessage = 32 << 10
)

func (m message) encode() ([]byte, error) {
	if len(m.Text) > maxText {
		m.Text = m.Text[:maxText] + "..."
	}
	return json.Marshal(m)
}

// controlPair makes the two ends: the launcher's, and the one the stage
// inherits.
func controlPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair for the stage: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "stage"), os.NewFile(uintptr(fds[1]), "launcher")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair for the stage: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}

// tell sends a message to the stage.
func tell(c *net.UnixConn, k kind) error {
	b, err := message{Kind: k}.encode()
	if err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return fmt.Errorf("send %q to the container's stage: %w", k, err)
	}
	return nil
}

// hear receives the stage's next message, and its descriptor if there is one,
// which the caller owns. io.EOF: the stage is gone or has become the workload.
func hear(c *net.UnixConn) (message, *os.File, error) {
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	n, on, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		// A stage that died with our message unread resets the pair.
		if errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		return message{}, nil, err
	}
	f, err := descriptor(oob[:on])
	if err != nil {
		return message{}, nil, err
	}
	if n == 0 && f == nil {
		return message{}, nil, io.EOF
	}
	var m message
	if flags&unix.MSG_TRUNC != 0 {
		err = errors.New("message from the stage is too long")
	} else {
		err = json.Unmarshal(buf[:n], &m)
	}
	if err != nil {
		f.Close()
		return message{}, nil, fmt.Errorf("message from the stage: %w", err)
	}
	return m, f, nil
}

// descriptor takes the descriptor out of a control message, nil when there is
// none.
func descriptor(oob []byte) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	scms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var f *os.File
	for _, scm := range scms {
		fds, err := unix.ParseUnixRights(&scm)
		if err != nil {
			return nil, fmt.Errorf("control message: %w", err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			f = os.NewFile(uintptr(fd), "passed")
		}
	}
	return f, nil
}

// launcher is the stage's end: a plain blocking descriptor, since it outlives
// the stage's re-execution.
type launcher int

// controlFD is where the stage finds its end, specFD its specification.
const (
	controlFD launcher = 3
	specFD    launcher = 4
)

// send passes a message and, when fd is not -1, a descriptor.
func (l launcher) send(m message, fd int) error {
	b, err := m.encode()
	if err != nil {
		return err
	}
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	for {
		err := unix.Sendmsg(int(l), b, oob, nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// wait blocks until the launcher says k.
func (l launcher) wait(k kind) error {
	buf := make([]byte, maxMessage)
	for {
		n, _, err := unix.Recvfrom(int(l), buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for %q: %w", k, err)
		}
		if n == 0 {
			return fmt.Errorf("wait for %q: %w", k, io.ErrUnexpectedEOF)
		}
		var m message
		if err := json.Unmarshal(buf[:n], &m); err != nil {
			return fmt.Errorf("wait for %q: %w", k, err)
		}
		if m.Kind != k {
			return fmt.Errorf("wait for %q: got %q", k, m.Kind)
		}
		return nil
	}
}

// alive reports whether the launcher still holds its end: a process in a pid
// namespace of its own cannot see its parent by getppid(2).
func (l launcher) alive() bool {
	p := []unix.PollFd{{Fd: int32(l), Events: unix.POLLRDHUP}}
	for {
		_, err := unix.Poll(p, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && p[0].Revents&(unix.POLLHUP|unix.POLLRDHUP|unix.POLLERR) == 0
	}
}
