package netstack

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeLocal has two addresses.
type fakeLocal struct{}

func (fakeLocal) IsLocal(a netip.Addr) bool {
	return a == netip.MustParseAddr("198.51.100.1") || a == netip.MustParseAddr("2001:db8::1") || a.IsLoopback()
}

func (fakeLocal) Primary(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.MustParseAddr("198.51.100.1")
	}
	return netip.Addr{}
}

func TestRoute(t *testing.T) {
	open := Grant{Open: true}
	only := func(first, last uint16) Grant { return Grant{Open: true, Ports: []PortRange{{first, last}}} }
	tests := map[string]struct {
		access   HostAccess
		metadata bool
		dst      string
		want     string
		err      error
	}{
		"the world":                        {dst: "203.0.113.5:80", want: "203.0.113.5:80"},
		"the world, IPv6":                  {dst: "[2001:db8:1::5]:80", want: "[2001:db8:1::5]:80"},
		"v4-mapped is IPv4":                {dst: "[::ffff:203.0.113.5]:80", want: "203.0.113.5:80"},
		"v4-mapped loopback":               {dst: "[::ffff:127.0.0.1]:80", err: ErrInvalidDestination},
		"v4-mapped host address":           {dst: "[::ffff:198.51.100.1]:80", err: ErrHostClosed},
		"v4-compatible":                    {dst: "[::203.0.113.5]:80", err: ErrInvalidDestination},
		"loopback":                         {access: HostAccess{Loopback: open}, dst: "127.0.0.1:80", err: ErrInvalidDestination},
		"loopback, another":                {dst: "127.9.9.9:80", err: ErrInvalidDestination},
		"loopback, IPv6":                   {dst: "[::1]:80", err: ErrInvalidDestination},
		"unspecified":                      {dst: "0.0.0.0:80", err: ErrInvalidDestination},
		"unspecified, IPv6":                {dst: "[::]:80", err: ErrInvalidDestination},
		"this network":                     {dst: "0.1.2.3:80", err: ErrInvalidDestination},
		"broadcast":                        {dst: "255.255.255.255:80", err: ErrInvalidDestination},
		"multicast":                        {dst: "224.0.0.251:5353", err: ErrInvalidDestination},
		"multicast, IPv6":                  {dst: "[ff02::fb]:5353", err: ErrInvalidDestination},
		"scoped":                           {dst: "[fe80::1%eth0]:80", metadata: true, err: ErrInvalidDestination},
		"link-local, IPv6":                 {dst: "[fe80::1]:80", metadata: true, err: ErrInvalidDestination},
		"metadata":                         {dst: "169.254.169.254:80", err: ErrMetadataClosed},
		"metadata, AWS IPv6":               {dst: "[fd00:ec2::254]:80", err: ErrMetadataClosed},
		"metadata, Azure":                  {dst: "168.63.129.16:80", err: ErrMetadataClosed},
		"metadata, opened":                 {metadata: true, dst: "169.254.169.254:80", want: "169.254.169.254:80"},
		"metadata behind NAT64":            {dst: "[64:ff9b::169.254.169.254]:80", err: ErrMetadataClosed},
		"loopback behind NAT64":            {dst: "[64:ff9b::127.0.0.1]:80", err: ErrInvalidDestination},
		"loopback behind own NAT64":        {dst: "[64:ff9b:1::127.0.0.1]:80", err: ErrInvalidDestination},
		"host behind 6to4":                 {dst: "[2002:c633:6401::1]:80", err: ErrHostClosed},
		"world behind NAT64":               {dst: "[64:ff9b::203.0.113.5]:80", want: "[64:ff9b::cb00:7105]:80"},
		"own network":                      {dst: "10.0.2.77:80", err: ErrOwnNetwork},
		"own network, IPv6":                {dst: "[fd00::77]:80", err: ErrOwnNetwork},
		"own network behind NAT64":         {dst: "[64:ff9b::10.0.2.2]:80", err: ErrOwnNetwork},
		"resolver, not DNS":                {dst: "10.0.2.3:80", err: ErrOwnNetwork},
		"host closed":                      {dst: "198.51.100.1:80", err: ErrHostClosed},
		"host closed, IPv6":                {dst: "[2001:db8::1]:80", err: ErrHostClosed},
		"host address opened":              {access: HostAccess{Addresses: open}, dst: "198.51.100.1:80", want: "198.51.100.1:80"},
		"host address, port opened":        {access: HostAccess{Addresses: only(80, 81)}, dst: "198.51.100.1:81", want: "198.51.100.1:81"},
		"host address, other port":         {access: HostAccess{Addresses: only(80, 81)}, dst: "198.51.100.1:82", err: ErrHostClosed},
		"loopback grant is not for others": {access: HostAccess{Loopback: open}, dst: "198.51.100.1:80", err: ErrHostClosed},
		"gateway closed":                   {dst: "10.0.2.2:80", err: ErrHostClosed},
		"gateway is loopback":              {access: HostAccess{Loopback: open}, dst: "10.0.2.2:80", want: "127.0.0.1:80"},
		"gateway is loopback, IPv6":        {access: HostAccess{Loopback: open}, dst: "[fd00::2]:80", want: "[::1]:80"},
		"gateway, other port":              {access: HostAccess{Loopback: only(5201, 5201)}, dst: "10.0.2.2:80", err: ErrHostClosed},
		"gateway is the host's address":    {access: HostAccess{Addresses: open}, dst: "10.0.2.2:80", want: "198.51.100.1:80"},
		"gateway, host has no IPv6":        {access: HostAccess{Addresses: open}, dst: "[fd00::2]:80", err: ErrHostClosed},
		"own listener":                     {access: HostAccess{Loopback: open}, dst: "10.0.2.2:9100", err: ErrOwnListener},
		"own listener on every address":    {access: HostAccess{Addresses: open}, dst: "198.51.100.1:8080", err: ErrOwnListener},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := Policy{
				Network: DefaultNetwork(), HostAccess: tt.access, AllowMetadata: tt.metadata, Local: fakeLocal{},
				Listeners: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9100"), netip.MustParseAddrPort("0.0.0.0:8080")},
			}
			got, err := p.Route(netip.MustParseAddrPort(tt.dst))
			if !errors.Is(err, tt.err) {
				t.Fatalf("Route(%s) = %s, %v; want error %v", tt.dst, got, err, tt.err)
			}
			if err == nil && got.String() != tt.want {
				t.Errorf("Route(%s) = %s, want %s", tt.dst, got, tt.want)
			}
		})
	}
}

