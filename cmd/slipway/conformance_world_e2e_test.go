//go:build e2e

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Addresses of the world around the private host, see newWorld.
var (
	nearAddr   = netip.MustParseAddr("192.0.2.1")
	secondAddr = netip.MustParseAddr("192.0.2.9") // the host's too
	ifaceAddr  = netip.MustParseAddr("192.0.2.77")
	routerAddr = netip.MustParseAddr("192.0.2.254")
	serverAddr = netip.MustParseAddr("203.0.113.80")
	noNetAddr  = netip.MustParseAddr("198.18.5.5") // the router has no way there

	nearAddr6   = netip.MustParseAddr("2001:db8:1::1")
	secondAddr6 = netip.MustParseAddr("2001:db8:1::9")
	ifaceAddr6  = netip.MustParseAddr("2001:db8:1::77")
	routerAddr6 = netip.MustParseAddr("2001:db8:1::254")
	serverAddr6 = netip.MustParseAddr("2001:db8:2::80")
	noNetAddr6  = netip.MustParseAddr("2001:db8:5::5")
)

// What the server offers, by TCP and UDP: echoes, and to say whom it sees.
const (
	echoPort   = 7
	tellerPort = 9
)

// farMTU is that of the link between router and server.
const farMTU = 1400

// altIface is an interface of the private host that has ifaceAddr and ifaceAddr6.
const altIface = "alt0"

// world is a network around a private host: the host's link to a router, and behind
// it a server over a link with a smaller MTU.
type world struct {
	server *agent
}

func newWorld(t *testing.T) *world {
	t.Helper()
	own := func() *agent { return targetWith(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}) }
	router, server := own(), own()
	host := func(args ...any) { t.Helper(); ip(t, args...) }
	on := func(a *agent) func(args ...any) {
		return func(args ...any) { t.Helper(); a.do(append([]any{"exec", "ip"}, args...)...) }
	}
	forRouter, forServer := on(router), on(server)

	// Package net tries IPv6 on the loopback before it believes in it.
	forServer("link", "set", "lo", "up")
	host("link", "add", "near0", "type", "veth", "peer", "name", "near1", "netns", router.Process.Pid)
	forRouter("link", "add", "far0", "mtu", farMTU, "type", "veth", "peer", "name", "far1", "mtu", farMTU, "netns", server.Process.Pid)
	host("link", "add", altIface, "type", "veth", "peer", "name", "alt1")
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		router.do("write", "/proc/sys/net/"+f, 1)
	}
	// Routers answer at a bounded rate, icmp(7); tests would have to wait.
	router.do("write", "/proc/sys/net/ipv4/icmp_ratelimit", 0)
	router.do("write", "/proc/sys/net/ipv6/icmp/ratelimit", 0)
	address := func(on func(...any), iface string, bits int, addrs ...netip.Addr) {
		t.Helper()
		for _, a := range addrs {
			prefix := netip.PrefixFrom(a, a.BitLen()-bits)
			if a.Is6() {
				on("addr", "add", prefix, "dev", iface, "nodad")
			} else {
				on("addr", "add", prefix, "dev", iface)
			}
		}
		on("link", "set", iface, "up")
	}
	address(host, "near0", 8, nearAddr, secondAddr)
	address(host, altIface, 0, ifaceAddr, ifaceAddr6)
	host("link", "set", "alt1", "up")
	address(forRouter, "near1", 8, routerAddr)
	address(forRouter, "far0", 8, netip.MustParseAddr("203.0.113.254"))
	address(forServer, "far1", 8, serverAddr)
	address(host, "near0", 64, nearAddr6, secondAddr6)
	address(forRouter, "near1", 64, routerAddr6)
	address(forRouter, "far0", 64, netip.MustParseAddr("2001:db8:2::254"))
	address(forServer, "far1", 64, serverAddr6)
	host("route", "add", "203.0.113.0/24", "via", routerAddr, "src", nearAddr)
	host("route", "add", "198.18.0.0/15", "via", routerAddr)
	host("-6", "route", "add", "2001:db8::/32", "via", routerAddr6, "src", nearAddr6)
	// Unlike ARP, neighbour discovery answers only for the addresses of the interface asked.
	forRouter("-6", "route", "add", ifaceAddr6.String()+"/128", "via", nearAddr6)
	forServer("route", "add", "default", "via", "203.0.113.254")
	forServer("-6", "route", "add", "default", "via", "2001:db8:2::254")

	for _, network := range []string{"tcp", "udp"} {
		server.do("echo", network, fmt.Sprintf(":%d", echoPort))
		server.do("teller", network, fmt.Sprintf(":%d", tellerPort))
	}
	// The links are up once their other ends are, which takes the kernel a moment.
	for _, addr := range []netip.Addr{serverAddr, serverAddr6} {
		eventually(t, patience, setupFailed+"a way to "+addr.String(), func() bool {
			s, err := tell("udp", at(addr.String(), tellerPort))
			return err == nil && s.Seen == s.Local
		})
	}
	return &world{server: server}
}

