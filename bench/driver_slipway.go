package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// slipwayAttach gives a new container a network by slipway attach.
func slipwayAttach(ctx context.Context, b *bed, l *lane, options ...string) error {
	pid, enter, err := b.container(ctx, l)
	if err != nil {
		return err
	}
	l.toHost(enter, gateway)
	l.tap = true
	return b.ready(ctx, l, append([]string{
		l.program, "attach", "--pid", strconv.Itoa(pid), "--host-access", "loopback",
		"--mtu", strconv.Itoa(l.mtu), "--ready-fd", "3",
	}, options...))
}

// slipwayStart: the TAP path.
func slipwayStart(ctx context.Context, b *bed, l *lane) error { return slipwayAttach(ctx, b, l) }

// slipwayPlainStart: the TAP path with one frame for each packet.
func slipwayPlainStart(ctx context.Context, b *bed, l *lane) error {
	return slipwayAttach(ctx, b, l, "--offload", "off")
}

func slipwayMany(ctx context.Context, b *bed, l *lane) error {
	return slipwayAttach(ctx, b, l, "--publish", fmt.Sprintf("%s:%s:%s", loopback, manyRange, manyRange))
}

func slipwayWide(ctx context.Context, b *bed, l *lane) error {
	wide := fmt.Sprintf("%d-%d", firstPort, lastWidePort)
	return slipwayAttach(ctx, b, l, "--publish", wide+":"+wide)
}

// slipwayRun is a container with published ports.
func slipwayRun(ctx context.Context, b *bed, l *lane, options ...string) error {
	refused := b.nextPort() // nobody listens behind it
	l.toContainer(nil)
	l.serving = true
	args := []string{l.program, "run", "--rm", "--mtu", strconv.Itoa(l.mtu)}
	for _, p := range append(l.ports, port{refused, refused}) {
		args = append(args, "-p", fmt.Sprintf("%s:%d:%d", loopback, p.host, p.guest))
	}
	args = append(append(args, options...), "host", "iperf3", "--server", "--port", strconv.Itoa(serverPort), "--forceflush")
	if err := b.run(l, args, listening); err != nil {
		return err
	}
	run := l.drivers[0]
	if err := run.await(ctx, run.output.seen); err != nil {
		return err
	}
	workload, err := nested(procfs, run.pid())
	if err != nil {
		return fmt.Errorf("find the container of slipway run: %w", err)
	}
	l.container, l.server = workload, b.enter(workload)
	congestion := append(b.enter(workload), "sh", "-c", "echo "+b.congestion+" >"+congestionSysctl)
	l.setup = append(l.setup, shown(congestion))
	if _, err := output(ctx, congestion...); err != nil {
		return fmt.Errorf("set the congestion control of the container: %w", err)
	}
	return useUp(ctx, netip.AddrPortFrom(loopback, refused))
}

// slipwayPublish: the way into the container that Slipway chooses.
func slipwayPublish(ctx context.Context, b *bed, l *lane) error { return slipwayRun(ctx, b, l) }

// slipwayTAPPublish: over the TAP device.
func slipwayTAPPublish(ctx context.Context, b *bed, l *lane) error {
	l.tap = true
	return slipwayRun(ctx, b, l, "--publish-path", "tap")
}

// useUp makes Slipway take every socket that it had made in the container's namespace
// before the congestion control was set there, since a socket keeps the one of its
// birth: each connection to the published port takes one and is refused.
func useUp(ctx context.Context, refused netip.AddrPort) error {
	const sockets = 300 // more than Slipway ever keeps ahead
	var dialer net.Dialer
	for range sockets {
		conn, err := dialer.DialContext(ctx, "tcp", refused.String())
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			continue // refused before it was accepted
		}
		_ = conn.SetReadDeadline(time.Now().Add(startTimeout))
		_, err = conn.Read(make([]byte, 1)) // the reset
		conn.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%s answers, but nobody listens in the container", refused)
		}
	}
	return nil
}
