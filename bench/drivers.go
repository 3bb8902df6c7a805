package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Ports of the run's own network namespace, where nobody else is.
const (
	serverPort    = 5201 // iperf3's own
	publishedPort = 5301 // and up, one for each driver
	refusedPort   = 5401 // published by Slipway, nobody listens behind it
)

var (
	loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	// gateway is the host as the container sees it: the default of Slipway and
	// slirp4netns, and given to pasta.
	gateway = netip.AddrFrom4([4]byte{10, 0, 2, 2})
	guest   = netip.AddrFrom4([4]byte{10, 0, 2, 100})
)

// setup makes the lane of a driver for a workload. What it has started is in the lane
// also when it returns an error.
type setup struct {
	driver   string
	workload Workload
	program  string // looked up in PATH; empty: none needed, or Config.Slipway
	make     func(ctx context.Context, b *bed, program string, l *lane) error
}

func setups() []setup {
	return []setup{
		{DriverHost, WorkloadStream, "", hostStream},
		{DriverSlipway, WorkloadStream, "", slipwayStream},
		{DriverSlirp4netns, WorkloadStream, "slirp4netns", slirp4netnsStream},
		{DriverPasta, WorkloadStream, "pasta", pastaStream},
		{DriverSlipway, WorkloadPublished, "", slipwayPublished},
		{DriverSlirp4netns, WorkloadPublished, "slirp4netns", slirp4netnsPublished},
		{DriverPasta, WorkloadPublished, "pasta", pastaPublished},
	}
}

// hostStream is iperf3 to itself: what the machine can do without any container.
func hostStream(_ context.Context, _ *bed, _ string, l *lane) error {
	l.port, l.dest = serverPort, netip.AddrPortFrom(loopback, serverPort)
	return nil
}

// toHost makes the lane lead from a client in the container to a server on the host.
func (l *lane) toHost(enter []string) {
	l.client, l.port, l.dest, l.reverse = enter, serverPort, netip.AddrPortFrom(gateway, serverPort), DirectionDown
}

// toContainer makes the lane lead from a client on the host to a published port.
func (l *lane) toContainer(enter []string, port uint16) {
	l.server, l.port, l.dest, l.reverse = enter, serverPort, netip.AddrPortFrom(loopback, port), DirectionUp
}

// ready starts a driver that tells by a byte on its descriptor 3 that it is ready.
func (b *bed) ready(ctx context.Context, l *lane, args []string) error {
	w, ready, err := readyPipe()
	if err != nil {
		return err
	}
	err = b.run(l, args, "", w)
	w.Close()
	if err != nil {
		return err
	}
	l.setup = append(l.setup, strings.Join(args, " "))
	return l.driver.await(ctx, ready)
}

// slipwayStream: the TAP path of slipway attach.
func slipwayStream(ctx context.Context, b *bed, _ string, l *lane) error {
	pid, enter, err := b.container(ctx, l)
	if err != nil {
		return err
	}
	l.toHost(enter)
	return b.ready(ctx, l, []string{
		b.cfg.Slipway, "attach", "--pid", strconv.Itoa(pid), "--host-access", "loopback",
		"--mtu", strconv.Itoa(b.cfg.MTU), "--ready-fd", "3",
	})
}

