package bench

import (
	"context"
	"fmt"
	"time"
)

// command is a server and what it prints once it can be connected to.
type command struct {
	args  []string
	watch string
}

// work is how a workload is done: a server, a client, and what the client prints. Each is
// started anew for every measurement.
type work struct {
	// serve is the server; nil: the workload needs none.
	serve func(b *bed, e ends, c Cell) command
	// ask is the client, which ends by itself.
	ask func(b *bed, e ends, c Cell, t timing) []string
	// read turns the client's output into a sample.
	read func(out []byte, c Cell) (Sample, error)
	// load runs beside it; nil: nothing does.
	load func(b *bed, e ends, c Cell, t timing) (command, []string)
	// search takes the place of one client by several, whose settings it chooses; nil: one.
	search func(ctx context.Context, b *bed, e ends, c Cell) (Sample, error)
	// needs are programs beyond iperf3.
	needs []string
	other bool // it is not iperf3's server that is connected to
	fresh bool // the driver is started anew, and that is what is measured
	tcp   bool // its connections can be looked at while it runs
	brief bool // each of them for less time than a look takes
	// extra is how long it takes beyond the time of one measurement; whole: at all.
	extra, whole time.Duration
}

// overhead of starting and ending a server and a client.
const overhead = 400 * time.Millisecond

// workOf a workload.
func workOf(w Workload) work {
	switch w {
	case WorkloadUDP:
		return work{serve: iperf3Server, ask: iperf3Datagrams, read: parseIperf3UDP, extra: overhead}
	case WorkloadUDPLossless:
		return work{ask: iperf3Datagrams, search: searchLossless, whole: searchSteps * (searchTime + overhead)}
	case WorkloadLatency:
		return work{serve: echoServer, ask: latencyClient, read: parseGenerated, other: true, tcp: true, extra: overhead}
	case WorkloadLatencyLoaded:
		return work{serve: echoServer, ask: latencyClient, read: parseGenerated, load: iperf3Load, other: true, tcp: true, extra: 2*overhead + loadLead}
	case WorkloadConnect:
		return work{serve: echoServer, ask: connectClient, read: parseGenerated, other: true, tcp: true, brief: true, extra: overhead}
	case WorkloadHTTP:
		return work{serve: nginxServer, ask: wrkClient, read: parseWrk, other: true, tcp: true, needs: []string{"nginx", "wrk"}, extra: overhead}
	case WorkloadDNS:
		return work{serve: dnsServer, ask: dnsClient, read: parseGenerated, other: true, extra: overhead}
	case WorkloadStart:
		return work{fresh: true, whole: time.Second}
	case WorkloadPublish1000:
		return work{fresh: true, whole: 3 * time.Second}
	case WorkloadPublish10000:
		return work{fresh: true, whole: 10 * time.Second}
	default: // WorkloadStream, WorkloadPublished
		return work{serve: iperf3Server, ask: iperf3Stream, read: parseIperf3, tcp: true, extra: overhead}
	}
}

// lasts is about how long one measurement takes.
func (w work) lasts(t timing) time.Duration {
	if w.whole > 0 {
		return w.whole
	}
	return t.seconds + t.omitted + w.extra
}

// prepare starts what a measurement needs before it begins. stop ends that, also when
// there is an error.
func (w work) prepare(ctx context.Context, b *bed, e ends, c Cell, t timing) (stop func(), err error) {
	var started []*process
	stop = func() {
		for i := len(started) - 1; i >= 0; i-- {
			started[i].stop()
		}
	}
	serve := func(s command) error {
		p, err := launch(s.args, nil, s.watch)
		if err != nil {
			return err
		}
		started = append(started, p)
		if err := p.await(ctx, p.output.seen); err != nil {
			return fmt.Errorf("server: %w", err)
		}
		return nil
	}
	if w.serve != nil && !e.serving {
		if err := serve(w.serve(b, e, c)); err != nil {
			return stop, err
		}
	}
	if w.load == nil {
		return stop, nil
	}
	server, client := w.load(b, e, c, t)
	if len(server.args) > 0 {
		if err := serve(server); err != nil {
			return stop, err
		}
	}
	// TCP's slow start is over when the measurement begins.
	p, err := launch(client, nil, "")
	if err != nil {
		return stop, err
	}
	started = append(started, p)
	timer := time.NewTimer(loadLead)
	defer timer.Stop()
	select {
	case <-timer.C:
		return stop, nil
	case <-p.done:
		return stop, fmt.Errorf("load: %w", p.ended())
	case <-ctx.Done():
		return stop, ctx.Err()
	}
}

// run the client and read what it says.
func (w work) run(ctx context.Context, b *bed, e ends, c Cell, t timing) (Sample, error) {
	if w.search != nil {
		return w.search(ctx, b, e, c)
	}
	out, err := b.client(ctx, w.ask(b, e, c, t))
	if err != nil {
		return Sample{}, err
	}
	return w.read(out, c)
}

// in puts what runs a command elsewhere before it.
func in(enter []string, args ...string) []string {
	return append(enter[:len(enter):len(enter)], args...)
}
