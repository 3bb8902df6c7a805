package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of one packet. The kernel takes 253 descriptors (SCM_MAX_FD in
// include/net/scm.h); maxChunk bytes of a body are maxPacket at most in base64.
const (
	maxPacket = 64 << 10
	maxChunk  = 44 << 10
	maxFiles  = 250
)

// sendTimeout bounds how long the other side may leave its socket full. A variable for the
// tests.
var sendTimeout = 5 * time.Second

// errUnsent is wrapped by errors of messages of which nothing was sent, since there were too
// many descriptors in flight. The connection is as good as before.
var errUnsent = errors.New("nothing was sent")

// errProtocol is wrapped by errors of a peer that does not keep to the protocol.
var errProtocol = errors.New("protocol error")

// packet is one packet. A message whose body or descriptors do not fit is several,
// all but the last with More.
type packet struct {
	Kind  string `json:"kind"`
	ID    uint64 `json:"id,omitempty"`    // of a request and its reply
	Body  []byte `json:"body,omitempty"`  // part of a JSON value
	Files int    `json:"files,omitempty"` // descriptors beside this packet
	More  bool   `json:"more,omitempty"`
}

// message is a received message. Whoever receives it owns its descriptors.
type message struct {
	kind string
	id   uint64
	body []byte
	fds  []int
}

func (m *message) closeFiles() {
	closeAll(m.fds)
	m.fds = nil
}

// take hands the descriptor i over; the rest stays the message's.
func (m *message) take(i int) int {
	fd := m.fds[i]
	m.fds[i] = -1
	return fd
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// decode reads the body into v.
func (m *message) decode(v any) error {
	if err := json.Unmarshal(m.body, v); err != nil {
		return fmt.Errorf("%w: %s message: %w", errProtocol, m.kind, err)
	}
	return nil
}

// conn is one end of a connection. send may be called by several goroutines, recv
// by one.
type conn struct {
	unix     *net.UnixConn
	maxBody  int // bytes of a received message
	maxFiles int // descriptors of a received message
	buf, oob []byte

	sending sync.Mutex // keeps the packets of a message together
}

// newConn makes a connection of the socket fd, which it owns.
func newConn(fd, maxBody, maxMessageFiles int) (*conn, error) {
	f := os.NewFile(uintptr(fd), "monitor socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d: a %T, not a unix socket: %w", fd, c, unix.EPROTOTYPE)
	}
	return &conn{
		unix: u, maxBody: maxBody, maxFiles: maxMessageFiles,
		buf: make([]byte, maxPacket), oob: make([]byte, unix.CmsgSpace(maxFiles*4)),
	}, nil
}

// socketPair returns a connected pair, both ends close-on-exec.
func socketPair() (ours, theirs int, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("socket pair: %w", err)
	}
	return p[0], p[1], nil
}

func (c *conn) close() error { return c.unix.Close() }

// send sends v as the body of a message with the descriptors fds, which stay the
// caller's.
func (c *conn) send(kind string, id uint64, v any, fds []int) error {
	var body []byte
	if v != nil {
		var err error
		if body, err = json.Marshal(v); err != nil {
			return fmt.Errorf("send %s: %w", kind, err)
		}
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	deadline := time.Now().Add(sendTimeout)
	if err := c.unix.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("send %s: %w", kind, err)
	}
	for first := true; first || len(body) > 0 || len(fds) > 0; first = false {
		b, f := min(len(body), maxChunk), min(len(fds), maxFiles)
		p := packet{Kind: kind, ID: id, Body: body[:b], Files: f, More: len(body) > b || len(fds) > f}
		err := c.write(p, fds[:f], deadline)
		if first && errors.Is(err, unix.ETOOMANYREFS) {
			return fmt.Errorf("send %s: %w: %w", kind, errUnsent, err)
		}
		if err != nil {
			return fmt.Errorf("send %s: %w", kind, err)
		}
		body, fds = body[b:], fds[f:]
	}
	return nil
}

func (c *conn) write(p packet, fds []int, deadline time.Time) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		_, _, err := c.unix.WriteMsgUnix(b, oob, nil)
		// A user may have as many descriptors in flight as one process may have open
		// (too_many_unix_fds in net/unix/scm.c): wait until somebody has taken some.
		if !errors.Is(err, unix.ETOOMANYREFS) {
			return err
		}
		time.Sleep(time.Millisecond)
		if time.Now().After(deadline) {
			return err
		}
	}
}

// recv returns the next message; io.EOF when the peer has gone.
func (c *conn) recv() (*message, error) {
	m := &message{}
	for {
		p, fds, err := c.read()
		m.fds = append(m.fds, fds...)
		if err == nil {
			err = m.add(p, c)
		}
		if err != nil {
			m.closeFiles()
			return nil, err
		}
		if !p.More {
			return m, nil
		}
	}
}

// add appends a packet to the message and checks the bounds.
func (m *message) add(p packet, c *conn) error {
	if m.kind == "" {
		m.kind, m.id = p.Kind, p.ID
	}
	m.body = append(m.body, p.Body...)
	switch {
	case p.Kind == "" || p.Kind != m.kind || p.ID != m.id:
		return fmt.Errorf("%w: %q inside of %q", errProtocol, p.Kind, m.kind)
	case len(m.body) > c.maxBody:
		return fmt.Errorf("%w: %s message of more than %d bytes", errProtocol, m.kind, c.maxBody)
	case len(m.fds) > c.maxFiles:
		return fmt.Errorf("%w: %s message with more than %d descriptors", errProtocol, m.kind, c.maxFiles)
	case p.More && len(p.Body) == 0 && p.Files == 0:
		return fmt.Errorf("%w: empty part of a %s message", errProtocol, m.kind)
	}
	return nil
}

func (c *conn) read() (p packet, fds []int, err error) {
	// ReadMsgUnix sets MSG_CMSG_CLOEXEC.
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(c.buf, c.oob)
	if err != nil {
		return p, nil, err
	}
	if fds, err = parseRights(c.oob[:oobn]); err != nil {
		return p, fds, err
	}
	if n == 0 {
		return p, fds, io.EOF
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return p, fds, fmt.Errorf("%w: truncated packet", errProtocol)
	}
	if err := json.Unmarshal(c.buf[:n], &p); err != nil {
		return p, fds, fmt.Errorf("%w: %w", errProtocol, err)
	}
	if p.Files != len(fds) {
		return p, fds, fmt.Errorf("%w: %d descriptors announced, %d came", errProtocol, p.Files, len(fds))
	}
	return p, fds, nil
}

func parseRights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: control message: %w", errProtocol, err)
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&m)
		fds = append(fds, got...)
		if err != nil {
			return fds, fmt.Errorf("%w: control message: %w", errProtocol, err)
		}
	}
	return fds, nil
}

// failure is an error on its way through a connection.
type failure struct {
	Text  string `json:"text,omitempty"` // empty: no error
	Errno int    `json:"errno,omitempty"`
}

func newFailure(err error) failure {
	if err == nil {
		return failure{}
	}
	f := failure{Text: err.Error()}
	var e syscall.Errno
	if errors.As(err, &e) {
		f.Errno = int(e)
	}
	return f
}

// err is the error with the sender's words, which unwraps to the errno.
func (f failure) err() error {
	if f.Text == "" {
		return nil
	}
	return &remoteError{f}
}

type remoteError struct{ f failure }

func (e *remoteError) Error() string { return e.f.Text }

func (e *remoteError) Unwrap() error {
	if e.f.Errno == 0 {
		return nil
	}
	return syscall.Errno(e.f.Errno)
}
