package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// procfs is where the namespace of the run has its processes.
const procfs = "/proc"

// measureTimeout is what a measurement may take beyond the time that it was given.
const measureTimeout = 15 * time.Second

// side of the container from which the connections of a lane are made.
type side string

const (
	sideContainer side = "container" // from the container to the host
	sideHost      side = "host"      // from the host to a published port
)

// sideOf a row.
func sideOf(c Cell) side {
	switch {
	case c.Driver == DriverHost:
		return sideContainer
	case c.Workload == WorkloadPublished, c.Workload == WorkloadPublish1000, c.Workload == WorkloadPublish10000:
		return sideHost
	case c.Workload != WorkloadStream && c.Workload != WorkloadUDP && c.Workload != WorkloadUDPLossless && c.Direction == DirectionDown:
		return sideHost
	}
	return sideContainer
}

// lane is one way for a byte, set up and ready: a client, a server, and the driver
// between them. Every row of its driver, side and MTU is measured through it.
type lane struct {
	side      side
	mtu       int            // of the container's link, in bytes
	container int            // pid that holds the container's namespaces; 0: there is no container
	client    []string       // what a client's command line begins with; empty: it runs on the host
	server    []string       // the same for the server
	serving   bool           // a server of iperf3 is already there and stays
	dest      netip.AddrPort // where a client connects to, of iperf3's server
	other     netip.AddrPort // the same of any other server
	reverse   Direction      // the direction in which the server sends
	program   string         // path of the program that the driver has to run; "": none
	ports     []port         // that are published
	drivers   []*process     // whose CPU time counts; none: nobody's
	holder    *process       // of an empty container; nil: the container has a process of its own, or there is none
	tap       bool           // every byte passes the container's device
	began     time.Time      // when the driver was started
	ready     time.Duration  // from then to its being ready
	setup     []string       // commands that were run to set it up
	close     []func()       // undone in reverse order
}

// shut ends everything that the lane has started.
func (l *lane) shut() {
	for i := len(l.close) - 1; i >= 0; i-- {
		l.close[i]()
	}
	l.close = nil
}

// commands that measure a row, for the report.
func (l *lane) commands(b *bed, c Cell) []string {
	commands := append([]string(nil), l.setup...)
	w := workOf(c.Workload)
	if w.fresh {
		return commands
	}
	e, t := l.ends(b, c), c.timing(b.cfg.timing())
	if w.load != nil {
		server, client := w.load(b, e, c, t)
		if len(server.args) > 0 {
			commands = append(commands, strings.Join(server.args, " "))
		}
		commands = append(commands, strings.Join(client, " "))
	}
	if w.serve != nil && !e.serving {
		commands = append(commands, strings.Join(w.serve(b, e, c).args, " "))
	}
	return append(commands, strings.Join(w.ask(b, e, c, t), " "))
}

// alive is an error when a process of the driver has ended, or the container.
func (l *lane) alive() error {
	for _, p := range l.drivers {
		if err := p.ended(); err != nil {
			return err
		}
	}
	if l.holder == nil {
		return nil
	}
	if err := l.holder.ended(); err != nil {
		return fmt.Errorf("the container is gone: %w", err)
	}
	return nil
}

// because prefers the end of the driver to what followed from it. The kernel closes the
// sockets of a dying process before its parent hears of it, so that is waited for.
func (l *lane) because(err error) error {
	if len(l.drivers) == 0 && l.holder == nil || errors.Is(err, context.Canceled) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), deathTimeout)
	defer cancel()
	select {
	case <-until(ctx, func() bool { return l.alive() != nil }):
		return l.alive()
	case <-ctx.Done():
		return err
	}
}

// measure a row once.
func (l *lane) measure(ctx context.Context, b *bed, c Cell, t timing) (Sample, error) {
	w := workOf(c.Workload)
	ctx, cancel := context.WithTimeout(ctx, w.lasts(t)+measureTimeout)
	defer cancel()
	if w.fresh {
		return b.measureFresh(ctx, c, w)
	}
	if err := l.alive(); err != nil {
		return Sample{}, err
	}
	e := l.ends(b, c)
	stop, err := w.prepare(ctx, b, e, c, t)
	defer stop()
	if err != nil {
		return Sample{}, l.because(err)
	}
	before, err := l.read()
	if err != nil {
		return Sample{}, l.because(err)
	}
	checked := l.checkLater(ctx, b, e, w, t)
	s, err := w.run(ctx, b, e, c, t)
	cancel() // a check that has not begun shall not
	findings := <-checked
	if err != nil {
		return Sample{}, l.because(err)
	}
	after, err := l.read()
	if err != nil {
		return s, l.because(err)
	}
	if err := after.since(before, &s); err != nil {
		return s, l.because(err)
	}
	if findings != nil {
		return s, l.because(findings)
	}
	for _, got := range []string{s.SenderCongestion, s.ReceiverCongestion} {
		if got != "" && got != b.congestion {
			return s, fmt.Errorf("a socket of iperf3 used congestion control %s, want %s", got, b.congestion)
		}
	}
	if moved := after.link - before.link; l.tap && float64(moved) < enoughOfPayload*(float64(s.Bytes)-senderBuffer) {
		return s, fmt.Errorf("%d bytes of payload, but the container's device moved %d: %w", s.Bytes, moved, errElsewhere)
	}
	return s, nil
}

const (
	// enoughOfPayload that the container's device has to account for, of what did not wait in
	// the sender's socket at the end.
	enoughOfPayload = 0.8
	// senderBuffer in bytes is what a socket holds at most by net.ipv4.tcp_wmem's default. The
	// sender has counted it; on a slow path that is much of all.
	senderBuffer = 4 << 20
)

// ends of a connection.
type ends struct {
	client, server []string
	serving        bool
	dest           netip.AddrPort
	load           netip.AddrPort // where iperf3 connects to while something else is measured
	loadServing    bool           // its server is already there and stays
	reverse        Direction
	// container is the pid whose network namespace the container's sockets are in; 0: none.
	container int
}

// ends of the connections of a row.
func (l *lane) ends(b *bed, c Cell) ends {
	e := ends{client: l.client, server: l.server, dest: l.dest, reverse: l.reverse, container: l.container}
	switch {
	case c.DelayMillis > 0:
		far := b.far[c.distance()]
		e.server, e.dest = far.enter, netip.AddrPortFrom(far.address, serverPort)
	case workOf(c.Workload).other:
		e.dest, e.load, e.loadServing = l.other, l.dest, l.serving
	default:
		e.serving = l.serving
	}
	return e
}
