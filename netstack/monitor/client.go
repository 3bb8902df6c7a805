package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/confine"
	"slipway/netstack/tap"
)

// socketFD is where monitor and engine find their socket.
const socketFD = 3

// Bounds of what an engine takes.
const (
	maxStartBody  = 16 << 20 // bytes
	maxStartFiles = 1 << 16
	startTimeout  = 10 * time.Second
	// maxRequests is how many requests may wait for the monitor at a time.
	maxRequests = 64
	// resolversAge is how long an answer of Resolvers is used again.
	resolversAge = time.Second
)

// ErrBusy is returned when too many requests wait for the monitor.
var ErrBusy = errors.New("too many requests to the monitor")

// ErrGone is returned when the monitor has gone.
var ErrGone = errors.New("the monitor has gone")

// StartMessage is what an engine starts with. It owns the files.
type StartMessage struct {
	Config    json.RawMessage // Config.Engine
	Name      string          // of the device in the container
	Device    *os.File
	Offload   tap.Offload
	MAC       net.HardwareAddr // of the device's other end: the container's
	Listeners [][]*os.File     // as Config.Listen; who serves one makes it non-blocking
	Kernel    bool             // Client.Sockets may be asked
	Restarts  int              // engines before this one
	Container string           // Config.Container
	Namespace uint64           // inode of the container's network namespace; 0: not known
	Forwards  []Forward        // that earlier engines asked for, by id
}

// Client is the engine's connection to its monitor. Its methods may be called by
// several goroutines at once, and work after confine.Lock.
type Client struct {
	conn *conn
	done chan struct{}

	mu      sync.Mutex // guards the following fields
	nextID  uint64
	waiting map[uint64]chan *message

	resolvers   []netip.AddrPort
	resolversAt time.Time

	status   Status
	statusAt time.Time
}

// Connect is the first thing that an engine does: it makes the process non-dumpable
// and fetches what it shall do from the monitor at descriptor 3.
func Connect() (*Client, *StartMessage, error) {
	if err := confine.NonDumpable(); err != nil {
		return nil, nil, err
	}
	// The kernel forgets the parent-death signal when it executes a file with
	// capabilities (setcap cap_net_bind_service), prctl(2). The end of the socket says
	// the same, only later when this process hangs.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return nil, nil, fmt.Errorf("set parent-death signal: %w", err)
	}
	conn, err := newConn(socketFD, maxStartBody, maxStartFiles)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the monitor: %w", err)
	}
	start, err := receiveStart(conn)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connect to the monitor: %w", err), conn.close())
	}
	c := &Client{conn: conn, done: make(chan struct{}), waiting: map[uint64]chan *message{}}
	go c.read()
	return c, start, nil
}

func receiveStart(c *conn) (*StartMessage, error) {
	if err := c.unix.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return nil, err
	}
	if err := c.send(kindHello, 0, nil, nil); err != nil {
		return nil, err
	}
	msg, err := c.recv()
	if err != nil {
		return nil, err
	}
	defer msg.closeFiles()
	if err := c.unix.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	var body startBody
	if msg.kind != kindStart {
		return nil, fmt.Errorf("%w: got %q, want %q", errProtocol, msg.kind, kindStart)
	}
	if err := msg.decode(&body); err != nil {
		return nil, err
	}
	want := 1
	for _, n := range body.Groups {
		want += n
	}
	for _, f := range body.Forwards {
		want += f.Sockets
	}
	if len(msg.fds) != want {
		return nil, fmt.Errorf("%w: %d descriptors came, want %d", errProtocol, len(msg.fds), want)
	}
	s := &StartMessage{
		Config: body.Config, Name: body.Name, Offload: tap.Offload(body.Offload), MAC: body.MAC,
		Kernel: body.Kernel, Restarts: body.Restarts, Container: body.Container, Namespace: body.Namespace,
		Device: os.NewFile(uintptr(msg.take(0)), "tap:"+body.Name),
	}
	next := 1
	for _, n := range body.Groups {
		s.Listeners = append(s.Listeners, takeFiles(msg, next, n))
		next += n
	}
	for _, f := range body.Forwards {
		s.Forwards = append(s.Forwards, Forward{ID: f.ID, Spec: f.Spec, Bound: f.Bound, Sockets: takeFiles(msg, next, f.Sockets)})
		next += f.Sockets
	}
	return s, nil
}

