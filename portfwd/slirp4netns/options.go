package slirp4netns

import (
	"net"
	"net/netip"
)

// Kind says what the operand of the command line is (--netns-type).
type Kind string

// The kinds of target.
const (
	KindPID   Kind = "pid"
	KindPath  Kind = "path"
	KindTapFD Kind = "tapfd"
)

const (
	defaultMTU = 1500
	// maxMTU is what a TAP takes: 65535 less an Ethernet header.
	maxMTU = 65521
	// maxTapName is IFNAMSIZ of linux/if.h less the final zero.
	maxTapName = 15
	// maxSocketPath is sun_path of unix(7), with the final zero.
	maxSocketPath = 108
	// minMTU is what IPv4 needs (RFC 791 section 3.2), and the kernel of a device.
	minMTU = 68
)

var defaultNetwork = netip.MustParsePrefix("10.0.2.0/24")

// Options is a valid command line. Nothing that only the kernel can tell is checked:
// whether the process exists, a descriptor is open, an MTU fits the device.
type Options struct {
	Kind       Kind
	PID        int    // KindPID
	NetnsPath  string // KindPath
	TapFD      int    // KindTapFD
	TapName    string // of KindPID and KindPath; shortened to what a device's name can have
	UsernsPath string // "": that of PID, and none for KindPath

	Configure           bool // lo and the TAP: up, MTU, address, route
	ExitFD, ReadyFD     int  // -1: none
	MTU                 int
	Network             netip.Prefix // IPv4, a network's address, at most a /25
	DisableHostLoopback bool
	DisableDNS          bool
	EnableIPv6          bool
	EnableSandbox       bool
	EnableSeccomp       bool
	APISocket           string           // "": none
	OutboundAddr        netip.Addr       // the zero Addr: the kernel chooses
	OutboundAddr6       netip.Addr       // likewise
	MAC                 net.HardwareAddr // of the TAP; nil: a random one
}

// The address plan within Network, by the distance from its address.
const (
	atGateway   = 2
	atDNS       = 3
	atDHCPFirst = 15
	atDHCPLast  = 30
	atGuest     = 100
)

// Gateway is the host as the guest sees it.
func (o Options) Gateway() netip.Addr { return o.at(atGateway) }

// DNS relays to the host's resolver.
func (o Options) DNS() netip.Addr { return o.at(atDNS) }

// Guest is the address that Configure sets, and what a forward without one goes to.
func (o Options) Guest() netip.Addr { return o.at(atGuest) }

// at returns the address that lies n behind the network's. A /25 has room for each.
func (o Options) at(n uint32) netip.Addr {
	b := o.Network.Masked().Addr().As4()
	sum := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	sum += n
	return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// Refusal is an error whose text is slirp4netns' own.
type Refusal string

func (r Refusal) Error() string { return string(r) }

// Late is what slirp4netns finds fault with only after its banner: a Refusal, or nil.
func (o Options) Late() error {
	switch {
	case len(o.APISocket) >= maxSocketPath:
		return Refusal("the specified API socket path is too long (>= 108)")
	case o.MTU < minMTU && !o.Configure: // with Configure the kernel refuses it before
		return Refusal("slirp_new failed")
	}
	return nil
}