// ip runs ip(8) on the private host.
func ip(t *testing.T, args ...any) {
	t.Helper()
	if out, err := exec.Command("ip", words(args)...).CombinedOutput(); err != nil {
		t.Fatalf("%sip %v: %v: %s", setupFailed, args, err, out)
	}
}

func words(args []any) []string {
	var out []string
	for _, a := range args {
		out = append(out, fmt.Sprint(a))
	}
	return out
}

// service is a running driver.
type service struct {
	*process
	api  string    // its API socket
	exit io.Closer // its closing ends the driver
}

// serve gives a guest a network, configured by the driver when -c is among the
// options, and returns once the driver says it is ready.
func (d driver) serve(t *testing.T, guest *agent, options ...string) *service {
	t.Helper()
	return d.launch(t, nil, append(options, strconv.Itoa(guest.Process.Pid), "tap0")...)
}

// launch is serve for any arguments. The files begin at descriptor 5.
func (d driver) launch(t *testing.T, files []*os.File, args ...string) *service {
	t.Helper()
	p, ready, s := d.begin(t, files, args...)
	defer ready.Close()
	if err := ready.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	// The end of the file says that nobody else kept the descriptor.
	if b, err := io.ReadAll(ready); err != nil || string(b) != "1" {
		t.Fatalf("ready descriptor: %q, %v; want one byte\n%s%s", b, err, &p.stdout, &p.stderr)
	}
	return s
}

// begin starts the driver, and returns it with the reading end of its ready pipe.
func (d driver) begin(t *testing.T, files []*os.File, args ...string) (*process, *os.File, *service) {
	t.Helper()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	exitR, exitW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exitW.Close() })
	socket := metricsSocket(t)
	cmd := exec.Command(d.path, slices.Concat([]string{"--ready-fd=3", "--exit-fd=4", "--api-socket=" + socket}, d.args, args)...)
	cmd.Env = append(os.Environ(), d.env...)
	cmd.ExtraFiles = append([]*os.File{readyW, exitR}, files...)
	p := start(t, cmd)
	readyW.Close()
	exitR.Close()
	return p, readyR, &service{process: p, api: socket, exit: exitW}
}

// guestOf is a new guest with a configured network, and the driver that serves it.
func (d driver) guestOf(t *testing.T, options ...string) (*agent, *service) {
	t.Helper()
	g := newTarget(t)
	// Of its addresses a guest would wait for duplicates first: RFC 4862 section 5.4.
	g.do("write", "/proc/sys/net/ipv6/conf/default/accept_dad", 0)
	g.do("write", "/proc/sys/net/ipv4/ping_group_range", 0, 0)
	return g, d.serve(t, g, append([]string{"-c"}, options...)...)
}

// apiAnswer is the API's answer to a request.
type apiAnswer struct {
	Return *struct {
		ID       int
		HostPort int `json:"host_port"`
		Entries  []forward
	}
	Entries []forward
	Error   *struct{ Desc string }

	text string // all of it, as it came
}

func (a apiAnswer) String() string { return a.text }

// forward is a forwarded port, in a request and in the API's list.
type forward struct {
	ID        int    `json:"id,omitempty"`
	Proto     string `json:"proto"`
	HostAddr  string `json:"host_addr,omitempty"`
	HostPort  int    `json:"host_port"`
	GuestAddr string `json:"guest_addr"`
	GuestPort int    `json:"guest_port"`
}

// call sends the API a request and returns its answer.
func (s *service) call(request string) apiAnswer {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", s.api)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		s.t.Fatal(err)
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		s.t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		s.t.Fatalf("%s: %v", request, err)
	}
	a := apiAnswer{text: string(b)}
	if err := json.Unmarshal(b, &a); err != nil {
		s.t.Fatalf("%s: %q: %v", request, b, err)
	}
	return a
}

