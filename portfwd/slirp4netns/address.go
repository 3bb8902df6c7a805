package slirp4netns

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// The shape of a CIDR; whether its octets are ones is asked later.
var cidrShape = regexp.MustCompile(`^([0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3})/([0-9]{1,2})$`)

// maxPrefix leaves room for the guest's address.
const maxPrefix = 25

func (c *command) network() error {
	if c.cidr == nil {
		return nil
	}
	m := cidrShape.FindStringSubmatch(*c.cidr)
	if m == nil {
		return c.refuse("invalid CIDR: %s", *c.cidr)
	}
	addr, err := netip.ParseAddr(m[1])
	if err != nil {
		return c.refuse("invalid network address: %s", m[1])
	}
	bits, err := strconv.Atoi(m[2])
	if err != nil || bits < 1 || bits > maxPrefix {
		return c.refuse("prefix length needs to be 1-%d", maxPrefix)
	}
	c.opts.Network = netip.PrefixFrom(addr, bits)
	if c.opts.Network.Masked() != c.opts.Network {
		return c.refuse("CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24")
	}
	return nil
}

// outbounds reads --outbound-addr and --outbound-addr6. As upstream's, the texts end
// without a new line, and one has a slip of the pen. Upstream looks up the interface
// of the second by the name of the first.
func (c *command) outbounds() error {
	for _, o := range []struct {
		given  *string
		family family
		to     *netip.Addr
		bad    string
	}{
		{c.outbound, ipv4, &c.opts.OutboundAddr, "outbound-addr has to be valid ipv4 address or interface name."},
		{c.outbound6, ipv6, &c.opts.OutboundAddr6, "outbound-addr has to be valid ipv4 address or iterface name."},
	} {
		if o.given == nil {
			continue
		}
		addr, err := netip.ParseAddr(*o.given)
		if err != nil || addr.Zone() != "" || !o.family.has(addr) {
			addr = o.family.ofInterface(*o.given)
		}
		if !addr.IsValid() {
			fmt.Fprint(c.Stderr, o.bad)
			return Exit(1)
		}
		*o.to = addr
	}
	return nil
}

type family int

const (
	ipv4 family = 4
	ipv6 family = 6
)

func (f family) has(a netip.Addr) bool {
	if f == ipv4 {
		return a.Is4()
	}
	return a.Is6()
}

// ofInterface returns the first address of an interface, the zero Addr if it has none.
// A link-local one binds to a scope and reaches no other network, so it does not
// count.
func (f family) ofInterface(name string) netip.Addr {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}
	}
	addrs, err := i.Addrs()
	if err != nil {
		return netip.Addr{}
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		if addr := p.Addr().Unmap(); f.has(addr) && (f == ipv4 || !addr.IsLinkLocalUnicast()) {
			return addr
		}
	}
	return netip.Addr{}
}

// hardware reads --macaddress. Fewer than six bytes are filled up with zeros, which
// scripts may have come to rely on.
func (c *command) hardware() error {
	if c.mac == nil {
		return nil
	}
	mac := make(net.HardwareAddr, 0, 6)
	for part := range strings.SplitSeq(*c.mac, ":") {
		if len(mac) == cap(mac) {
			return c.badMAC("  Is it too long?")
		}
		b, err := strconv.ParseUint(part, 16, 8)
		if err != nil {
			return c.badMAC("")
		}
		mac = append(mac, byte(b))
	}
	c.opts.MAC = mac[:6]
	return nil
}

func (c *command) badMAC(hint string) error {
	fmt.Fprintf(c.Stderr, "\"%s\" is an invalid MAC address.%s\n", *c.mac, hint)
	fmt.Fprint(c.Stderr, "macaddress has to be a valid MAC address (hex string, 6 bytes, each byte separated by a ':').")
	return Exit(1)
}
