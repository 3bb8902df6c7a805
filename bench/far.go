package bench

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"
)

// farRate of the paths of a run, in bytes a second. It is more than one flow reaches with
// the buffers that a kernel gives it at a round trip of 50 ms, so that there and beyond
// windows and buffers are the limit, and not the path.
const farRate = 2_000_000_000 / 8

// far is a host at the other end of a long path.
type far struct {
	enter   []string // what a command line begins with that shall run there
	address netip.Addr
}

// distance of a far host.
type distance struct{ millis, lostPerThousand int }

func (c Cell) distance() distance { return distance{c.DelayMillis, c.LostPerThousand} }

// timing of a row that takes longer than others: to fill the window of a long path takes
// TCP some ten round trips, and where packets get lost it goes up and down for tens of
// them.
func (c Cell) timing(t timing) timing {
	trips := func(n int) time.Duration { // in whole seconds
		return (time.Duration(n*c.DelayMillis)*time.Millisecond + time.Second - 1).Truncate(time.Second)
	}
	counted, omitted := 30, 20
	if c.LostPerThousand > 0 {
		counted, omitted = 60, 40
	}
	return timing{max(t.seconds, trips(counted)), max(t.omitted, trips(omitted))}
}

// farHost makes a host that is so far away from the run's own. The addresses are for
// benchmarks, RFC 2544.
func (b *bed) farHost(ctx context.Context, l *lane, d distance) (far, error) {
	pid, enter, err := b.container(ctx, l)
	if err != nil {
		return far{}, err
	}
	// Which number does not matter, as long as every path has its own.
	n := len(b.far)
	near, there := fmt.Sprintf("near%d", n), fmt.Sprintf("far%d", n)
	p, err := launch(b.generate(nil, "path", near, there, strconv.Itoa(d.millis), strconv.Itoa(d.lostPerThousand)), nil, serving)
	if err != nil {
		return far{}, err
	}
	l.close = append(l.close, p.stop)
	if err := p.await(ctx, p.output.seen); err != nil {
		return far{}, fmt.Errorf("long path: %w", err)
	}
	here, address := netip.AddrFrom4([4]byte{198, 18, byte(n), 1}), netip.AddrFrom4([4]byte{198, 18, byte(n), 2})
	if err := b.moveLink(there, pid); err != nil {
		return far{}, err
	}
	// What waits for the process behind a TUN device is no part of the path's queue.
	if err := b.configureLink(0, near, here, 0, pathPackets); err != nil {
		return far{}, err
	}
	if err := b.configureLink(pid, there, address, 0, pathPackets); err != nil {
		return far{}, err
	}
	return far{enter, address}, nil
}

// servePath is the process between the devices, until it is killed: NAME NAME
// MILLISECONDS LOST-PER-THOUSAND.
func servePath(args []string, out io.Writer) error {
	millis, err := strconv.Atoi(args[2])
	if err != nil || millis < 1 {
		return fmt.Errorf("%w: round trip of %q milliseconds", errGenerate, args[2])
	}
	lost, err := strconv.Atoi(args[3])
	if err != nil || lost < 0 || lost > 1000 {
		return fmt.Errorf("%w: %q lost of 1000 packets", errGenerate, args[3])
	}
	// Where packets get lost, TCP is slow enough for every single one to pass by itself.
	p := &Path{RoundTrip: time.Duration(millis) * time.Millisecond, Rate: farRate, Large: lost == 0, LostPerThousand: lost}
	if err := p.Open(args[0], args[1]); err != nil {
		return err
	}
	defer p.Close()
	if err := announce(out); err != nil {
		return err
	}
	return p.Run()
}
