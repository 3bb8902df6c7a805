package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// socket is what is read of a TCP socket, sock_diag(7).
type socket struct {
	local, remote uint16 // ports
	inode         uint32
	congestion    string
	listens       bool // it is no connection but waits for some
}

// diagRequest is struct inet_diag_req_v2, linux/inet_diag.h, for every established
// connection of a family and everything that listens, with its congestion control.
type diagRequest struct{ family uint8 }

const (
	diagRequestSize = 56

	tcpEstablished, tcpListen = 1, 10 // net/tcp_states.h
)

func (diagRequest) Len() int { return diagRequestSize }

func (r diagRequest) Serialize() []byte {
	b := make([]byte, diagRequestSize)
	b[0], b[1], b[2] = r.family, unix.IPPROTO_TCP, 1<<(netlink.INET_DIAG_CONG-1)
	binary.NativeEndian.PutUint32(b[4:], 1<<tcpEstablished|1<<tcpListen)
	return b
}

// parseSocket reads struct inet_diag_msg and its attributes.
func parseSocket(message []byte) (socket, error) {
	const size = 72
	if len(message) < size {
		return socket{}, fmt.Errorf("parse a socket: %d bytes, want at least %d", len(message), size)
	}
	s := socket{
		local: binary.BigEndian.Uint16(message[4:]), remote: binary.BigEndian.Uint16(message[6:]),
		listens: message[1] == tcpListen, inode: binary.NativeEndian.Uint32(message[68:]),
	}
	attributes, err := nl.ParseRouteAttr(message[size:])
	if err != nil {
		return socket{}, fmt.Errorf("parse a socket: %w", err)
	}
	for _, a := range attributes {
		if a.Attr.Type == netlink.INET_DIAG_CONG {
			s.congestion = unix.ByteSliceToString(a.Value)
		}
	}
	return s, nil
}

// namespaceOf a process; 0: our own.
func namespaceOf(pid int) (netns.NsHandle, error) {
	path := procfs + "/self/ns/net"
	if pid > 0 {
		path = filepath.Join(procfs, strconv.Itoa(pid), "ns/net")
	}
	h, err := netns.GetFromPath(path)
	if err != nil {
		return netns.None(), fmt.Errorf("open the network namespace of process %d: %w", pid, err)
	}
	return h, nil
}

// handleAt the network namespace of a process; 0: our own.
func handleAt(pid int) (*netlink.Handle, error) {
	namespace, err := namespaceOf(pid)
	if err != nil {
		return nil, err
	}
	defer namespace.Close()
	h, err := netlink.NewHandleAt(namespace)
	if err != nil {
		return nil, fmt.Errorf("open netlink in the namespace of process %d: %w", pid, err)
	}
	return h, nil
}

// sockets that are connected, or listen, in the network namespace of a process; 0: our own.
func sockets(pid int) ([]socket, error) {
	namespace, err := namespaceOf(pid)
	if err != nil {
		return nil, err
	}
	defer namespace.Close()
	conn, err := nl.GetNetlinkSocketAt(namespace, netns.None(), unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, fmt.Errorf("list sockets in the namespace of process %d: %w", pid, err)
	}
	defer conn.Close()
	if err := conn.SetReceiveTimeout(&unix.Timeval{Sec: 5}); err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	var found []socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: conn}}
		request.AddData(diagRequest{family})
		messages, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil {
			return nil, fmt.Errorf("list sockets in the namespace of process %d: %w", pid, err)
		}
		for _, m := range messages {
			s, err := parseSocket(m)
			if err != nil {
				return nil, err
			}
			found = append(found, s)
		}
	}
	return found, nil
}

// inodes of the sockets that processes have open. Those of a process that has locked
// itself down cannot be seen, nor those of one that has ended.
func inodes(procfs string, pids []int) (map[uint32]bool, error) {
	found := map[uint32]bool{}
	for _, pid := range pids {
		dir := filepath.Join(procfs, strconv.Itoa(pid), "fd")
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list the descriptors of process %d: %w", pid, err)
		}
		for _, e := range entries {
			target, err := os.Readlink(filepath.Join(dir, e.Name()))
			if err != nil {
				continue // closed since
			}
			text, ok := strings.CutPrefix(target, "socket:[")
			if n, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 32); ok && err == nil {
				found[uint32(n)] = true
			}
		}
	}
	return found, nil
}

// pids of the driver's processes.
func (l *lane) pids() ([]int, error) {
	var pids []int
	for _, p := range l.drivers {
		found, err := tree(procfs, p.pid())
		if err != nil {
			return nil, err
		}
		for _, s := range found {
			pids = append(pids, s.id.pid)
		}
	}
	return pids, nil
}

// errElsewhere is wrapped where a driver does not carry what it is measured by.
var errElsewhere = errors.New("the traffic does not pass through the driver")

// checkLater looks at the sockets in the middle of the time that is measured, were nothing
// left out before it: only iperf3 leaves something out. It says what is wrong when ctx has
// ended, or before.
func (l *lane) checkLater(ctx context.Context, b *bed, e ends, w work, t timing) <-chan error {
	result := make(chan error, 1)
	if !w.tcp {
		result <- nil
		return result
	}
	go func() {
		timer := time.NewTimer(t.seconds / 2)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			result <- nil
			return
		case <-timer.C:
		}
		result <- l.check(b, e, w)
	}()
	return result
}

// check that every connection of the run uses its congestion control, the driver's own
// too, and that one which leads to the server is the driver's. Where connections are too
// brief to be found twice, it is what listens at the published port that has to be the
// driver's; that nothing goes around the device shows in its counters.
func (l *lane) check(b *bed, e ends, w work) error {
	found, err := sockets(0)
	if err != nil {
		return err
	}
	if e.container > 0 {
		inside, err := sockets(e.container)
		if err != nil {
			return err
		}
		found = append(found, inside...)
	}
	for _, s := range found {
		if !s.listens && s.congestion != b.congestion {
			return fmt.Errorf("a connection from port %d to port %d uses congestion control %q, want %s", s.local, s.remote, s.congestion, b.congestion)
		}
	}
	if len(l.drivers) == 0 || w.brief && l.side == sideContainer {
		return nil
	}
	pids, err := l.pids()
	if err != nil {
		return err
	}
	owned, err := inodes(procfs, pids)
	if err != nil {
		return err
	}
	ports := []uint16{e.dest.Port(), serverPort, otherPort}
	if slices.ContainsFunc(found, func(s socket) bool {
		if w.brief {
			return owned[s.inode] && s.listens && s.local == e.dest.Port()
		}
		return owned[s.inode] && !s.listens && (slices.Contains(ports, s.local) || slices.Contains(ports, s.remote))
	}) {
		return nil
	}
	return fmt.Errorf("%w: none of %d sockets is one of the ports %d and of the processes %d of %s", errElsewhere, len(found), ports, pids, filepath.Base(l.program))
}
