package netstack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"slipway/netstack/relay"
)

// ForwardTCP joins client, a connection accepted on the host, to dst, an address
// of the guest, through the TAP. The guest sees src as its peer; if src is in use
// towards dst already, it sees another port of the same address. ForwardTCP
// returns nil when the flow has ended and client is closed. It is counted in bytes
// while it runs.
//
// With an error the guest was not reached and client is left open: it wraps
// syscall.ECONNREFUSED when the guest refused, ErrLimit beyond the bound of flows.
func (s *Stack) ForwardTCP(ctx context.Context, client *net.TCPConn, src, dst netip.AddrPort, bytes *relay.Bytes) error {
	if !s.begin() {
		return net.ErrClosed
	}
	defer s.end()
	ep, queue, err := s.dialGuest(ctx, src, dst)
	if err != nil {
		return fmt.Errorf("forward %s to %s: %w", src, dst, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(net.ErrClosed) })()
	s.relay(ctx, ep, queue, client, &s.stats.tcp, bytes)
	return nil
}

func (s *Stack) dialGuest(ctx context.Context, src, dst netip.AddrPort) (tcpip.Endpoint, *waiter.Queue, error) {
	if s.flowsFull() {
		s.stats.flowsRefused.Add(1)
		return nil, nil, ErrLimit
	}
	proto := tcpip.NetworkProtocolNumber(ipv4.ProtocolNumber)
	if dst.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	queue := new(waiter.Queue)
	ep, terr := s.stack.NewEndpoint(tcp.ProtocolNumber, proto, queue)
	if terr != nil {
		return nil, nil, fmt.Errorf("new endpoint: %s", terr)
	}
	if err := s.connectGuest(ctx, ep, queue, src, dst); err != nil {
		ep.Close()
		return nil, nil, err
	}
	return ep, queue, nil
}

func (s *Stack) connectGuest(ctx context.Context, ep tcpip.Endpoint, queue *waiter.Queue, src, dst netip.AddrPort) error {
	if terr := ep.Bind(fullAddress(src)); terr != nil {
		if terr := ep.Bind(fullAddress(netip.AddrPortFrom(src.Addr(), 0))); terr != nil {
			return fmt.Errorf("bind: %s", terr)
		}
	}
	local, terr := ep.GetLocalAddress()
	if terr != nil {
		return fmt.Errorf("get local address: %s", terr)
	}
	hs := s.tcp.handshakes.cross(guestID(local, fullAddress(dst)))
	defer s.tcp.handshakes.end(hs)
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	terr = ep.Connect(fullAddress(dst))
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		select {
		case <-ready:
			terr = ep.LastError()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.ctx.Done():
			return net.ErrClosed
		}
	}
	switch terr.(type) {
	case nil:
		return nil
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	}
	return fmt.Errorf("connect: %s", terr)
}
