package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// maxForwards bounds the forwards that an engine may ask for. Each is at least one
// descriptor.
const maxForwards = 1 << 16

// Forward is a group of sockets that an engine asked for while it ran. The monitor
// keeps them, so that the next engine goes on with the same ids.
type Forward struct {
	ID int // from 1 on, never used again
	// Spec is the engine's, as it is.
	Spec    json.RawMessage
	Bound   []netip.AddrPort // with real ports
	Sockets []*os.File       // as those of StartMessage; whoever gets the Forward owns them
}

// forward is a Forward in the monitor.
type forward struct {
	spec  json.RawMessage
	group group
}

// forwards are those that were asked for.
type forwards struct {
	last int // id given last
	open map[int]forward
}

type listenRequest struct {
	Listen Listen          `json:"listen"`
	Spec   json.RawMessage `json:"spec"`
}

type listenReply struct {
	Failure failure          `json:"failure"`
	ID      int              `json:"id,omitempty"`
	Bound   []netip.AddrPort `json:"bound,omitempty"`
}

type unlistenRequest struct {
	ID int `json:"id"`
}

type unlistenReply struct {
	Failure failure `json:"failure"`
}

// forwardBody is a Forward in kindStart, whose sockets come behind the listeners.
type forwardBody struct {
	ID      int              `json:"id"`
	Spec    json.RawMessage  `json:"spec"`
	Bound   []netip.AddrPort `json:"bound"`
	Sockets int              `json:"sockets"`
}

// bodies are all forwards by id, and their sockets in the same order.
func (f *forwards) bodies() (out []forwardBody, fds []int) {
	for _, id := range slices.Sorted(maps.Keys(f.open)) {
		o := f.open[id]
		out = append(out, forwardBody{ID: id, Spec: o.spec, Bound: o.group.bound, Sockets: len(o.group.fds)})
		fds = append(fds, o.group.fds...)
	}
	return out, fds
}

func (f *forwards) close() {
	for _, o := range f.open {
		closeAll(o.group.fds)
	}
	clear(f.open)
}

// add binds the sockets of a request. Only those of internet protocols: the engine
// may not make files.
func (f *forwards) add(req listenRequest) (id int, g group, err error) {
	if len(f.open) >= maxForwards {
		return 0, group{}, &ListenError{req.Listen.Network, fmt.Sprint(req.Listen.Addrs), unix.ENOSPC}
	}
	if g, err = req.Listen.listen(); err != nil {
		return 0, group{}, err
	}
	f.last++
	f.open[f.last] = forward{req.Spec, g}
	return f.last, g, nil
}

func (m *monitor) replyListen(e *engine, msg *message) error {
	var req listenRequest
	if err := msg.decode(&req); err != nil {
		return err
	}
	if !m.cfg.Forwards || req.Listen.Path != "" || req.Listen.Network != "tcp" && req.Listen.Network != "udp" {
		return fmt.Errorf("%w: to listen %s asked for", errProtocol, req.Listen.Network)
	}
	id, g, err := m.forwards.add(req)
	return e.conn.send(kindListen, msg.id, listenReply{newFailure(err), id, g.bound}, g.fds)
}

func (m *monitor) replyUnlisten(e *engine, msg *message) error {
	var req unlistenRequest
	if err := msg.decode(&req); err != nil {
		return err
	}
	f, ok := m.forwards.open[req.ID]
	if !ok {
		return e.conn.send(kindUnlisten, msg.id, unlistenReply{newFailure(fmt.Errorf("forward %d: %w", req.ID, unix.ENOENT))}, nil)
	}
	closeAll(f.group.fds)
	delete(m.forwards.open, req.ID)
	return e.conn.send(kindUnlisten, msg.id, unlistenReply{}, nil)
}

// Listen lets the monitor bind sockets for the addresses of l, which are those of
// "tcp" or "udp", and remember spec with them. Only where Config.Forwards is set;
// asked for otherwise, the monitor ends the engine. The error is the monitor's
// *ListenError in words, and unwraps to its errno.
func (c *Client) Listen(ctx context.Context, l Listen, spec json.RawMessage) (*Forward, error) {
	msg, err := c.request(ctx, kindListen, listenRequest{l, spec})
	if err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	defer msg.closeFiles()
	var reply listenReply
	if err := msg.decode(&reply); err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	if err := reply.Failure.err(); err != nil {
		return nil, err
	}
	return &Forward{ID: reply.ID, Spec: spec, Bound: reply.Bound, Sockets: takeFiles(msg, 0, len(msg.fds))}, nil
}

// Unlisten lets the monitor close the sockets of the forward id and forget it.
func (c *Client) Unlisten(ctx context.Context, id int) error {
	msg, err := c.request(ctx, kindUnlisten, unlistenRequest{id})
	if err != nil {
		return fmt.Errorf("end forward %d: %w", id, err)
	}
	defer msg.closeFiles()
	var reply unlistenReply
	if err := msg.decode(&reply); err != nil {
		return fmt.Errorf("end forward %d: %w", id, err)
	}
	return errors.Join(reply.Failure.err())
}

// takeFiles takes n descriptors of a message from the index first on.
func takeFiles(msg *message, first, n int) []*os.File {
	files := make([]*os.File, n)
	for i := range files {
		files[i] = os.NewFile(uintptr(msg.take(first+i)), "listener")
	}
	return files
}
