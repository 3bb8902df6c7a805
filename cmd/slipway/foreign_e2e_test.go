//go:build e2e

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	// keepers are connections that carry wholeBytes each way, one after the other, while
	// each of breakers makes brokenFlows that are broken off.
	keepers, wholeBytes   = 8, 4 << 20
	breakers, brokenFlows = 16, 9
	// cutBytes bounds after how many bytes one is broken off.
	cutBytes = 512 << 10
)

// TestForeignBytes: while flows are reset, closed with data unread, and lose their sockets
// to whoever destroys them, on both sides and in mid-transfer, nobody ever receives a byte
// of another flow. Each direction of each flow carries a pattern of its own.
func TestForeignBytes(t *testing.T) {
	if !onPrivateHostWithin(t, 10*time.Minute) { // where a user may destroy sockets, too
		return
	}
	for _, offload := range []string{"auto", "off"} {
		for _, path := range []string{"outwards", "tap", "kernel"} {
			if path == "kernel" && offload == "off" {
				continue // no byte goes through the device
			}
			t.Run(fmt.Sprintf("offload=%s/%s", offload, path), func(t *testing.T) {
				options := []string{"--offload", offload, "--cap-add", "net_admin"}
				if path == "outwards" {
					a := newAgent(t, append(options, "--host-access", "loopback")...)
					s := serveMix(hostListen(t, "tcp4", "127.0.0.1:0"))
					r := a.try("mix", at(gateway4, portOf(t, s.listener.Addr())))
					report(t, r.Err, s.end(), r.Text)
					return
				}
				port := freeTCP(t)
				a := newAgent(t, append(options, "-p", at("127.0.0.1", port)+":80", "--publish-path", path)...)
				a.do("servemix", ":80")
				said, err := mix(at("127.0.0.1", port))
				report(t, a.try("mixed").Err, err, said)
			})
		}
	}
}

func report(t *testing.T, inside string, onHost error, said string) {
	t.Helper()
	if inside != "" {
		t.Errorf("in the container: %s", inside)
	}
	if onHost != nil {
		t.Errorf("on the host: %v", onHost)
	}
	t.Log(said)
}

// howToEnd is how a flow ends.
type howToEnd uint16

const (
	inOrder howToEnd = iota
	byReset
	unread    // closed with data in the receive queue
	destroyed // the socket that Slipway holds, or where that is gVisor's the own one
	howsToEnd
)

const mixMagic = 0x51e5_1de5_f10e_ed00

// mixFlow opens a flow: what the connecting side tells the other.
type mixFlow struct {
	Magic    uint64
	ID       uint32 // of the flow's two patterns: 2*ID from who connects, 2*ID+1 from who accepts
	End      howToEnd
	Accepter uint16 // who ends it: 1, or 0 for who connects
	Cut      uint64 // after so many bytes received
}

// pattern is the byte sequence of one direction: words of its id and their index.
type pattern struct {
	id  uint32
	at  uint64
	buf []byte // eight bytes longer than what is asked for at once
}

const patternPiece = 64 << 10

func newPattern(flow, side uint32) *pattern {
	return &pattern{id: 2*flow + side, buf: make([]byte, patternPiece+16)}
}

// next are the next n bytes, at most patternPiece, valid until the next call.
func (p *pattern) next(n int) []byte {
	skip := int(p.at % 8)
	for i := 0; i < skip+n; i += 8 {
		binary.BigEndian.PutUint64(p.buf[i:], uint64(p.id)<<32|uint64(uint32(p.at/8+uint64(i/8))))
	}
	p.at += uint64(n)
	return p.buf[skip : skip+n]
}

var errForeign = errors.New("foreign bytes")

// check compares what was received.
func (p *pattern) check(got []byte) error {
	at := p.at
	want := p.next(len(got))
	if bytes.Equal(got, want) {
		return nil
	}
	i := 0
	for got[i] == want[i] {
		i++
	}
	return fmt.Errorf("%w: pattern %#x, byte %d: got % x, want % x", errForeign, p.id, at+uint64(i), got[i:min(i+16, len(got))], want[i:min(i+16, len(want))])
}

// send writes n bytes of the pattern.
func (p *pattern) send(c patient, n uint64) error {
	for p.at < n {
		if _, err := c.Write(p.next(int(min(patternPiece, n-p.at)))); err != nil {
			return err
		}
	}
	return nil
}

