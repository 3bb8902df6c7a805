package netstack

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"slipway/netstack/tap"
)

// TestSourcePortIsReusedAtOnce: a guest may connect from the port of a connection that
// ended a moment ago, however it ended, and whatever gVisor still remembers of it.
func TestSourcePortIsReusedAtOnce(t *testing.T) {
	const times = 500
	g := newKernelGuest(t, tap.Auto, HostAccess{Loopback: Grant{Open: true}})
	n := DefaultNetwork()
	for _, tt := range []struct {
		network, listen string
		from, to        netip.Addr
	}{
		{"tcp4", "127.0.0.1:0", n.Guest4(), n.Gateway4()},
		{"tcp6", "[::1]:0", n.Guest6(), n.Gateway6()},
	} {
		l, err := net.Listen(tt.network, tt.listen)
		if err != nil {
			t.Logf("no %s here: %v", tt.network, err)
			continue
		}
		defer l.Close()
		go serve(l)
		src := netip.AddrPortFrom(tt.from, 20000)
		dst := netip.AddrPortFrom(tt.to, netip.MustParseAddrPort(l.Addr().String()).Port())
		// After dialerCloses the guest's own kernel keeps the port.
		endings := []byte{acceptorCloses, dialerResets, acceptorResets}
		for i := range times {
			c, err := g.dialFrom(src, dst)
			for errors.Is(err, syscall.EADDRNOTAVAIL) { // the last ACK is on its way
				c, err = g.dialFrom(src, dst)
			}
			if err != nil {
				t.Errorf("%s: connection %d, after ending %d: %v", tt.network, i, endings[(i+2)%3], err)
				continue
			}
			talk(t, c, endings[i%3])
		}
	}
}
