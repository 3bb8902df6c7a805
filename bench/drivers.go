package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// Ports of the run's own network namespaces, where nobody else is.
const (
	serverPort    = 5201 // iperf3's own
	otherPort     = 5202 // of every other server
	publishedPort = 5301 // and up
)

var (
	loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	// gateway is the host as the container sees it: the default of Slipway and
	// slirp4netns, and given to pasta.
	gateway = netip.AddrFrom4([4]byte{10, 0, 2, 2})
	guest   = netip.AddrFrom4([4]byte{10, 0, 2, 100})
)

// driver gives a container its network. Its functions set a lane up; what they have
// started is in the lane also when they return an error. nil: the driver cannot do that.
type driver struct {
	name     string
	programs []string // by the names of [PeerPrograms], the first is what has to run; none: Slipway or the kernel
	start    func(ctx context.Context, b *bed, l *lane) error
	publish  func(ctx context.Context, b *bed, l *lane) error // the same with the lane's ports published
	many     func(ctx context.Context, b *bed, l *lane) error // with those of firstPort to lastPort
	wide     func(ctx context.Context, b *bed, l *lane) error // with those of firstPort to lastWidePort, on every address
	alone    bool                                             // it is up only while it is measured, since it takes from the others also while idle
	reason   string                                           // why it is not measured though it is there
}

// drivers that there are.
func drivers() []driver {
	return []driver{
		{name: DriverHost, start: hostStart},
		{name: DriverVeth, start: vethStart},
		{name: DriverSlipway, start: slipwayStart, publish: slipwayPublish, many: slipwayMany, wide: slipwayWide},
		{name: DriverSlipwayOld, programs: []string{DriverSlipwayOld}, start: slipwayStart, publish: slipwayPublish, many: slipwayMany, wide: slipwayWide},
		{name: DriverSlipwayPlain, start: slipwayPlainStart},
		{name: DriverSlipwayTAP, publish: slipwayTAPPublish},
		{name: DriverSlirp4netns, programs: []string{"slirp4netns"}, start: slirp4netnsStart, publish: slirp4netnsPublish, many: slirp4netnsMany},
		// pasta keeps pipes for its splices ready, as large and as many as a user may have (fs.pipe-user-pages-soft in
		// proc(5)), and RootlessKit keeps those of 1 MiB that it has used: whoever splices beside them, another pasta
		// too, is left with pipes of a page.
		{name: DriverPasta, programs: []string{"pasta"}, start: pastaStart, publish: pastaPublish, many: pastaMany, alone: true},
		{name: DriverGvisorTapVsock, programs: []string{"gvproxy", "gvforwarder"}, start: gvproxyStart, publish: gvproxyPublish},
		{name: DriverRootlessKit, programs: []string{"rootlesskit", "slirp4netns"}, start: rootlessKitStart, publish: rootlessKitPublish, alone: true},
		{name: DriverBypass4netns, programs: []string{"bypass4netns"}, reason: "it works under an OCI runtime only, and this run starts none"},
	}
}

// PeerPrograms are the names of the programs that a run looks for in PATH, or takes from Config.Peers.
func PeerPrograms() []string {
	names := []string{"iperf3", "nginx", "wrk"}
	for _, d := range drivers() {
		for _, p := range d.programs {
			if !slices.Contains(names, p) {
				names = append(names, p)
			}
		}
	}
	return names
}

func lookDriver(name string) driver {
	all := drivers()
	return all[slices.IndexFunc(all, func(d driver) bool { return d.name == name })]
}

// find looks for the programs of a driver; reason says why it is not measured.
func (b *bed) find(d driver) (program, reason string) {
	if d.name == DriverHost || d.name == DriverVeth {
		return "", ""
	}
	if len(d.programs) == 0 {
		return b.cfg.Slipway, ""
	}
	for _, name := range d.programs {
		path := b.programs[name]
		switch {
		case path == "" && name == DriverSlipwayOld:
			return "", "another build of Slipway, given by --peer " + name + "=PATH"
		case path == "" && name == d.programs[0]:
			return "", "not installed"
		case path == "":
			return "", name + " is not installed"
		case name != DriverSlipwayOld && sameFile(path, b.cfg.Slipway):
			return "", path + " is Slipway itself"
		}
	}
	return b.programs[d.programs[0]], d.reason
}

// lookPrograms finds the programs of the peers. One that was given by its path has to be there.
func (b *bed) lookPrograms() error {
	b.programs = map[string]string{}
	for _, name := range PeerPrograms() {
		given, ok := b.cfg.Peers[name]
		switch {
		case ok:
		case name == DriverSlipwayOld:
			continue // nobody means one by chance
		default:
			given = name
		}
		path, err := exec.LookPath(given)
		if err != nil && ok {
			return fmt.Errorf("%w: peer %s: %w", ErrConfig, name, err)
		}
		if err == nil {
			b.programs[name] = path
		}
	}
	return nil
}

// hostStart is for clients and servers on the host: what the machine can do without any container.
func hostStart(_ context.Context, _ *bed, l *lane) error {
	l.dest, l.other = netip.AddrPortFrom(loopback, serverPort), netip.AddrPortFrom(loopback, otherPort)
	return nil
}

// vethStart is a container on a pair of kernel devices.
func vethStart(ctx context.Context, b *bed, l *lane) error {
	pid, enter, err := b.container(ctx, l)
	if err != nil {
		return err
	}
	n := b.nextPort() - publishedPort
	near, there := fmt.Sprintf("vethh%d", n), fmt.Sprintf("vethc%d", n)
	here, inside := netip.AddrFrom4([4]byte{198, 19, byte(n), 1}), netip.AddrFrom4([4]byte{198, 19, byte(n), 2})
	if err := b.addVeth(near, there, pid); err != nil {
		return err
	}
	if err := b.configureLink(0, near, here, l.mtu, 0); err != nil {
		return err
	}
	if err := b.configureLink(pid, there, inside, l.mtu, 0); err != nil {
		return err
	}
	l.setup = append(l.setup, fmt.Sprintf("ip link add %s type veth peer name %s netns %d; ip link set %[1]s mtu %[4]d up; ip addr add %[5]s/24 dev %[1]s # and the same there",
		near, there, pid, l.mtu, here))
	l.toHost(enter, here)
	l.tap = true
	return nil
}

// toHost makes the lane lead from a client in the container to a server on the host.
func (l *lane) toHost(enter []string, host netip.Addr) {
	l.client, l.reverse = enter, DirectionDown
	l.dest, l.other = netip.AddrPortFrom(host, serverPort), netip.AddrPortFrom(host, otherPort)
}

// toContainer makes the lane lead from a client on the host to the published ports.
func (l *lane) toContainer(enter []string) {
	l.server, l.reverse = enter, DirectionUp
	l.dest, l.other = netip.AddrPortFrom(loopback, l.ports[0].host), netip.AddrPortFrom(loopback, l.ports[1].host)
}

// port of the host that is published.
type port struct{ host, guest uint16 }

// ready starts a driver that tells by a byte on its descriptor 3 that it is ready.
func (b *bed) ready(ctx context.Context, l *lane, args []string) error {
	w, ready, err := readyPipe()
	if err != nil {
		return err
	}
	err = b.run(l, args, "", w)
	w.Close()
	if err != nil {
		return err
	}
	return l.drivers[0].await(ctx, ready)
}

// manyRange are the ports from firstPort to lastPort, as people write them.
var manyRange = strconv.Itoa(firstPort) + "-" + strconv.Itoa(lastPort)

// shown is a command as a person would type it.
func shown(args []string) string { return strings.Join(args, " ") }