// add asks the API for a forward.
func (s *service) add(f forward) apiAnswer {
	s.t.Helper()
	b, err := json.Marshal(f)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.call(`{"execute":"add_hostfwd","arguments":` + string(b) + "}")
}

// publish is add for what must succeed. It returns the forward's id.
func (s *service) publish(f forward) int {
	s.t.Helper()
	a := s.add(f)
	if a.Error != nil || a.Return == nil || a.Return.ID == 0 {
		s.t.Fatalf("%+v: %v, want an id", f, a)
	}
	return a.Return.ID
}

// sight is what tell has found out.
type sight struct {
	Local netip.AddrPort // the address that was called from
	Seen  netip.AddrPort // and what it was for the other side
}

// sees is what a teller at addr sees of a guest, or of another agent.
func sees(t *testing.T, from *agent, network, addr string) sight {
	t.Helper()
	var s sight
	if err := json.Unmarshal([]byte(from.do("tell", network, addr)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// seesHost is sees of the private host itself.
func seesHost(t *testing.T, network, addr string) sight {
	t.Helper()
	s, err := tell(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// hostTeller serves on the private host and returns its port.
func hostTeller(t *testing.T, network, addr string) int {
	t.Helper()
	c, port, err := serveTeller(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return port
}

// fails checks that a command failed at once, with one of the errors.
func fails(t *testing.T, r reply, want ...syscall.Errno) {
	t.Helper()
	for _, errno := range want {
		if r.Errno == errno && r.Took <= atOnce {
			return
		}
	}
	t.Errorf("%q after %s, want %v at once", r.Err, r.Took, want)
}

// unreachable are the errors of what has no route, which ones depends on who says so.
var unreachableErrors = []syscall.Errno{unix.ENETUNREACH, unix.EHOSTUNREACH}

// play lets a dialler and an acceptor play pairs of scripts, see script.
func play(t *testing.T, dialer, acceptor func(what string) reply, pairs ...[2]string) {
	t.Helper()
	for _, scripts := range pairs {
		accepted := make(chan reply, 1)
		go func() { accepted <- acceptor(scripts[1]) }()
		for i, r := range []reply{dialer(scripts[0]), <-accepted} {
			suffers := scripts[i] == "suffer"
			if suffers && r.Errno != unix.ECONNRESET || !suffers && r.Err != "" {
				t.Errorf("%v: %s got %q", scripts, scripts[i], r.Err)
			}
		}
	}
}

// The pairs of scripts of a connection that is half closed, and of one that is reset.
var (
	halfCloses = [][2]string{{"listen", "speak"}, {"speak", "listen"}}
	resets     = [][2]string{{"suffer", "reset"}, {"reset", "suffer"}}
)

// replyOf is a reply to what the test itself has done.
func replyOf(_ string, err error) reply {
	var r reply
	if err != nil {
		r.Err = err.Error()
		errors.As(err, &r.Errno)
	}
	return r
}

// netif is the state of an interface and of the loopback beside it.
type netif struct {
	Up         bool
	LoopbackUp bool
	MTU        int
	MAC        string
	Addrs      []netip.Prefix
	Gateways   []netip.Addr // of default routes
}

// tapOf is the state of a guest's tap0.
func tapOf(t *testing.T, guest *agent) netif {
	t.Helper()
	var i netif
	if err := json.Unmarshal([]byte(guest.do("netif", "tap0")), &i); err != nil {
		t.Fatal(err)
	}
	return i
}

// only4 and only6 are the addresses of one family, link-local ones not among them.
func (i netif) only4() []netip.Prefix { return i.global(netip.Addr.Is4) }
func (i netif) only6() []netip.Prefix { return i.global(netip.Addr.Is6) }

func (i netif) global(is func(netip.Addr) bool) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range i.Addrs {
		if is(a.Addr()) && !a.Addr().IsLinkLocalUnicast() {
			out = append(out, a)
		}
	}
	return out
}

// byHand configures tap0 as a client does that asks for no -c.
func byHand(guest *agent) {
	guest.t.Helper()
	for _, args := range []string{
		"link set lo up", "link set tap0 up", "addr add 10.0.2.100/24 dev tap0", "route add default via " + gateway4,
	} {
		guest.do("exec", "ip", args)
	}
}
