package portfwd

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/docker/go-connections/nat"
)

// MaxPorts is how many ports one call of Parse may publish: each costs up to two
// listeners, and RLIMIT_NOFILE has to hold the connections too.
const MaxPorts = 16384

// ErrSyntax and the others say what is wrong with a value of -p; every error of
// Parse wraps one.
var (
	ErrSyntax      = errors.New("bad port syntax")
	ErrUnsupported = errors.New("protocol not supported")
	ErrConflict    = errors.New("port published twice")
	ErrTooMany     = errors.New("too many ports")
)

// syntax ends the errors that a person can mend by writing the value otherwise.
const syntax = "write [IP:][HOSTPORT]:CONTAINERPORT[/tcp|udp] with ports 1-65535, " +
	"for example 8080:80, 127.0.0.1:8080:80, [::1]:8080:80, 8000-8010:80-90, 53:53/udp, or 80 for a random host port"

// Parse reads values of -p as Docker does, and expands ranges. An empty or zero
// host port lets the kernel choose. The order of the values is kept.
//
// Other than Docker it refuses sctp, a range of host ports for a single container
// port, and two values that want the same address and port of the host.
func Parse(values []string) ([]Spec, error) {
	var specs []Spec
	taken := conflicts{}
	for _, value := range values {
		mappings, err := nat.ParsePortSpec(value)
		if strings.HasPrefix(value, "[]") { // nat takes it for no ip, which is every address
			err = errors.New("invalid IP address: []")
		}
		if err != nil {
			return nil, fmt.Errorf("publish %q: %w: %w: %s", value, ErrSyntax, err, syntax)
		}
		if len(specs)+len(mappings) > MaxPorts {
			return nil, fmt.Errorf("publish %q: %w: %d, at most %d: publish fewer, or use --network host",
				value, ErrTooMany, len(specs)+len(mappings), MaxPorts)
		}
		for _, m := range mappings {
			s, err := specOf(m, len(mappings))
			if err != nil {
				return nil, fmt.Errorf("publish %q: %w", value, err)
			}
			if other, clash := taken.add(s); clash {
				return nil, fmt.Errorf("publish %q: %w: %s and %s want the same port of the host: leave one out, or give it another host port or ip",
					value, ErrConflict, other, s)
			}
			specs = append(specs, s)
		}
	}
	return specs, nil
}

// specOf turns one mapping, of a value that has n, into a Spec.
func specOf(m nat.PortMapping, n int) (Spec, error) {
	s := Spec{Proto: Proto(m.Port.Proto())}
	switch s.Proto {
	case TCP, UDP:
	default:
		return Spec{}, fmt.Errorf("%w: %s: only tcp and udp can be published", ErrUnsupported, s.Proto)
	}

	// nat checked the number: it fits, but may be 0.
	s.ContainerPort = uint16(m.Port.Int())
	if s.ContainerPort == 0 {
		return Spec{}, fmt.Errorf("%w: container port 0: %s", ErrSyntax, syntax)
	}

	port, err := nat.ParsePort(m.Binding.HostPort)
	if err != nil { // nat keeps "8000-8010" where the container's side is one port
		return Spec{}, fmt.Errorf("%w: host ports %s for the one container port %d: ranges must be of the same length, as 8000-8010:80-90",
			ErrSyntax, m.Binding.HostPort, s.ContainerPort)
	}
	if port == 0 && n > 1 && m.Binding.HostPort != "" {
		return Spec{}, fmt.Errorf("%w: a range of host ports that begins with 0: %s", ErrSyntax, syntax)
	}
	s.HostPort = uint16(port)

	if m.Binding.HostIP != "" {
		addr, _ := netip.ParseAddr(m.Binding.HostIP) // nat let only addresses pass
		s.HostIP = addr.Unmap()
		if !addr.IsValid() || addr.IsMulticast() || s.HostIP == broadcast {
			return Spec{}, fmt.Errorf("%w: ip %s is not one to listen on: %s", ErrSyntax, m.Binding.HostIP, syntax)
		}
	}
	return s, nil
}

// conflicts knows which sockets would be refused with EADDRINUSE: the same
// address and port, or one address of a port and the unspecified one.
type conflicts map[endpoint]Spec

// endpoint is what only one socket can have. The zero Addr stands for "some
// address of the family".
type endpoint struct {
	proto  Proto
	family int
	addr   netip.Addr
	port   uint16
}

// add enters s, unless it clashes with one that is in already.
func (c conflicts) add(s Spec) (other Spec, clash bool) {
	if s.HostPort == 0 {
		return Spec{}, false
	}
	for _, a := range s.Addrs() {
		at := endpoint{proto: s.Proto, family: a.Addr().BitLen(), addr: a.Addr(), port: a.Port()}
		some, unspecified := at, at
		some.addr = netip.Addr{}
		unspecified.addr = netip.IPv4Unspecified()
		if a.Addr().Is6() {
			unspecified.addr = netip.IPv6Unspecified()
		}
		against := []endpoint{at, unspecified}
		if a.Addr().IsUnspecified() {
			against = []endpoint{some}
		}
		for _, e := range against {
			if other, clash := c[e]; clash {
				return other, true
			}
		}
		c[at], c[some] = s, s
	}
	return Spec{}, false
}
