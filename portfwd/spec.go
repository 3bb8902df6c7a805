package portfwd

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Proto is a transport protocol, as in -p.
type Proto string

// The protocols that can be published.
const (
	TCP Proto = "tcp"
	UDP Proto = "udp"
)

// Spec is one published port.
type Spec struct {
	Proto         Proto      `json:"proto"`
	HostIP        netip.Addr `json:"hostIP"`        // the zero Addr: 0.0.0.0 and [::]
	HostPort      uint16     `json:"hostPort"`      // 0: the kernel chooses
	ContainerPort uint16     `json:"containerPort"` // never 0
	// ContainerIP is where the port leads; the zero Addr: the container's own address of
	// the client's family. -p has no syntax for it.
	ContainerIP netip.Addr `json:"containerIP,omitzero"`
}

// Addrs returns what to listen on: one address, or both unspecified ones, which
// share the port.
func (s Spec) Addrs() []netip.AddrPort {
	if s.HostIP.IsValid() {
		return []netip.AddrPort{netip.AddrPortFrom(s.HostIP, s.HostPort)}
	}
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.IPv4Unspecified(), s.HostPort),
		netip.AddrPortFrom(netip.IPv6Unspecified(), s.HostPort),
	}
}

// String returns s as -p takes it: 127.0.0.1:8080:80/tcp, [::1]::80/udp, 8080:80/tcp.
// Parse returns the same Spec for it.
func (s Spec) String() string {
	var b strings.Builder
	switch {
	case s.HostIP.Is6():
		fmt.Fprintf(&b, "[%v]:", s.HostIP)
	case s.HostIP.IsValid():
		fmt.Fprintf(&b, "%v:", s.HostIP)
	}
	if s.HostPort != 0 {
		b.WriteString(strconv.Itoa(int(s.HostPort)))
	}
	fmt.Fprintf(&b, ":%d/%s", s.ContainerPort, s.Proto)
	return b.String()
}

// Arrow returns s as Docker shows it to people: 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp.
func (s Spec) Arrow() string { return arrow(s, s.Addrs()) }

func arrow(s Spec, at []netip.AddrPort) string {
	shown := make([]string, len(at))
	for i, a := range at {
		shown[i] = fmt.Sprintf("%v->%d/%s", a, s.ContainerPort, s.Proto)
	}
	return strings.Join(shown, ", ")
}
