package slirp4netns

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// SameUser lets in who runs as this process' user or as root (SO_PEERCRED in unix(7)):
// a socket's file may lie where others can reach it. In a user namespace that does not
// have the machine's root, as in the sandbox of an ordinary user, that is one of the others.
func SameUser(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		peer, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if sockErr != nil {
		return fmt.Errorf("credentials of the API client: %w", sockErr)
	}
	if own := os.Geteuid(); peer.Uid != 0 && int(peer.Uid) != own {
		return fmt.Errorf("API client of uid %d: only %d and 0 may ask", peer.Uid, own)
	}
	return nil
}