// receive reads n bytes of the pattern, or to the end.
func (p *pattern) receive(c patient, n uint64) error {
	b := make([]byte, patternPiece)
	for p.at < n {
		k, err := c.Read(b[:min(patternPiece, n-p.at)])
		if err := p.check(b[:k]); err != nil {
			return err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// play is one side of a flow, 0 for who connected and 1 for who accepted. It closes c.
func (m *mixFlow) play(c *net.TCPConn, side uint32) error {
	defer c.Close()
	n := uint64(wholeBytes)
	if m.End != inOrder {
		n = 1 << 40 // more than anybody takes
	}
	sent := make(chan error, 1)
	go func() {
		err := newPattern(m.ID, side).send(patient{c}, n)
		if m.End == inOrder {
			err = errors.Join(err, c.CloseWrite())
		}
		sent <- err
	}()
	from := newPattern(m.ID, 1-side)
	if m.End == inOrder {
		err := from.receive(patient{c}, n)
		if err == nil {
			if k, end := (patient{c}).Read(make([]byte, 1)); k != 0 || !errors.Is(end, io.EOF) {
				err = fmt.Errorf("%d bytes after the last, %w", k, end)
			}
		}
		if err != nil {
			c.Close() // the sender's end
		}
		return errors.Join(err, <-sent)
	}
	if uint32(m.Accepter) == side {
		err := from.receive(patient{c}, m.Cut)
		if err == nil {
			err = m.breakOff(c)
		}
		c.Close()
		<-sent
		return err
	}
	err := from.receive(patient{c}, n)
	c.Close()
	end := <-sent
	if errors.Is(err, errForeign) || errors.Is(end, os.ErrDeadlineExceeded) {
		return errors.Join(err, end)
	}
	// The kernel tells of a reset once: who writes may be told, and who reads of an end.
	// What is unread when its connection is closed may have come a moment later.
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(end, syscall.ECONNRESET) || m.End == unread && errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("broken off (%d), this side reads %w, writes %w", m.End, err, end)
}

// breakOff ends a flow, all but the closing.
func (m *mixFlow) breakOff(c *net.TCPConn) error {
	switch m.End {
	case byReset:
		return c.SetLinger(0)
	case destroyed:
		// Both are no longer there where the other side was faster.
		err := netlink.SocketDestroy(c.RemoteAddr(), c.LocalAddr())
		if err != nil {
			err = netlink.SocketDestroy(c.LocalAddr(), c.RemoteAddr())
		}
		return err
	}
	return nil
}

// mix connects to a mixServer, and returns how many flows it was.
func mix(addr string) (string, error) {
	var ids atomic.Uint32
	var whole, broken atomic.Int64
	flow := func(m mixFlow) error {
		m.Magic, m.ID = mixMagic, ids.Add(1)
		c, err := dialFrom("tcp", addr, 0)
		if err != nil {
			return err
		}
		var head bytes.Buffer
		if err := binary.Write(&head, binary.BigEndian, &m); err != nil {
			return errors.Join(err, c.Close())
		}
		if _, err := c.Write(head.Bytes()); err != nil {
			return errors.Join(err, c.Close())
		}
		if err := m.play(c.(*net.TCPConn), 0); err != nil {
			return fmt.Errorf("flow %+v: %w", m, err)
		}
		return nil
	}
	errs := make(chan error, keepers+breakers)
	var breaking sync.WaitGroup
	done := make(chan struct{})
	for range keepers {
		go func() {
			for {
				if err := flow(mixFlow{}); err != nil {
					errs <- err
					return
				}
				whole.Add(1)
				select {
				case <-done:
					errs <- nil
					return
				default:
				}
			}
		}()
	}
	for i := range breakers {
		breaking.Go(func() {
			var all error
			for j := range brokenFlows {
				k := i + j // every end by every side
				err := flow(mixFlow{
					End:      1 + howToEnd(k)%(howsToEnd-1),
					Accepter: uint16(k / int(howsToEnd-1) % 2),
					Cut:      1 + rand.Uint64N(cutBytes),
				})
				if err == nil {
					broken.Add(1)
				}
				all = errors.Join(all, err)
			}
			errs <- all
		})
	}
	breaking.Wait()
	close(done)
	var all error
	for range keepers + breakers {
		all = errors.Join(all, <-errs)
	}
	return fmt.Sprintf("%d flows in order, %d broken off", whole.Load(), broken.Load()), all
}

// mixServer takes the flows of mix.
type mixServer struct {
	listener net.Listener
	flows    sync.WaitGroup

	mu  sync.Mutex // guards err
	err error
}

func serveMix(l net.Listener) *mixServer {
	s := &mixServer{listener: l}
	s.flows.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.flows.Go(func() {
				if err := s.serve(c.(*net.TCPConn)); err != nil {
					s.mu.Lock()
					s.err = errors.Join(s.err, err)
					s.mu.Unlock()
				}
			})
		}
	})
	return s
}

func (s *mixServer) serve(c *net.TCPConn) error {
	var m mixFlow
	if err := binary.Read(patient{c}, binary.BigEndian, &m); err != nil {
		return errors.Join(fmt.Errorf("head of a flow: %w", err), c.Close())
	}
	if m.Magic != mixMagic {
		return errors.Join(fmt.Errorf("%w: head of a flow: %+v", errForeign, m), c.Close())
	}
	if err := m.play(c, 1); err != nil {
		return fmt.Errorf("flow %+v: %w", m, err)
	}
	return nil
}

// end waits for the flows.
func (s *mixServer) end() error {
	s.listener.Close()
	s.flows.Wait()
	return s.err
}

// agentMix: mix ADDR.
func agentMix(args []string) (string, error) { return mix(args[0]) }

// serveMix: servemix ADDR serves mix until mixed.
func (s *agentState) serveMix(args []string) (string, error) {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return "", err
	}
	s.mix = serveMix(l)
	return "", nil
}

// mixed ends servemix, and says what was wrong with its flows.
func (s *agentState) mixed([]string) (string, error) { return "", s.mix.end() }
