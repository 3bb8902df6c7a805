package bench

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// moveLink into the network namespace of a process.
func (b *bed) moveLink(name string, pid int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetNsPid(link, pid); err != nil {
		return fmt.Errorf("move %s to the namespace of process %d: %w", name, pid, err)
	}
	return nil
}

// addVeth makes a pair of devices, one of them in the network namespace of a process.
func (b *bed) addVeth(near, there string, pid int) error {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: near}, PeerName: there}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add a veth pair: %w", err)
	}
	return b.moveLink(there, pid)
}

// configureLink in the network namespace of a process, 0: our own. mtu and queue (packets)
// 0: that which it has.
func (b *bed) configureLink(pid int, name string, address netip.Addr, mtu, queue int) error {
	h, err := handleAt(pid)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if mtu > 0 {
		if err := h.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set the MTU of %s to %d: %w", name, mtu, err)
		}
	}
	if queue > 0 {
		if err := h.LinkSetTxQLen(link, queue); err != nil {
			return fmt.Errorf("set the queue of %s to %d: %w", name, queue, err)
		}
	}
	prefix := &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(24, 32)}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: prefix}); err != nil {
		return fmt.Errorf("add address %s to %s: %w", address, name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}
