package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// rootlessKitWith starts RootlessKit as rootless Docker does, but that the host's
// loopback can be reached: slirp4netns for the network, its own builtin port driver.
func rootlessKitWith(ctx context.Context, b *bed, l *lane) error {
	args := []string{
		l.program, "--net=slirp4netns", "--slirp4netns-binary=" + b.programs["slirp4netns"], "--mtu=" + strconv.Itoa(l.mtu),
		"--copy-up=/etc", "--copy-up=/run", "--port-driver=builtin",
		"--state-dir=" + filepath.Join(b.dir, fmt.Sprintf("rootlesskit-%d", b.nextPort())),
	}
	for _, p := range l.ports {
		args = append(args, "-p", fmt.Sprintf("%s:%d:%d/tcp", loopback, p.host, p.guest))
	}
	args = append(args, "sh", "-c", "echo "+b.congestion+" >"+congestionSysctl+" && echo "+holding+" && exec sleep infinity")
	if err := b.run(l, args, holding); err != nil {
		return err
	}
	p := l.drivers[0]
	if err := p.await(ctx, p.output.seen); err != nil {
		return err
	}
	// The shell that said so becomes sleep, in the same process, which meanwhile has no
	// command line.
	err := p.await(ctx, until(ctx, func() bool {
		found, err := tree(procfs, p.pid())
		if err != nil {
			return false
		}
		for _, s := range found {
			text, err := os.ReadFile(filepath.Join(procfs, strconv.Itoa(s.id.pid), "cmdline"))
			if err == nil && strings.HasPrefix(string(text), "sleep\x00") {
				l.container = s.id.pid
			}
		}
		return l.container != 0
	}))
	if err != nil {
		return fmt.Errorf("find the container of rootlesskit, a process that sleeps: %w", err)
	}
	return nil
}

func rootlessKitStart(ctx context.Context, b *bed, l *lane) error {
	l.tap = true
	if err := rootlessKitWith(ctx, b, l); err != nil {
		return err
	}
	l.toHost(b.enter(l.container), gateway)
	return nil
}

func rootlessKitPublish(ctx context.Context, b *bed, l *lane) error {
	if err := rootlessKitWith(ctx, b, l); err != nil {
		return err
	}
	l.toContainer(b.enter(l.container))
	// The ports are published after the command has started.
	p := l.drivers[0]
	return p.await(ctx, until(ctx, func() bool { return listens(l.dest.String()) && listens(l.other.String()) }))
}
