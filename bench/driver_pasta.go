package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// pastaWith starts pasta on a new container. It gets the addresses of the others, its
// loopback bypass from the container is off, so that its bytes go by the TAP device as
// those of the others do, and it stays root: it takes a namespace with all ids mapped
// for the machine's own, where it would become nobody and could enter no namespace.
func pastaWith(ctx context.Context, b *bed, l *lane, tcpPorts ...string) error {
	if b.template != nil {
		return fmt.Errorf("pasta needs an interface with a default route on the host's side: %w", b.template)
	}
	pid, enter, err := b.container(ctx, l)
	if err != nil {
		return err
	}
	l.toHost(enter, gateway)
	started := filepath.Join(b.dir, fmt.Sprintf("pasta-%d.pid", pid))
	args := []string{
		l.program, "--foreground", "--runas", "0", "--pid", started, "--config-net", "--ipv4-only", "--mtu", strconv.Itoa(l.mtu),
		"--ns-ifname", "tap0", "--address", guest.String(), "--netmask", "255.255.255.0", "--gateway", gateway.String(),
	}
	for _, p := range tcpPorts {
		args = append(args, "--tcp-ports", p)
	}
	args = append(args, "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none", strconv.Itoa(pid))
	if err := b.run(l, args, ""); err != nil {
		return err
	}
	// pasta writes its pid file when it is ready, and offers no other sign.
	return l.drivers[0].await(ctx, until(ctx, func() bool {
		info, err := os.Stat(started)
		return err == nil && info.Size() > 0
	}))
}

func pastaStart(ctx context.Context, b *bed, l *lane) error {
	l.tap = true
	return pastaWith(ctx, b, l, "none")
}

func pastaPublish(ctx context.Context, b *bed, l *lane) error {
	var ports []string
	for _, p := range l.ports {
		ports = append(ports, fmt.Sprintf("%s/%d:%d", loopback, p.host, p.guest))
	}
	if err := pastaWith(ctx, b, l, ports...); err != nil {
		return err
	}
	enter := l.client
	l.client = nil
	l.toContainer(enter)
	return nil
}

func pastaMany(ctx context.Context, b *bed, l *lane) error {
	return pastaWith(ctx, b, l, loopback.String()+"/"+l.portRange())
}
