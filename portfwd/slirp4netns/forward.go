package slirp4netns

import (
	"context"
	"net/netip"
)

// Proto is the transport protocol of a forward.
type Proto string

// The protocols. Those that end in 6 are not upstream's.
const (
	TCP  Proto = "tcp"
	UDP  Proto = "udp"
	TCP6 Proto = "tcp6"
	UDP6 Proto = "udp6"
)

func (p Proto) family() family {
	switch p {
	case TCP, UDP:
		return ipv4
	case TCP6, UDP6:
		return ipv6
	}
	return 0
}

// Forward is a port of the host that leads to one of the guest. Both addresses are of
// Proto's family.
type Forward struct {
	ID    int
	Proto Proto
	Host  netip.AddrPort // port 0: the kernel chooses
	Guest netip.AddrPort // the port is never 0
}

// Forwards is where the API's requests go. Its methods are called concurrently.
type Forwards interface {
	// Add starts f, whose ID is 0, and returns it with its ID and the host's port
	// that it has. IDs count from 1 and none comes twice.
	Add(ctx context.Context, f Forward) (Forward, error)
	// List returns the forwards in the order in which they were added.
	List() []Forward
	// Remove ends what Add began; connections live on. ErrNoForward where there is
	// none of this ID.
	Remove(id int) error
}
