package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// firstPort is the first of many published ports.
const firstPort = 20000

// manyPorts is how many ports a row publishes, 0 for one that is not about that.
func manyPorts(w Workload) int {
	switch w {
	case WorkloadPublish1000:
		return 1000
	case WorkloadPublish10000:
		return 10_000
	}
	return 0
}

// measureFresh starts the driver of a row on a new container and says how long it took
// until it was ready, and what memory it has then.
func (b *bed) measureFresh(ctx context.Context, c Cell, w work) (Sample, error) {
	d := lookDriver(c.Driver)
	start := d.start
	many := manyPorts(c.Workload)
	if many > 0 {
		start = d.many
	}
	program, reason := b.find(d)
	if reason != "" {
		return Sample{}, fmt.Errorf("%s: %s", c.Driver, reason)
	}
	l := &lane{side: sideOf(c), mtu: c.MTU, program: program, lastPort: firstPort + many - 1}
	defer l.shut()
	machine, err := readMachine()
	if err != nil {
		return Sample{}, err
	}
	if err := start(ctx, b, l); err != nil {
		return Sample{}, l.because(err)
	}
	l.ready = time.Since(l.began)
	if many > 0 {
		// Each of them: a driver may say that it is ready and still be at it.
		for port := firstPort; port <= l.lastPort; port++ {
			if err := answers(ctx, netip.AddrPortFrom(loopback, uint16(port))); err != nil {
				return Sample{}, l.because(fmt.Errorf("a published port: %w", err))
			}
		}
	}
	after, err := l.read()
	if err != nil {
		return Sample{}, l.because(err)
	}
	s := Sample{Value: l.ready.Seconds(), Seconds: l.ready.Seconds()}
	return s, after.since(reading{machine: machine}, &s)
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
