package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The network of gvproxy's defaults.
var (
	gvHost  = netip.AddrFrom4([4]byte{192, 168, 127, 254}) // the host, as its containers see it
	gvGuest = netip.AddrFrom4([4]byte{192, 168, 127, 2})
)

// gvproxyWith starts gvproxy on the host and its forwarder in a new container, as in a
// virtual machine. The forwarder leaves the addresses to us instead of to a DHCP client.
func gvproxyWith(ctx context.Context, b *bed, l *lane) (socket string, err error) {
	pid, enter, err := b.container(ctx, l)
	if err != nil {
		return "", err
	}
	l.toHost(enter, gvHost)
	l.tap = true
	n := b.nextPort()
	socket = filepath.Join(b.dir, fmt.Sprintf("gvproxy-%d.sock", n))
	mtu := strconv.Itoa(l.mtu)
	if err := b.run(l, []string{l.program, "-mtu", mtu, "-ssh-port", "-1", "-listen", "unix://" + socket}, ""); err != nil {
		return "", err
	}
	if err := l.drivers[0].await(ctx, until(ctx, func() bool { return listens("unix:" + socket) })); err != nil {
		return "", err
	}
	forwarder := in(enter, b.programs["gvforwarder"], "-preexisting", "-iface", "tap0", "-mtu", mtu, "-stop-if-exist", "", "-url", "unix://"+socket)
	if err := b.run(l, forwarder, "Starting rx/tx loops"); err != nil {
		return "", err
	}
	p := l.drivers[1]
	if err := p.await(ctx, p.output.seen); err != nil {
		return "", err
	}
	l.setup = append(l.setup, fmt.Sprintf("ip -n … addr add %s/24 dev tap0; ip -n … link set tap0 mtu %s up", gvGuest, mtu))
	return socket, b.configureLink(pid, "tap0", gvGuest, l.mtu, 0)
}

func gvproxyStart(ctx context.Context, b *bed, l *lane) error {
	_, err := gvproxyWith(ctx, b, l)
	return err
}

func gvproxyPublish(ctx context.Context, b *bed, l *lane) error {
	socket, err := gvproxyWith(ctx, b, l)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: startTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", socket)
		},
	}}
	for _, p := range l.ports {
		body, err := json.Marshal(map[string]string{
			"local": netip.AddrPortFrom(loopback, p.host).String(), "remote": netip.AddrPortFrom(gvGuest, p.guest).String(), "protocol": "tcp",
		})
		if err != nil {
			return fmt.Errorf("publish a port by gvproxy: %w", err)
		}
		l.setup = append(l.setup, fmt.Sprintf("curl --unix-socket %s -d '%s' http://gvproxy/services/forwarder/expose", socket, body))
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://gvproxy/services/forwarder/expose", bytes.NewReader(body))
		if err != nil {
			return fmt.Errorf("publish a port by gvproxy: %w", err)
		}
		response, err := client.Do(request)
		if err != nil {
			return fmt.Errorf("publish a port by gvproxy: %w", err)
		}
		text, _ := io.ReadAll(io.LimitReader(response.Body, tailSize))
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("publish a port by gvproxy: %s: %s", response.Status, lastWords(text))
		}
	}
	enter := l.client
	l.client = nil
	l.toContainer(enter)
	return nil
}

// listens says whether a connection to unix:PATH or ADDR:PORT is accepted.
func listens(address string) bool {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	conn, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
