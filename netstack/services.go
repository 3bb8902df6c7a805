package netstack

import (
	"context"
	"errors"
	"net/netip"

	"slipway/netstack/dhcp"
	"slipway/netstack/link"
	"slipway/netstack/ndp"
	"slipway/netstack/tap"
)

// Services are for a guest that configures its own end of the link. The zero value is
// none of them.
type Services struct {
	// DHCP leases addresses of Network from Lease4 on.
	DHCP bool
	// Router advertises Network's IPv6 prefix and a default route, and answers stateless
	// DHCPv6.
	Router bool
}

// services are those that run; the others are nil.
type services struct {
	dhcp   *dhcp.Server
	dhcp6  *dhcp.Server6
	router *ndp.Router
}

// newServices makes what Config asks for. The resolver's addresses are told only where
// there is one.
func (s *Stack) newServices() error {
	cfg, n := s.cfg, s.cfg.Network
	dns4, dns6 := n.DNS4(), n.DNS6()
	if s.dns == nil {
		dns4, dns6 = netip.Addr{}, netip.Addr{}
	}
	var err error
	if cfg.Services.DHCP {
		s.serve.dhcp, err = dhcp.New(dhcp.Config{
			Write: s.link.WriteFrame, MAC: n.MAC(),
			Network: n.Prefix4, First: n.Lease4(), Server: n.Gateway4(), DNS: dns4,
		})
		if err != nil {
			return err
		}
	}
	if !cfg.Services.Router {
		return nil
	}
	if !n.Prefix6.IsValid() {
		return errors.New("a router in a network without IPv6")
	}
	s.serve.dhcp6, err = dhcp.New6(dhcp.Config6{Write: s.link.WriteFrame, MAC: n.MAC(), Server: n.Router6(), DNS: dns6})
	if err != nil {
		return err
	}
	mac := link.OwnMAC(n.Router6())
	s.serve.router, err = ndp.New(ndp.Config{
		Write: s.link.WriteFrame, MAC: mac[:], Address: n.Router6(), Prefix: n.Prefix6, DNS: dns6, Resolver: s.hasResolver6,
	})
	return err
}

// hasResolver6 reports whether the host has a resolver that it reaches over IPv6.
func (s *Stack) hasResolver6(ctx context.Context) bool {
	resolvers, err := s.cfg.Resolvers(ctx)
	if err != nil {
		return false
	}
	for _, r := range resolvers {
		if r.Addr().Is6() && !r.Addr().Is4In6() {
			return true
		}
	}
	return false
}

// input asks the services about a frame of the guest.
func (v *services) input(h tap.Header, frame []byte) bool {
	return v.dhcp != nil && v.dhcp.Input(h, frame) ||
		v.dhcp6 != nil && v.dhcp6.Input(h, frame) ||
		v.router != nil && v.router.Input(h, frame)
}

// start begins to advertise, on an interface that is up.
func (v *services) start() {
	if v.router != nil {
		v.router.Start()
	}
}

func (v *services) close() error {
	if v.router == nil {
		return nil
	}
	return v.router.Close()
}

func (v *services) stats(out *Stats) {
	if v.dhcp != nil {
		out.DHCP = v.dhcp.Stats()
	}
	if v.dhcp6 != nil {
		out.DHCP6 = v.dhcp6.Stats()
	}
	if v.router != nil {
		out.Router = v.router.Stats()
	}
}
