package netns

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link says how the device in the namespace shall be set up. Zero MTU, TxQueueLen
// and MAC leave the kernel's values.
type Link struct {
	Name string `json:"name"`
	// Untouched leaves everything but TxQueueLen to somebody else: no device is brought
	// up, nothing is added.
	Untouched  bool           `json:"untouched,omitempty"`
	MAC        []byte         `json:"mac,omitempty"`        // Ethernet address
	MTU        int            `json:"mtu,omitempty"`        // bytes, Ethernet header not counted
	TxQueueLen int            `json:"txqueuelen,omitempty"` // packets
	Addresses  []netip.Prefix `json:"addresses,omitempty"`
	Gateways   []netip.Addr   `json:"gateways,omitempty"` // of the default routes, one a family
}

// Configure brings up the loopback device, sets MTU and queue length of the link,
// brings it up, and adds addresses and default routes. Everything may exist
// already. It returns the link's hardware address.
//
// In a namespace without IPv6 (no module, or net.ipv6.conf.*.disable_ipv6) the
// IPv6 addresses and gateways are left out.
func Configure(h *netlink.Handle, l Link) (net.HardwareAddr, error) {
	if l.Untouched {
		return queueOnly(h, l)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find link lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("set link lo up: %w", err)
	}
	link, err := h.LinkByName(l.Name)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", l.Name, err)
	}
	if l.MTU != 0 {
		if err := h.LinkSetMTU(link, l.MTU); err != nil {
			return nil, fmt.Errorf("set MTU of link %s to %d: %w", l.Name, l.MTU, err)
		}
	}
	if l.TxQueueLen != 0 {
		if err := h.LinkSetTxQLen(link, l.TxQueueLen); err != nil {
			return nil, fmt.Errorf("set transmit queue of link %s to %d packets: %w", l.Name, l.TxQueueLen, err)
		}
	}
	mac := net.HardwareAddr(bytes.Clone(link.Attrs().HardwareAddr))
	if len(l.MAC) > 0 {
		mac = bytes.Clone(l.MAC)
		if err := h.LinkSetHardwareAddr(link, mac); err != nil {
			return nil, fmt.Errorf("set MAC address of link %s to %s: %w", l.Name, mac, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set link %s up: %w", l.Name, err)
	}
	v6 := true
	for _, p := range l.Addresses {
		if p.Addr().Is6() && !v6 {
			continue
		}
		err := addAddress(h, link, p)
		if p.Addr().Is6() && noIPv6(err) {
			v6 = false
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("add address %v to link %s: %w", p, l.Name, err)
		}
	}
	for _, gw := range l.Gateways {
		if gw.Is6() && !v6 {
			continue
		}
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: everything(gw), Gw: gw.AsSlice()}
		if err := h.RouteReplace(r); err != nil {
			return nil, fmt.Errorf("add default route by %v on link %s: %w", gw, l.Name, err)
		}
	}
	if v6 {
		awaitLocal(h, l.Addresses)
	}
	return mac, nil
}

// queueOnly is Configure for an untouched link.
func queueOnly(h *netlink.Handle, l Link) (net.HardwareAddr, error) {
	link, err := h.LinkByName(l.Name)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", l.Name, err)
	}
	if l.TxQueueLen != 0 {
		if err := h.LinkSetTxQLen(link, l.TxQueueLen); err != nil {
			return nil, fmt.Errorf("set transmit queue of link %s to %d packets: %w", l.Name, l.TxQueueLen, err)
		}
	}
	return bytes.Clone(link.Attrs().HardwareAddr), nil
}

// Dropped returns how many packets the kernel dropped on their way out of the link: for
// a TAP, those that found its queue full or nobody who reads (tun_net_xmit in
// drivers/net/tun.c).
func Dropped(h *netlink.Handle, name string) (uint64, error) {
	link, err := h.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find link %s: %w", name, err)
	}
	s := link.Attrs().Statistics
	if s == nil {
		return 0, fmt.Errorf("link %s has no statistics", name)
	}
	return s.TxDropped, nil
}

// localPatience is how long the kernel may take to route an address to itself.
const localPatience = time.Second

// awaitLocal waits until the IPv6 addresses are routed as local. The kernel does
// that in deferred work, and drops what arrives before. It is a wait for the first
// packet's sake only, so there is no error.
func awaitLocal(h *netlink.Handle, addresses []netip.Prefix) {
	deadline := time.Now().Add(localPatience)
	for _, p := range addresses {
		for p.Addr().Is6() && time.Now().Before(deadline) {
			routes, err := h.RouteGet(p.Addr().AsSlice())
			if err != nil || len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			time.Sleep(time.Millisecond) // nothing announces it
		}
	}
}

func addAddress(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		// Without duplicate address detection the address is usable at once; there is
		// nobody else on this link.
		a.Flags = unix.IFA_F_NODAD
	}
	return h.AddrReplace(link, a)
}

// noIPv6 reports whether err is what the kernel says when it has no IPv6
// (EOPNOTSUPP, EAFNOSUPPORT) or has it disabled (EACCES, ipv6_add_addr in
// net/ipv6/addrconf.c).
func noIPv6(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EACCES)
}

func ipNet(p netip.Prefix) *net.IPNet {
	a := p.Addr()
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(p.Bits(), a.BitLen())}
}

// everything is the prefix of length zero of a's family.
func everything(a netip.Addr) *net.IPNet {
	if a.Is4() {
		return ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	}
	return ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
}
