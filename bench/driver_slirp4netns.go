package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"
)

// slirp4netnsStart starts slirp4netns on a new container.
func slirp4netnsStart(ctx context.Context, b *bed, l *lane) error {
	return slirp4netnsWith(ctx, b, l)
}

func slirp4netnsWith(ctx context.Context, b *bed, l *lane, options ...string) error {
	pid, enter, err := b.container(ctx, l)
	if err != nil {
		return err
	}
	l.toHost(enter, gateway)
	l.tap = true
	args := append([]string{l.program, "--configure", "--mtu", strconv.Itoa(l.mtu), "--ready-fd", "3"}, options...)
	return b.ready(ctx, l, append(args, strconv.Itoa(pid), "tap0"))
}

// slirp4netnsForward starts slirp4netns and has it publish ports.
func slirp4netnsForward(ctx context.Context, b *bed, l *lane, ports []port) error {
	socket := filepath.Join(b.dir, fmt.Sprintf("slirp4netns-%d.sock", b.nextPort()))
	if err := slirp4netnsWith(ctx, b, l, "--api-socket", socket); err != nil {
		return err
	}
	for _, p := range ports {
		request := fmt.Sprintf(`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":%q,"host_port":%d,"guest_port":%d}}`, loopback, p.host, p.guest)
		l.setup = append(l.setup, "echo '"+request+"' # to "+socket)
		if err := addHostfwd(ctx, socket, request); err != nil {
			return err
		}
	}
	return nil
}

func slirp4netnsPublish(ctx context.Context, b *bed, l *lane) error {
	if err := slirp4netnsForward(ctx, b, l, l.ports); err != nil {
		return err
	}
	enter := l.client
	l.client = nil
	l.toContainer(enter)
	return nil
}

func slirp4netnsMany(ctx context.Context, b *bed, l *lane) error {
	var ports []port
	for p := uint16(firstPort); int(p) <= l.lastPort; p++ {
		ports = append(ports, port{p, p})
	}
	return slirp4netnsForward(ctx, b, l, ports)
}

// addHostfwd asks slirp4netns for a published port, slirp4netns(1) API socket.
func addHostfwd(ctx context.Context, socket, request string) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("publish a port by slirp4netns: %w", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(startTimeout))
	if _, err := conn.Write([]byte(request)); err != nil {
		return fmt.Errorf("publish a port by slirp4netns: %w", err)
	}
	var reply struct {
		Error json.RawMessage `json:"error"`
	}
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		return fmt.Errorf("publish a port by slirp4netns: read its answer: %w", err)
	}
	if len(reply.Error) > 0 {
		return fmt.Errorf("publish a port by slirp4netns: it answered %s", reply.Error)
	}
	return nil
}