func TestHostAddresses(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "127.1.2.3": true, "203.0.113.77": false, "2001:db8::77": false, "::1": true,
	} {
		if got := (HostAddresses{}).IsLocal(netip.MustParseAddr(addr)); got != want {
			t.Errorf("IsLocal(%s) = %v, want %v", addr, got, want)
		}
	}
}

func TestParseHostAccess(t *testing.T) {
	open := Grant{Open: true}
	tests := []struct {
		in   []string
		want HostAccess
		ok   bool
	}{
		{nil, HostAccess{}, true},
		{[]string{"none"}, HostAccess{}, true},
		{[]string{"loopback"}, HostAccess{Loopback: open}, true},
		{[]string{"addresses=80,8000-8010"}, HostAccess{Addresses: Grant{Open: true, Ports: []PortRange{{80, 80}, {8000, 8010}}}}, true},
		{[]string{"addresses", "loopback=1-65535"}, HostAccess{Addresses: open, Loopback: Grant{Open: true, Ports: []PortRange{{1, 65535}}}}, true},
		{[]string{"none", "loopback"}, HostAccess{}, false},
		{[]string{"none=1"}, HostAccess{}, false},
		{[]string{"loopback="}, HostAccess{}, false},
		{[]string{"loopback=0"}, HostAccess{}, false},
		{[]string{"loopback=70000"}, HostAccess{}, false},
		{[]string{"loopback=9-8"}, HostAccess{}, false},
		{[]string{"everything"}, HostAccess{}, false},
		{[]string{""}, HostAccess{}, false},
	}
	for _, tt := range tests {
		got, err := ParseHostAccess(tt.in)
		if (err == nil) != tt.ok {
			t.Errorf("ParseHostAccess(%q) = %v, want success: %v", tt.in, err, tt.ok)
			continue
		}
		if err == nil {
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ParseHostAccess(%q) (-want +got):\n%s", tt.in, diff)
			}
		}
	}
}

func TestNetwork(t *testing.T) {
	n := DefaultNetwork()
	for want, got := range map[string]string{
		"10.0.2.100": n.Guest4().String(), "10.0.2.2": n.Gateway4().String(), "10.0.2.3": n.DNS4().String(),
		"fd00::64": n.Guest6().String(), "fd00::2": n.Gateway6().String(), "fd00::3": n.DNS6().String(),
		"52:55:0a:00:02:02": n.MAC().String(),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	n, err := n.WithPrefix4("10.0.135.128/25")
	if err != nil || n.Guest4().String() != "10.0.135.228" {
		t.Errorf("guest of 10.0.135.128/25 is %s, %v; want 10.0.135.228", n.Guest4(), err)
	}
	for _, bad := range []string{"", "10.0.2.0", "10.0.2.100/24", "10.0.2.0/26", "fd00::/64", "127.0.0.0/8", "224.0.0.0/4", "0.0.0.0/0"} {
		if _, err := n.WithPrefix4(bad); err == nil {
			t.Errorf("WithPrefix4(%q) succeeded", bad)
		}
	}
}
