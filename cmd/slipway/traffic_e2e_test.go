//go:build e2e

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// dialFrom connects to addr, from a port of its own choice when port is not 0.
func dialFrom(network, addr string, port int) (net.Conn, error) {
	d := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
		return errors.Join(cerr, err)
	}}
	if port != 0 {
		d.LocalAddr = &net.TCPAddr{Port: port}
	}
	c, err := d.Dial(network, addr)
	for begin := time.Now(); port != 0 && errors.Is(err, syscall.EADDRNOTAVAIL) && time.Since(begin) < patience; {
		// The FIN of the connection before has not been acknowledged yet.
		c, err = d.Dial(network, addr)
	}
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(patience))
}

// agentDial: dial NETWORK ADDR.
func agentDial(args []string) (string, error) {
	c, err := dialFrom(args[0], args[1], 0)
	if err != nil {
		return "", err
	}
	return c.LocalAddr().String(), c.Close()
}

// agentChurn: churn ADDR N makes connections one after the other, each with a byte
// forth and back.
func agentChurn(args []string) (string, error) {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	return "", churn(args[0], n)
}

func churn(addr string, n int) error {
	for i := range n {
		if err := echoed("tcp", addr, 1, 0); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
	}
	return nil
}

// echoed connects to an echo server and checks its answer to n bytes.
func echoed(network, addr string, n, port int) error {
	c, err := dialFrom(network, addr, port)
	if err != nil {
		return err
	}
	defer c.Close()
	want := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(want)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(want)
		sent <- err
	}()
	got := make([]byte, n)
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("echo of %d bytes: %w", n, err)
	}
	if err := <-sent; err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the echo of %d bytes differs", n)
	}
	if port != 0 {
		// Whoever closes first keeps the ports in TIME_WAIT: let it be the server.
		_, err = c.Read(got)
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("wait for the server's FIN: %w", err)
		}
	}
	return nil
}

// agentTalk: talk ADDR PORT SIZE is an echo, from that port if it is not 0; then the
// server has to close first.
func agentTalk(args []string) (string, error) {
	port, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	return "", echoed("tcp", args[0], n, port)
}

// agentMany: many ADDR N SIZE makes N echoes at once.
func agentMany(args []string) (string, error) {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	size, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	return "", many(args[0], n, size)
}

func many(addr string, n, size int) error {
	errs := make(chan error, n)
	for range n {
		go func() { errs <- echoed("tcp", addr, size, 0) }()
	}
	var all error
	for range n {
		all = errors.Join(all, <-errs)
	}
	return all
}

// agentPacket: packet NETWORK ADDR SIZE is an echo of one datagram.
func agentPacket(args []string) (string, error) {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	return "", packet(args[0], args[1], n)
}

// packet sends a datagram of n bytes to an echo server and checks the answer.
func packet(network, addr string, n int) error {
	c, err := net.Dial(network, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	want := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(want)
	if _, err := c.Write(want); err != nil {
		return err
	}
	got := make([]byte, 1<<16)
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	k, err := c.Read(got)
	if err != nil {
		return err
	}
	if !bytes.Equal(got[:k], want) {
		return fmt.Errorf("%d bytes came back, and differ from the %d sent", k, n)
	}
	return nil
}

// listen: listen NETWORK ADDR.
func (s *agentState) listen(args []string) (string, error) {
	l, err := net.Listen(args[0], args[1])
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	s.listeners[port] = l
	return port, err
}

// echo: echo NETWORK ADDR serves, also after the reply.
func (s *agentState) echo(args []string) (string, error) {
	if strings.HasPrefix(args[0], "udp") {
		c, err := net.ListenPacket(args[0], args[1])
		if err != nil {
			return "", err
		}
		go echoPackets(c)
		return "", nil
	}
	l, err := net.Listen(args[0], args[1])
	if err != nil {
		return "", err
	}
	go echoStreams(l)
	return "", nil
}

// closeFirst: closefirst NETWORK ADDR serves like closeFirst, also after the reply.
func (s *agentState) closeFirst(args []string) (string, error) {
	l, err := net.Listen(args[0], args[1])
	if err != nil {
		return "", err
	}
	go closeFirst(l)
	return "", nil
}

func echoStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func echoPackets(c net.PacketConn) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteTo(b[:n], from)
		}
	}
}

// agentSend: send ADDR WHAT connects and does as script says.
func agentSend(args []string) (string, error) {
	c, err := dialFrom("tcp", args[0], 0)
	if err != nil {
		return "", err
	}
	return script(c.(*net.TCPConn), args[1])
}