// slipwayPublished: a port of slipway run.
func slipwayPublished(ctx context.Context, b *bed, _ string, l *lane) error {
	const port = publishedPort
	l.toContainer(nil, port)
	l.serving = true
	args := []string{
		b.cfg.Slipway, "run", "--rm", "--mtu", strconv.Itoa(b.cfg.MTU),
		"-p", fmt.Sprintf("%s:%d:%d", loopback, port, serverPort),
		"-p", fmt.Sprintf("%s:%d:%d", loopback, refusedPort, refusedPort),
		"host", "iperf3", "--server", "--port", strconv.Itoa(serverPort), "--forceflush",
	}
	if err := b.run(l, args, listening); err != nil {
		return err
	}
	l.setup = append(l.setup, strings.Join(args, " "))
	if err := l.driver.await(ctx, l.driver.output.seen); err != nil {
		return err
	}
	workload, err := nested(procfs, l.driver.pid())
	if err != nil {
		return fmt.Errorf("find the container of slipway run: %w", err)
	}
	congestion := append(b.enter(workload), "sh", "-c", "echo "+b.congestion+" >"+congestionSysctl)
	l.setup = append(l.setup, strings.Join(congestion, " "))
	if _, err := output(ctx, congestion...); err != nil {
		return fmt.Errorf("set the congestion control of the container: %w", err)
	}
	return useUp(ctx, netip.AddrPortFrom(loopback, refusedPort))
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

// slirp4netnsStart starts slirp4netns on a new container.
func slirp4netnsStart(ctx context.Context, b *bed, program string, l *lane, options ...string) (enter []string, err error) {
	pid, enter, err := b.container(ctx, l)
	if err != nil {
		return nil, err
	}
	args := append([]string{program, "--configure", "--mtu", strconv.Itoa(b.cfg.MTU), "--ready-fd", "3"}, options...)
	return enter, b.ready(ctx, l, append(args, strconv.Itoa(pid), "tap0"))
}

func slirp4netnsStream(ctx context.Context, b *bed, program string, l *lane) error {
	enter, err := slirp4netnsStart(ctx, b, program, l)
	l.toHost(enter)
	return err
}

func slirp4netnsPublished(ctx context.Context, b *bed, program string, l *lane) error {
	const port = publishedPort + 1
	socket := filepath.Join(b.dir, "slirp4netns.sock")
	enter, err := slirp4netnsStart(ctx, b, program, l, "--api-socket", socket)
	if err != nil {
		return err
	}
	l.toContainer(enter, port)
	request := fmt.Sprintf(`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":%q,"host_port":%d,"guest_port":%d}}`,
		loopback, port, serverPort)
	l.setup = append(l.setup, "echo '"+request+"' # to "+socket)
	return addHostfwd(ctx, socket, request)
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

// pastaStart starts pasta on a new container. It gets the addresses of the others, its
// loopback bypass from the container is off, so that its bytes go by the TAP device as
// those of the others do, and it stays root: it takes a namespace with all ids mapped
// for the machine's own, where it would become nobody and could enter no namespace.
func pastaStart(ctx context.Context, b *bed, program string, l *lane, tcpPorts string) (enter []string, err error) {
	if b.template != nil {
		return nil, fmt.Errorf("pasta needs an interface with a default route on the host's side: %w", b.template)
	}
	pid, enter, err := b.container(ctx, l)
	if err != nil {
		return nil, err
	}
	started := filepath.Join(b.dir, fmt.Sprintf("pasta-%d.pid", pid))
	args := []string{
		program, "--foreground", "--runas", "0", "--pid", started, "--config-net", "--ipv4-only", "--mtu", strconv.Itoa(b.cfg.MTU),
		"--ns-ifname", "tap0", "--address", guest.String(), "--netmask", "255.255.255.0", "--gateway", gateway.String(),
		"--tcp-ports", tcpPorts, "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none", strconv.Itoa(pid),
	}
	if err := b.run(l, args, ""); err != nil {
		return nil, err
	}
	l.setup = append(l.setup, strings.Join(args, " "))
	// pasta writes its pid file when it is ready, and offers no other sign.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan struct{})
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			if info, err := os.Stat(started); err == nil && info.Size() > 0 {
				close(ready)
				return
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return enter, l.driver.await(ctx, ready)
}

func pastaStream(ctx context.Context, b *bed, program string, l *lane) error {
	enter, err := pastaStart(ctx, b, program, l, "none")
	l.toHost(enter)
	return err
}

func pastaPublished(ctx context.Context, b *bed, program string, l *lane) error {
	const port = publishedPort + 2
	enter, err := pastaStart(ctx, b, program, l, fmt.Sprintf("%s/%d:%d", loopback, port, serverPort))
	l.toContainer(enter, port)
	return err
}
