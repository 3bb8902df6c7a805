package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A thousand published ports, and ten thousand.
const (
	firstPort    = 20000
	lastPort     = firstPort + 1000 - 1
	lastWidePort = firstPort + 10000 - 1
)

// idleWait is how long nothing happens before memory is read.
const idleWait = 2 * time.Second

// measureFresh starts the driver of a row on a new container and says how long it took
// until it was ready, and what memory it has then.
func (b *bed) measureFresh(ctx context.Context, c Cell, w work) (Sample, error) {
	d := lookDriver(c.Driver)
	start, last := d.start, 0
	switch c.Workload {
	case WorkloadPublish1000:
		start, last = d.many, lastPort
	case WorkloadPublish10000:
		start, last = d.wide, lastWidePort
	}
	program, reason := b.find(d)
	if reason != "" {
		return Sample{}, fmt.Errorf("%s: %s", c.Driver, reason)
	}
	l := &lane{side: sideOf(c), mtu: c.MTU, program: program}
	defer l.shut()
	began := time.Now()
	machine, err := readMachine()
	if err != nil {
		return Sample{}, err
	}
	if err := start(ctx, b, l); err != nil {
		return Sample{}, l.because(err)
	}
	l.ready = time.Since(l.began)
	// What it has when it says that it is ready, before anybody connects.
	after, err := l.read()
	if err != nil {
		return Sample{}, l.because(err)
	}
	// Each of them: a driver may say that it is ready and still be at it.
	for port := firstPort; port <= last; port++ {
		if err := answers(ctx, netip.AddrPortFrom(loopback, uint16(port))); err != nil {
			return Sample{}, l.because(fmt.Errorf("a published port: %w", err))
		}
	}
	s := Sample{Value: l.ready.Seconds(), Seconds: l.ready.Seconds()}
	if c.Workload == WorkloadIdle {
		if after, err = b.idle(ctx, l, c); err != nil {
			return Sample{}, l.because(err)
		}
		s.Value, s.Seconds = float64(after.rss), time.Since(l.began).Seconds()
	}
	return s, after.since(reading{at: began, machine: machine}, &s)
}

// idle opens the flows of a row and reads what the driver has after nothing has happened
// for a while.
func (b *bed) idle(ctx context.Context, l *lane, c Cell) (reading, error) {
	if c.Streams > 0 {
		e := l.ends(b, c)
		e.dest = l.other
		for _, s := range []command{
			echoServer(b, e, c),
			{b.generate(e.client, "idle", e.dest.String(), strconv.Itoa(c.Streams)), serving},
		} {
			p, err := launch(s.args, nil, s.watch)
			if err != nil {
				return reading{}, err
			}
			defer p.stop()
			if err := p.await(ctx, p.output.seen); err != nil {
				return reading{}, fmt.Errorf("open %d flows: %w", c.Streams, err)
			}
		}
	}
	timer := time.NewTimer(idleWait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return reading{}, ctx.Err()
	case <-timer.C:
		return l.read()
	}
}

// holdFlows opens so many connections, asks once on each, and keeps them until the
// process is killed: ADDR FLOWS.
func holdFlows(args []string, out io.Writer) error {
	flows, err := strconv.Atoi(args[1])
	if err != nil || flows < 1 || flows > echoMost {
		return fmt.Errorf("%w: %q flows, want 1 to %d", errGenerate, args[1], echoMost)
	}
	request := make([]byte, echoSize)
	request[0] = echoKeep
	var conn net.Conn
	for range flows {
		conn, err = net.DialTimeout("tcp4", args[0], patience)
		if err != nil {
			return fmt.Errorf("%w: %w", errGenerate, err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return fmt.Errorf("%w: %w", errGenerate, err)
		}
		if _, err := conn.Write(request); err != nil {
			return fmt.Errorf("%w: %w", errGenerate, err)
		}
		if _, err := io.ReadFull(conn, make([]byte, echoSize)); err != nil {
			return fmt.Errorf("%w: %w", errGenerate, err)
		}
	}
	if err := announce(out); err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("%w: %w", errGenerate, err)
	}
	_, err = io.Copy(io.Discard, conn) // until the server has gone
	return err
}

// answers says whether a connection is accepted; nobody listens behind it, so that it may
// be reset before we know.
func answers(ctx context.Context, dest netip.AddrPort) error {
	dialer := net.Dialer{Timeout: patience}
	conn, err := dialer.DialContext(ctx, "tcp", dest.String())
	if errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	if err != nil {
		return err
	}
	return conn.Close()
}