// accept: accept PORT WHAT takes a connection and does as script says.
func (s *agentState) accept(args []string) (string, error) {
	c, err := s.listeners[args[0]].Accept()
	if err != nil {
		return "", err
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	return script(c.(*net.TCPConn), args[1])
}

// halfCloseBytes is what is sent in the direction that is left open, more than
// buffers on the way hold.
const halfCloseBytes = 16 << 20

// script plays one side of a connection. speak and listen are the sides of one that is
// half closed, reset and suffer those of one that is reset.
func script(c *net.TCPConn, what string) (string, error) {
	defer c.Close()
	b := make([]byte, 16)
	switch what {
	case "listen": // says hello, closes its half, and goes on to read
		if _, err := io.WriteString(c, "hello"); err != nil {
			return "", err
		}
		if err := c.CloseWrite(); err != nil {
			return "", err
		}
		n, err := io.Copy(io.Discard, c)
		if err == nil && n != halfCloseBytes {
			err = fmt.Errorf("%d bytes after the own FIN, want %d", n, halfCloseBytes)
		}
		return "", err
	case "speak": // reads to the end, and answers after that
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "hello" {
			return "", fmt.Errorf("got %q, %w", got, err)
		}
		_, err = c.Write(make([]byte, halfCloseBytes))
		return "", err
	case "reset":
		if _, err := io.ReadFull(c, b[:5]); err != nil {
			return "", err
		}
		return "", c.SetLinger(0)
	case "suffer":
		if _, err := io.WriteString(c, "hello"); err != nil {
			return "", err
		}
		n, err := c.Read(b)
		return string(b[:n]), err
	}
	return "", fmt.Errorf("no script %q", what)
}

// swap: swap PORT BYTES FLOWS takes connections on a listener, swap ADDR BYTES FLOWS makes
// them, all at once; see exchange. It returns who is at their other ends.
func (s *agentState) swap(args []string) (string, error) {
	n, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return "", err
	}
	flows, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	var mu sync.Mutex
	peers := map[string]bool{}
	err = exchangeAll(flows, n, func() (net.Conn, error) {
		open := func() (net.Conn, error) { return dialFrom("tcp", args[0], 0) }
		if l := s.listeners[args[0]]; l != nil {
			open = l.Accept
		}
		c, err := open()
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(c.RemoteAddr().String())
		mu.Lock()
		defer mu.Unlock()
		peers[host] = true
		return c, err
	})
	return strings.Join(slices.Sorted(maps.Keys(peers)), " "), err
}

// exchangeAll is exchange on so many TCP connections at once, which open makes.
func exchangeAll(flows int, n int64, open func() (net.Conn, error)) error {
	errs := make(chan error, flows)
	for range flows {
		go func() {
			c, err := open()
			if err != nil {
				errs <- err
				return
			}
			defer c.Close()
			if err = exchange(c.(*net.TCPConn), n); err != nil {
				err = fmt.Errorf("%v-%v: %w", c.LocalAddr(), c.RemoteAddr(), err)
			}
			errs <- err
		}()
	}
	var all error
	for range flows {
		all = errors.Join(all, <-errs)
	}
	return all
}

// exchange sends n random bytes and their SHA-256 while it receives as many, and
// checks theirs. It fails when nothing moves for a while.
func exchange(c *net.TCPConn, n int64) error {
	p := patient{c}
	sent := make(chan error, 1)
	go func() {
		var seed [32]byte
		for i := range seed {
			seed[i] = byte(rand.Uint32())
		}
		sum := sha256.New()
		_, err := io.CopyBuffer(io.MultiWriter(sum, p), io.LimitReader(rand.NewChaCha8(seed), n), make([]byte, 256<<10))
		if err == nil {
			_, err = p.Write(sum.Sum(nil))
		}
		sent <- errors.Join(err, c.CloseWrite())
	}()
	sum := sha256.New()
	got, err := io.CopyBuffer(sum, io.LimitReader(p, n), make([]byte, 256<<10))
	if err != nil || got != n {
		return fmt.Errorf("received %d of %d bytes: %w", got, n, err)
	}
	want, err := io.ReadAll(p)
	if err != nil || !bytes.Equal(want, sum.Sum(nil)) {
		return fmt.Errorf("SHA-256 of what came is %x, of what was sent %x: %w", sum.Sum(nil), want, err)
	}
	return <-sent
}

// patient is a connection of which each Read and Write may take a while. Unlike its
// connection it gives io.Copy no way to go without a buffer.
type patient struct{ c *net.TCPConn }

func (p patient) Read(b []byte) (int, error) {
	if err := p.c.SetReadDeadline(time.Now().Add(3 * patience)); err != nil {
		return 0, err
	}
	return p.c.Read(b)
}

func (p patient) Write(b []byte) (int, error) {
	if err := p.c.SetWriteDeadline(time.Now().Add(3 * patience)); err != nil {
		return 0, err
	}
	return p.c.Write(b)
}

// onlyReader hides the ways of io.Copy to go without a buffer.
type onlyReader struct{ io.Reader }

// spread: spread ADDR N sends a datagram from each of N sockets, which stay open, and
// waits for the answers.
func (s *agentState) spread(args []string) (string, error) {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	for range n {
		c, err := net.Dial("udp", args[0])
		if err != nil {
			return "", err
		}
		s.sockets = append(s.sockets, c)
		if _, err := c.Write([]byte("hello")); err != nil {
			return "", err
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return "", err
		}
		if _, err := c.Read(make([]byte, 16)); err != nil {
			return "", err
		}
	}
	return "", nil
}

// hold: hold ADDR N begins to connect N times, and does not wait for it.
func (s *agentState) hold(args []string) (string, error) {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	for range n {
		s.held.Go(func() {
			c, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", args[0])
			if err == nil {
				defer c.Close()
				_, _ = c.Read(make([]byte, 1))
			}
		})
	}
	return "", nil
}
