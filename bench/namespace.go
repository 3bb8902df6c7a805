package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// self is this program, for the roles that it starts itself in.
	self = "/proc/self/exe"
	// congestionSysctl is per network namespace, Documentation/networking/ip-sysctl.rst.
	congestionSysctl = "/proc/sys/net/ipv4/tcp_congestion_control"
	// privateDir is in every Linux; the run mounts a tmpfs of its own over it.
	privateDir = "/dev/shm"
	// holding is what [Hold] prints when the container is ready.
	holding = "holding"
)

// congestionControls that do not pace, the first that the kernel allows is taken.
// cubic is Linux's default, reno is in every kernel and allowed in every namespace.
var congestionControls = []string{"cubic", "reno"}

// namespaceAttr starts a program as pid 1 of namespaces of its own, with all ids
// mapped as they are where the caller is root (so that a /dev/net/tun that only root
// may open can be opened), and as root alone where it is somebody else.
func namespaceAttr(uid, gid int) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID |
			syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}},
		// A session of its own: Ctrl-C reaches the parent only, which ends this in order.
		Setsid:    true,
		Pdeathsig: syscall.SIGKILL,
	}
	if uid == 0 {
		const everyID = 1<<32 - 1
		attr.UidMappings[0] = syscall.SysProcIDMap{Size: everyID}
		attr.GidMappings[0] = syscall.SysProcIDMap{Size: everyID}
		attr.GidMappingsEnableSetgroups = true
	}
	return attr
}

// enterNamespace makes the namespaces of pid 1 usable and returns the test bed.
func enterNamespace(ctx context.Context, cfg Config) (*bed, error) {
	b := &bed{cfg: cfg, dir: privateDir, versions: map[string]Program{}, far: map[distance]far{}}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w (is the use of user namespaces restricted? run: slipway doctor)", err)
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", procfs, "proc", plain, ""); err != nil {
		return nil, fmt.Errorf("mount /proc of a new pid namespace: %w (inside a container whose /proc is masked the benchmark cannot run; run it on the machine itself)", err)
	}
	if err := unix.Mount("tmpfs", privateDir, "tmpfs", plain, "size=16m,mode=0700"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs on %s: %w", privateDir, err)
	}
	// State of the programs under test ends with the run too.
	if err := os.Setenv("XDG_RUNTIME_DIR", privateDir); err != nil {
		return nil, fmt.Errorf("set XDG_RUNTIME_DIR: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return nil, err
	}
	b.template = templateInterface()
	var err error
	if b.congestion, err = setCongestionControl(congestionControls...); err != nil {
		return nil, err
	}
	if b.iperf3, err = lookIperf3(cfg); err != nil {
		return nil, err
	}
	if b.nsenter, err = exec.LookPath("nsenter"); err != nil {
		return nil, fmt.Errorf("look for nsenter: %w (install it: sudo apt install util-linux)", err)
	}
	if b.self, err = selfPath(); err != nil {
		return nil, err
	}
	if err := b.lookPrograms(); err != nil {
		return nil, err
	}
	return b, ctx.Err()
}

// setCongestionControl sets the first of the names that the kernel allows in the
// network namespace of the caller, and reads back what is in force.
func setCongestionControl(names ...string) (string, error) {
	var failed []error
	for _, name := range names {
		if err := os.WriteFile(congestionSysctl, []byte(name), 0); err != nil {
			failed = append(failed, fmt.Errorf("set congestion control %s: %w", name, err))
			continue
		}
		text, err := os.ReadFile(congestionSysctl)
		if err != nil {
			return "", fmt.Errorf("read congestion control: %w", err)
		}
		if got := strings.TrimSpace(string(text)); got != name {
			return "", fmt.Errorf("congestion control is %s after %s was set", got, name)
		}
		return name, nil
	}
	return "", errors.Join(failed...)
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// templateInterface gives the host's side an interface with an address and a default
// route, as every real host has one: pasta copies them. Nothing is ever sent there.
// The addresses are for documentation, RFC 5737.
func templateInterface() error {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host0"}, PeerName: "host1"}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add a veth pair: %w", err)
	}
	peer, err := netlink.LinkByName(veth.PeerName)
	if err != nil {
		return fmt.Errorf("find %s: %w", veth.PeerName, err)
	}
	address := netip.MustParsePrefix("192.0.2.2/24")
	err = netlink.AddrAdd(veth, &netlink.Addr{IPNet: &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}})
	if err != nil {
		return fmt.Errorf("add address %s to %s: %w", address, veth.Name, err)
	}
	for _, link := range []netlink.Link{veth, peer} {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring %s up: %w", link.Attrs().Name, err)
		}
	}
	route := &netlink.Route{LinkIndex: veth.Index, Gw: netip.MustParseAddr("192.0.2.1").AsSlice()}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("add a default route: %w", err)
	}
	return nil
}

// Hold is the process that keeps an empty container's namespaces (slipway bench hold):
// it sets the congestion control there and waits until descriptor 3 reads end of file.
func Hold(congestion string) error {
	life := os.NewFile(3, "life")
	if life == nil {
		return errors.New("bench hold: no descriptor 3; it is started by slipway bench")
	}
	if _, err := setCongestionControl(congestion); err != nil {
		return err
	}
	fmt.Println(holding)
	if _, err := io.Copy(io.Discard, life); err != nil {
		return fmt.Errorf("wait for the end: %w", err)
	}
	return nil
}
