package bench

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// procfs is where the namespace of the run has its processes.
const procfs = "/proc"

// measureTimeout is what a measurement may take beyond the time that iperf3 was given.
const measureTimeout = 15 * time.Second

// lane is one way for a byte, set up and ready: a client, a server, and the driver
// between them. It serves both directions of a workload.
type lane struct {
	client  []string       // what a client's command line begins with; empty: it runs on the host
	server  []string       // the same for the server
	serving bool           // a server is already there and stays
	port    uint16         // where the server listens
	dest    netip.AddrPort // where the client connects to
	reverse Direction      // the direction in which the server sends
	driver  *process       // whose CPU time counts; nil: nobody's
	setup   []string       // commands that were run to set it up
	close   []func()       // undone in reverse order
}

// shut ends everything that the lane has started.
func (l *lane) shut() {
	for i := len(l.close) - 1; i >= 0; i-- {
		l.close[i]()
	}
	l.close = nil
}

// commands that measure one direction, for the report.
func (l *lane) commands(b *bed, d Direction) []string {
	commands := append([]string(nil), l.setup...)
	if !l.serving {
		commands = append(commands, strings.Join(append(l.server[:len(l.server):len(l.server)], serverArgs(b.iperf3, l.port)...), " "))
	}
	return append(commands, strings.Join(append(l.client[:len(l.client):len(l.client)], clientArgs(b.iperf3, *l, d, b.cfg.Duration, omit)...), " "))
}

// alive is an error when the driver has ended.
func (l *lane) alive() error {
	if l.driver == nil {
		return nil
	}
	return l.driver.ended()
}

// because prefers the end of the driver to what followed from it.
func (l *lane) because(err error) error {
	if dead := l.alive(); dead != nil {
		return dead
	}
	return err
}

// measure sends one stream through the lane.
func (l *lane) measure(ctx context.Context, b *bed, d Direction, seconds, omitted time.Duration) (Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, seconds+omitted+measureTimeout)
	defer cancel()
	if err := l.alive(); err != nil {
		return Sample{}, err
	}
	if !l.serving {
		server, err := launch(append(l.server[:len(l.server):len(l.server)], serverArgs(b.iperf3, l.port)...), nil, listening)
		if err != nil {
			return Sample{}, err
		}
		defer server.stop()
		if err := server.await(ctx, server.output.seen); err != nil {
			return Sample{}, fmt.Errorf("server: %w", err)
		}
	}
	before, err := l.usage()
	if err != nil {
		return Sample{}, err
	}
	args := append(l.client[:len(l.client):len(l.client)], clientArgs(b.iperf3, *l, d, seconds, omitted)...)
	out, err := b.client(ctx, args)
	if err != nil {
		return Sample{}, l.because(err)
	}
	after, err := l.usage()
	if err != nil {
		return Sample{}, err
	}
	s, err := parseIperf3(out)
	if err != nil {
		return Sample{}, l.because(err)
	}
	cpu, err := after.since(before)
	if err != nil {
		return s, err
	}
	s.CPUSeconds = cpu.Seconds()
	for _, got := range []string{s.SenderCongestion, s.ReceiverCongestion} {
		if got != "" && got != b.congestion {
			return s, fmt.Errorf("a socket of iperf3 used congestion control %s, want %s", got, b.congestion)
		}
	}
	return s, nil
}

func (l *lane) usage() (usage, error) {
	if l.driver == nil {
		return usage{}, nil
	}
	return cpuUsage(procfs, l.driver.pid())
}
