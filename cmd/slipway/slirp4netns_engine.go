package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"slipway/netstack"
	"slipway/netstack/monitor"
	"slipway/portfwd"
	"slipway/portfwd/slirp4netns"
)

// slirpConfig is what the drop-in's engine does differently.
type slirpConfig struct {
	HostLoopback         bool       `json:"host_loopback"` // the gateway is the host's loopback
	DNS                  bool       `json:"dns"`
	API                  bool       `json:"api"` // the last listener is the API socket
	Outbound4, Outbound6 netip.Addr `json:",omitzero"`
}

// adapt makes the stack one that behaves as slirp4netns: everything that the host
// reaches, the guest does.
func (c *slirpConfig) adapt(s *netstack.Config) {
	s.Policy = netstack.Policy{
		Gateway: netstack.GatewayIsLoopback,
		HostAccess: netstack.HostAccess{
			Addresses: netstack.Grant{Open: true}, Loopback: netstack.Grant{Open: c.HostLoopback},
		},
		AllowMetadata: true, Local: netstack.HostAddresses{},
	}
	s.Outbound4, s.Outbound6 = c.Outbound4, c.Outbound6
	s.Sources = s.Network.Prefixes()
	if len(s.GuestMAC) == 0 {
		s.GuestMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} // until its first frame
	}
	s.Services = netstack.Services{DHCP: true, Router: s.Network.Prefix6.IsValid()}
	if !c.DNS {
		s.Resolvers = nil
	}
}

// serve goes on with the forwards of earlier engines and serves the API socket.
func (c *slirpConfig) serve(client *monitor.Client, start *monitor.StartMessage, network netstack.Network, ports *portfwd.Manager) error {
	if !c.API {
		return nil
	}
	f := &apiForwards{client: client, ports: ports, open: map[int]opened{}}
	for _, old := range start.Forwards {
		if err := f.restore(old); err != nil {
			return err
		}
	}
	if len(start.Listeners) != 1 || len(start.Listeners[0]) != 1 {
		return fmt.Errorf("API socket: got %d groups of listeners, want 1 of one", len(start.Listeners))
	}
	socket := start.Listeners[0][0]
	l, err := net.FileListener(socket)
	if err := errors.Join(err, socket.Close()); err != nil {
		return fmt.Errorf("API socket: %w", err)
	}
	listener, ok := l.(*net.UnixListener)
	if !ok {
		return errors.Join(fmt.Errorf("API socket: it is a %T", l), l.Close())
	}
	listener.SetUnlinkOnClose(false) // the monitor's business
	server := slirp4netns.NewServer(slirp4netns.Config{
		Forwards: f, Guest: network.Guest4(), Guest6: network.Guest6(), Log: os.Stderr,
	})
	go func() {
		if err := server.Serve(context.Background(), listener); err != nil {
			logger().Error("API socket ended", "error", err)
		}
	}()
	return nil
}

// opened is a forward that is served.
type opened struct {
	forward slirp4netns.Forward
	port    int // the port manager's id
}

// apiForwards lets the monitor bind what the API is asked for, and serves it.
type apiForwards struct {
	client *monitor.Client
	ports  *portfwd.Manager

	mu   sync.Mutex // guards the following field
	open map[int]opened
}

var _ slirp4netns.Forwards = (*apiForwards)(nil)

func spec(f slirp4netns.Forward) portfwd.Spec {
	s := portfwd.Spec{
		Proto: portfwd.TCP, HostIP: f.Host.Addr(), HostPort: f.Host.Port(),
		ContainerIP: f.Guest.Addr(), ContainerPort: f.Guest.Port(),
	}
	if f.Proto == slirp4netns.UDP || f.Proto == slirp4netns.UDP6 {
		s.Proto = portfwd.UDP
	}
	return s
}

// Add implements slirp4netns.Forwards.
func (f *apiForwards) Add(ctx context.Context, want slirp4netns.Forward) (slirp4netns.Forward, error) {
	raw, err := json.Marshal(want)
	if err != nil {
		return want, fmt.Errorf("forward: %w", err)
	}
	s := spec(want)
	got, err := f.client.Listen(ctx, monitor.Listen{Network: string(s.Proto), Addrs: s.Addrs()}, raw)
	if err != nil {
		return want, err
	}
	if err := f.restore(*got); err != nil {
		return want, errors.Join(err, f.client.Unlisten(ctx, got.ID))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open[got.ID].forward, nil
}

// restore serves what the monitor has bound.
func (f *apiForwards) restore(m monitor.Forward) error {
	var forward slirp4netns.Forward
	if err := json.Unmarshal(m.Spec, &forward); err != nil || len(m.Bound) == 0 {
		return fmt.Errorf("forward %d on %v: %w", m.ID, m.Bound, err)
	}
	forward.ID, forward.Host = m.ID, m.Bound[0]
	port, err := f.ports.Add(spec(forward), m.Sockets)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open[m.ID] = opened{forward, port}
	return nil
}

// List implements slirp4netns.Forwards.
func (f *apiForwards) List() []slirp4netns.Forward {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]slirp4netns.Forward, 0, len(f.open))
	for _, id := range slices.Sorted(maps.Keys(f.open)) {
		out = append(out, f.open[id].forward)
	}
	return out
}

// Remove implements slirp4netns.Forwards.
func (f *apiForwards) Remove(id int) error {
	f.mu.Lock()
	o, ok := f.open[id]
	delete(f.open, id)
	f.mu.Unlock()
	if !ok {
		return fmt.Errorf("forward %d: %w", id, slirp4netns.ErrNoForward)
	}
	return errors.Join(f.ports.Remove(o.port), f.client.Unlisten(context.Background(), id))
}
