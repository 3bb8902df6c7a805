package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ReplyTable is the routing table of KeepReplies, and ReplyPriority the priority
// of its rules: after the table local (0), before main (32766).
const (
	ReplyTable    = 100
	ReplyPriority = 100
)

// MaxReplyRules bounds the rules of KeepReplies: the kernel walks them for each
// packet that it routes.
const MaxReplyRules = 256

// ErrTooManyRules is wrapped when more than MaxReplyRules would be needed.
var ErrTooManyRules = errors.New("too many port ranges for policy rules")

// PortRange is the ports from First to Last, both included.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// KeepReplies keeps the replies of published TCP ports in the namespace. A socket
// bound transparently to the address of a client far away can only talk to a
// listener beside it when what the listener sends to that address does not leave
// by the default route:
//
//	ip rule add from GUEST ipproto tcp sport FIRST-LAST priority 100 lookup 100
//	ip route add local default dev lo table 100
//
// No netfilter and no sysctl is needed: the local route gives the looped packet
// its destination before the input path would look at its source (rp_filter).
// The rules may exist already. A program in the namespace that connects outwards
// from one of these ports, bound to the guest's address, is cut off by them.
//
// Needs Linux 4.17 (ipproto and sport in rules). In a namespace without IPv6 the
// IPv6 guests are left out.
func KeepReplies(h *netlink.Handle, guest []netip.Addr, ports []PortRange) error {
	ports = merge(ports)
	if n := len(ports) * len(guest); n > MaxReplyRules {
		return fmt.Errorf("%w: %d, at most %d", ErrTooManyRules, n, MaxReplyRules)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find link lo: %w", err)
	}
	growSegments(h, lo)
	for _, g := range guest {
		err := keepReplies(h, lo.Attrs().Index, g, ports)
		if g.Is6() && noIPv6(err) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// loSegment is how much TCP may send over lo as one packet, in bytes. With 256 KiB instead of
// the usual 64 a stream through a published port takes 10 % less CPU time; with 512 KiB
// it does not.
const loSegment = 256 << 10

// growSegments lets TCP send larger packets over lo (BIG TCP, netdev_features in the
// kernel's documentation; ip-link(8) gso_max_size). A kernel that does not know that, for
// IPv6 before Linux 5.19 and for IPv4 before 6.3, keeps what it has: that is only slower.
func growSegments(h *netlink.Handle, lo netlink.Link) {
	_ = h.LinkSetGSOMaxSize(lo, loSegment)
	_ = h.LinkSetGSOIPv4MaxSize(lo, loSegment)
}

func keepReplies(h *netlink.Handle, lo int, guest netip.Addr, ports []PortRange) error {
	if err := h.RouteReplace(&netlink.Route{
		LinkIndex: lo, Dst: everything(guest), Table: ReplyTable,
		Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
	}); err != nil {
		return fmt.Errorf("add route local default dev lo table %d: %w", ReplyTable, err)
	}
	for _, p := range ports {
		r := netlink.NewRule()
		r.Priority = ReplyPriority
		r.Family = unix.AF_INET
		if guest.Is6() {
			r.Family = unix.AF_INET6
		}
		r.Src = ipNet(netip.PrefixFrom(guest, guest.BitLen()))
		r.IPProto = unix.IPPROTO_TCP
		r.Sport = netlink.NewRulePortRange(p.First, p.Last)
		r.Table = ReplyTable
		if err := h.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add rule from %v tcp sport %d-%d lookup %d: %w", guest, p.First, p.Last, ReplyTable, err)
		}
	}
	return nil
}

// merge sorts the ranges and joins those that touch.
func merge(ports []PortRange) []PortRange {
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	out := ports[:0]
	for _, p := range ports {
		if n := len(out); n > 0 && int(p.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, p.Last)
			continue
		}
		out = append(out, p)
	}
	return out
}