// Ready tells the monitor that this engine serves.
func (c *Client) Ready() error { return c.conn.send(kindReady, 0, nil, nil) }

// Done is closed when the monitor has gone; the engine ends then.
func (c *Client) Done() <-chan struct{} { return c.done }

// Sockets returns n sockets made in the container's namespace, as
// netns.Target.Sockets: descriptors, which the caller closes. Only where
// StartMessage.Kernel is set; asked for otherwise, the monitor ends the engine.
func (c *Client) Sockets(ctx context.Context, family, n int) ([]int, error) {
	msg, err := c.request(ctx, kindSockets, socketsRequest{Family: family, N: n})
	if err != nil {
		return nil, fmt.Errorf("namespace sockets: %w", err)
	}
	defer msg.closeFiles()
	var reply socketsReply
	if err := msg.decode(&reply); err != nil {
		return nil, fmt.Errorf("namespace sockets: %w", err)
	}
	if err := reply.Failure.err(); err != nil {
		return nil, fmt.Errorf("namespace sockets: %w", err)
	}
	fds := make([]int, len(msg.fds))
	for i := range fds {
		fds[i] = msg.take(i)
	}
	return fds, nil
}

// Resolvers returns the host's resolvers, at most a second old. The zone of a
// link-local address is an interface index.
func (c *Client) Resolvers(ctx context.Context) ([]netip.AddrPort, error) {
	c.mu.Lock()
	list, at := c.resolvers, c.resolversAt
	c.mu.Unlock()
	if !at.IsZero() && time.Since(at) < resolversAge {
		return list, nil
	}
	msg, err := c.request(ctx, kindResolvers, nil)
	if err != nil {
		return nil, fmt.Errorf("resolvers: %w", err)
	}
	defer msg.closeFiles()
	var reply resolversReply
	if err := msg.decode(&reply); err != nil {
		return nil, fmt.Errorf("resolvers: %w", err)
	}
	if err := reply.Failure.err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resolvers, c.resolversAt = reply.Resolvers, time.Now()
	return reply.Resolvers, nil
}

// request sends a request and waits for its reply.
func (c *Client) request(ctx context.Context, kind string, body any) (*message, error) {
	reply := make(chan *message, 1)
	c.mu.Lock()
	if len(c.waiting) >= maxRequests {
		c.mu.Unlock()
		return nil, ErrBusy
	}
	c.nextID++
	id := c.nextID
	c.waiting[id] = reply
	c.mu.Unlock()
	defer c.forget(id, reply)
	if err := c.conn.send(kind, id, body, nil); err != nil {
		return nil, err
	}
	select {
	case msg := <-reply:
		return msg, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.done:
		return nil, ErrGone
	}
}

// forget ends the wait for a reply; one that has come meanwhile is closed.
func (c *Client) forget(id uint64, reply chan *message) {
	c.mu.Lock()
	delete(c.waiting, id)
	c.mu.Unlock()
	select {
	case msg := <-reply:
		msg.closeFiles()
	default:
	}
}

// read hands replies to those who wait, until the monitor has gone.
func (c *Client) read() {
	defer close(c.done)
	for {
		msg, err := c.conn.recv()
		if err != nil {
			return
		}
		c.mu.Lock()
		reply, ok := c.waiting[msg.id]
		delete(c.waiting, msg.id)
		if ok {
			reply <- msg // has room for the one reply
		}
		c.mu.Unlock()
		if !ok {
			msg.closeFiles() // its request was given up
		}
	}
}
