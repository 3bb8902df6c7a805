package slirp4netns

import (
	"fmt"
	"net"
	"strings"
)

// The versions whose behaviour is kept, for those who ask --version what there is.
const (
	upstreamVersion  = "1.3.3"
	configVersionMax = 6 // of struct SlirpConfig: 2 brought outbound-addr, 3 disable-dns
	libslirpVersion  = "4.9.4"
	seccompVersion   = "2.5.4"
)

// version is what --version prints. Docker takes what follows the word "version", so
// only the first line has it.
func (p *Program) version() string {
	var b strings.Builder
	own := strings.TrimPrefix(p.Version, "v")
	fmt.Fprintf(&b, "slirp4netns version %s+slipway%s\n", upstreamVersion, own)
	if p.Commit != "" {
		fmt.Fprintf(&b, "commit: %s\n", p.Commit)
	}
	fmt.Fprintf(&b, "libslirp: %s (slipway netstack)\n", libslirpVersion)
	fmt.Fprintf(&b, "SLIRP_CONFIG_VERSION_MAX: %d\n", configVersionMax)
	fmt.Fprintf(&b, "libseccomp: %s (slipway filter)\n", seccompVersion)
	return b.String()
}

// usage is what --help prints. Clients search it for the options that they use;
// deprecated aliases are not in it.
func (p *Program) usage() string {
	return "Usage: " + p.Name + ` [OPTION]... PID|PATH|FD [TAPNAME]
Gives a network namespace a user-mode network, without privileges on the host.
This is slipway in the place of slirp4netns.

The target:
--netns-type=TYPE        what the first operand is: pid (default) of a process in the
                         namespace, path of the namespace, tapfd: an open TAP
--userns-path=PATH       user namespace to join (default with pid: that of the process)
--target-type=TYPE       netns (default); bess is not supported

The network:
-c, --configure          set lo and the TAP up, with MTU, address and default route
-m, --mtu=MTU            MTU of the TAP (default: 1500, at most: 65521)
-6, --enable-ipv6        IPv6 too (experimental)
--cidr=CIDR              IPv4 network (default: 10.0.2.0/24)
--macaddress=MAC         MAC address of the TAP (only with -c, default: random)
--disable-host-loopback  no way to 127.0.0.1 of the host
--disable-dns            no built-in DNS
--outbound-addr=ADDR     IPv4 address or interface that outgoing sockets are bound to
--outbound-addr6=ADDR    IPv6 address or interface that outgoing sockets are bound to

The process:
-e, --exit-fd=FD         end when this descriptor is closed on its other side
-r, --ready-fd=FD        write "1" to this descriptor once all is ready
-a, --api-socket=PATH    serve requests for port forwards on this socket
--enable-sandbox         see nothing of the host's files but /etc and /run
--enable-seccomp         allow only the system calls that are needed (experimental)
-h, --help               this text
-v, --version            the versions, one a line
`
}

// Banner is what a start prints to stdout.
func (o Options) Banner() string {
	var b strings.Builder
	line := func(name string, value any) { fmt.Fprintf(&b, "* %-17s%v\n", name+":", value) }
	b.WriteString("Starting slirp\n")
	line("MTU", o.MTU)
	line("Network", o.Network.Addr())
	line("Netmask", net.IP(net.CIDRMask(o.Network.Bits(), 32)))
	line("Gateway", o.Gateway())
	line("DNS", o.DNS())
	line("DHCP begin", o.at(atDHCPFirst))
	line("DHCP end", o.at(atDHCPLast))
	line("Recommended IP", o.Guest())
	if o.APISocket != "" {
		line("API Socket", o.APISocket)
	}
	if o.OutboundAddr.IsValid() {
		line("Outbound IPv4", " "+o.OutboundAddr.String())
	}
	if o.OutboundAddr6.IsValid() {
		line("Outbound IPv6", " "+o.OutboundAddr6.String())
	}
	if o.MAC != nil {
		line("MAC address", o.MAC)
	}
	if !o.DisableHostLoopback {
		fmt.Fprintf(&b, "WARNING: 127.0.0.1:* on the host is accessible as %v (set --disable-host-loopback to prohibit connecting to 127.0.0.1:*)\n", o.Gateway())
	}
	return b.String()
}
