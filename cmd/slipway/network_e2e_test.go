//go:build e2e

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Addresses of a container's network.
const (
	gateway4 = "10.0.2.2"
	gateway6 = "fd00::2"
	resolver = "10.0.2.3"
)

// atOnce is how long something takes at most that waits for nobody, on a machine that
// is busy.
const atOnce = 2 * time.Second

// portOf is the port at which a listener of the host listens.
func portOf(t *testing.T, a net.Addr) int {
	t.Helper()
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return int(ap.Port())
}

// hostEcho serves echoes on the host, at a port of addr that it returns.
func hostEcho(t *testing.T, network, addr string) int {
	t.Helper()
	if network[:3] == "udp" {
		c, err := net.ListenPacket(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go echoPackets(c)
		return portOf(t, c.LocalAddr())
	}
	l := hostListen(t, network, addr)
	go echoStreams(l)
	return portOf(t, l.Addr())
}

func hostListen(t *testing.T, network, addr string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func at(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// TestHostByLoopback: with --host-access loopback the gateway is the host's
// loopback, for TCP and UDP of both families and datagrams of any size.
func TestHostByLoopback(t *testing.T) {
	for _, offload := range []string{"auto", "off"} {
		t.Run("offload="+offload, func(t *testing.T) {
			a := newAgent(t, "--host-access", "loopback", "--offload", offload)
			tcp4, tcp6 := hostEcho(t, "tcp4", "127.0.0.1:0"), hostEcho(t, "tcp6", "[::1]:0")
			udp4, udp6 := hostEcho(t, "udp4", "127.0.0.1:0"), hostEcho(t, "udp6", "[::1]:0")
			for _, n := range []int{1, 1448, 1 << 20} {
				a.do("talk", at(gateway4, tcp4), 0, n)
				a.do("talk", at(gateway6, tcp6), 0, n)
			}
			for _, n := range []int{0, 1, 1472, 1473, 8192, 60000} {
				a.do("packet", "udp", at(gateway4, udp4), n)
				a.do("packet", "udp", at(gateway6, udp6), n)
			}
		})
	}
}

// TestPublishedDatagrams: datagrams of any size reach a published port, and are
// answered.
func TestPublishedDatagrams(t *testing.T) {
	for _, offload := range []string{"auto", "off"} {
		t.Run("offload="+offload, func(t *testing.T) {
			port := freeTCP(t) // for UDP it is as free as any
			a := newAgent(t, "--offload", offload, "-p", at("127.0.0.1", port)+":53/udp", "-p", at("::1", port)+":53/udp")
			a.do("echo", "udp", ":53")
			for _, host := range []string{"127.0.0.1", "::1"} {
				for _, n := range []int{0, 1, 1472, 1473, 8192, 60000} {
					if err := packet("udp", at(host, port), n); err != nil {
						t.Errorf("%s, %d bytes: %v", host, n, err)
					}
				}
			}
		})
	}
}

// TestConnectTellsTheTruth: connect(2) in a container fails as it would on the host,
// and at once.
func TestConnectTellsTheTruth(t *testing.T) {
	unused := freeTCP(t)
	type want []syscall.Errno
	refused, unreachable := want{unix.ECONNREFUSED}, want{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES}
	for _, tt := range []struct {
		access string
		addrs  map[string]want
	}{
		{"loopback", map[string]want{
			at(gateway4, unused): refused, at(gateway6, unused): refused,
			"169.254.169.254:80": unreachable, "240.0.0.1:80": unreachable, "[fd00:ec2::254]:80": unreachable,
			at(resolver, 80): unreachable,
		}},
		{"none", map[string]want{
			at(gateway4, hostEcho(t, "tcp4", "127.0.0.1:0")): unreachable,
			at(gateway6, hostEcho(t, "tcp6", "[::1]:0")):     unreachable,
		}},
	} {
		a := newAgent(t, "--host-access", tt.access)
		for addr, want := range tt.addrs {
			r := a.try("dial", "tcp", addr)
			ok := false
			for _, errno := range want {
				ok = ok || r.Errno == errno
			}
			if !ok || r.Took > atOnce {
				t.Errorf("--host-access %s: dial %s: %q after %s, want %v at once", tt.access, addr, r.Err, r.Took, want)
			}
		}
	}
}

// ends are the two ways a connection between container and host can be made: by
// either side, and into the container by two paths. With the side that dialled and
// the one that accepted, run plays one script each.
func ends(t *testing.T, run func(t *testing.T, dialer, acceptor func(what string) error)) {
	asError := func(r reply) error {
		switch {
		case r.Errno != 0:
			return r.Errno
		case r.Err != "":
			return errors.New(r.Err)
		}
		return nil
	}
	t.Run("outwards", func(t *testing.T) {
		a := newAgent(t, "--host-access", "loopback")
		l := hostListen(t, "tcp4", "127.0.0.1:0")
		run(t,
			func(what string) error { return asError(a.try("send", at(gateway4, portOf(t, l.Addr())), what)) },
			func(what string) error {
				c, err := l.AcceptTCP()
				if err != nil {
					return err
				}
				if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
					return err
				}
				_, err = script(c, what)
				return err
			})
	})
	for _, path := range []string{"kernel", "tap"} {
		t.Run("published by "+path, func(t *testing.T) {
			port := freePort(t)
			a := newAgent(t, "-p", "127.0.0.1:"+port+":80", "--publish-path", path)
			a.do("listen", "tcp", ":80")
			run(t,
				func(what string) error {
					c, err := dialFrom("tcp", "127.0.0.1:"+port, 0)
					if err != nil {
						return err
					}
					_, err = script(c.(*net.TCPConn), what)
					return err
				},
				func(what string) error { return asError(a.try("accept", 80, what)) })
		})
	}
}

// TestHalfClose: each side can end its half and go on to read.
func TestHalfClose(t *testing.T) {
	ends(t, func(t *testing.T, dialer, acceptor func(string) error) {
		for _, scripts := range [][2]string{{"listen", "speak"}, {"speak", "listen"}} {
			accepted := make(chan error, 1)
			go func() { accepted <- acceptor(scripts[1]) }()
			if err := dialer(scripts[0]); err != nil {
				t.Errorf("dialled to %s: %v", scripts[0], err)
			}
			if err := <-accepted; err != nil {
				t.Errorf("accepted to %s: %v", scripts[1], err)
			}
		}
	})
}

// TestReset: a reset on one side is a reset on the other.
func TestReset(t *testing.T) {
	ends(t, func(t *testing.T, dialer, acceptor func(string) error) {
		for _, scripts := range [][2]string{{"suffer", "reset"}, {"reset", "suffer"}} {
			accepted := make(chan error, 1)
			go func() { accepted <- acceptor(scripts[1]) }()
			for i, err := range []error{dialer(scripts[0]), <-accepted} {
				if scripts[i] == "suffer" && !errors.Is(err, unix.ECONNRESET) || scripts[i] == "reset" && err != nil {
					t.Errorf("%v: %s got %v", scripts, scripts[i], err)
				}
			}
		}
	})
}

// TestSourcePortIsReusedAtOnce: what a side remembers of a closed connection does not
// stop the next one of the same ports.
func TestSourcePortIsReusedAtOnce(t *testing.T) {
	const times = 10
	l := hostListen(t, "tcp4", "127.0.0.1:0")
	go closeFirst(l)
	published := map[string]string{"kernel": freePort(t), "tap": freePort(t)}
	a := newAgent(t, "--host-access", "loopback")
	for i := range times {
		if r := a.try("talk", at(gateway4, portOf(t, l.Addr())), 40000, 1); r.Err != "" || r.Took > atOnce {
			t.Errorf("outwards, connection %d: %q after %s", i, r.Err, r.Took)
		}
	}
	for path, port := range published {
		a := newAgent(t, "-p", "127.0.0.1:"+port+":80", "--publish-path", path)
		a.do("closefirst", "tcp", ":80")
		source := freeTCP(t)
		for i := range times {
			begin := time.Now()
			if err := echoed("tcp", "127.0.0.1:"+port, 1, source); err != nil || time.Since(begin) > atOnce {
				t.Errorf("published by %s, connection %d: %v after %s", path, i, err, time.Since(begin))
			}
		}
	}
}

// closeFirst echoes one byte and is the first to close.
func closeFirst(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 1)
		if _, err := c.Read(b); err == nil {
			_, _ = c.Write(b)
		}
		_ = c.Close()
	}
}

// TestNoHostByDefault: without --host-access, nothing of the host can be reached; with
// it, what it says.
func TestNoHostByDefault(t *testing.T) {
	if !onPrivateHost(t) {
		return
	}
	const open, closed = 8001, 8002
	own := hostAddr.String()
	for _, port := range []int{open, closed} {
		for _, host := range []string{"127.0.0.1", "::1", own} {
			go echoStreams(hostListen(t, "tcp", at(host, port)))
		}
	}
	all := []string{
		at(gateway4, open), at(gateway4, closed), at(gateway6, open), at(gateway6, closed), at(own, open), at(own, closed),
	}
	for _, tt := range []struct {
		access []string
		open   []string
	}{
		{nil, nil},
		{[]string{"none"}, nil},
		// The gateway stands for the host's own address, of which it has none in IPv6.
		{[]string{"addresses"}, []string{at(own, open), at(own, closed), at(gateway4, open), at(gateway4, closed)}},
		{[]string{"addresses=8001"}, []string{at(own, open), at(gateway4, open)}},
		{[]string{"loopback"}, []string{at(gateway4, open), at(gateway4, closed), at(gateway6, open), at(gateway6, closed)}},
		{[]string{"loopback=8000-8001"}, []string{at(gateway4, open), at(gateway6, open)}},
		{[]string{"loopback=8001", "addresses=8002"}, []string{at(gateway4, open), at(gateway6, open), at(own, closed), at(gateway4, closed)}},
	} {
		t.Run(fmt.Sprint(tt.access), func(t *testing.T) {
			var options []string
			for _, v := range tt.access {
				options = append(options, "--host-access", v)
			}
			a := newAgent(t, options...)
			reachable := make(map[string]bool)
			for _, addr := range tt.open {
				reachable[addr] = true
			}
			for _, addr := range all {
				r := a.try("talk", addr, 0, 10)
				if reachable[addr] != (r.Err == "") || r.Took > atOnce {
					t.Errorf("%s: %q after %s, want it reachable: %v", addr, r.Err, r.Took, reachable[addr])
				}
			}
			if r := a.try("dial", "tcp", at(unroutable.String(), 80)); r.Errno != unix.EHOSTUNREACH && r.Errno != unix.ENETUNREACH || r.Took > atOnce {
				t.Errorf("%s: %q after %s, want it unreachable at once", unroutable, r.Err, r.Took)
			}
		})
	}
}

// TestPing: the network's own addresses answer, and the host's network through ping
// sockets; what cannot be pinged is counted.
func TestPing(t *testing.T) {
	if !onPrivateHost(t) {
		return
	}
	socket := metricsSocket(t)
	options := []string{"--host-access", "addresses", "--metrics", "unix:" + socket}

	// Where the host allows nobody to ping, that is counted, and said once.
	a := newAgent(t, options...)
	a.do("ping", gateway4, 56)
	for range 2 {
		if r := a.try("ping", hostAddr, 56); r.Err == "" {
			t.Error("there was an answer without a ping socket")
		}
	}
	if m := scrape(t, socket); m[`slipway_drops_total{reason="icmp_no_ping_socket"}`] != "2" {
		t.Errorf("%s requests without a ping socket were counted, want 2", m[`slipway_drops_total{reason="icmp_no_ping_socket"}`])
	}
	const fix = "net.ipv4.ping_group_range"
	if a.says(fix); strings.Count(a.stderr.String(), fix) != 2 { // the setting, and the command that changes it
		t.Errorf("it was not said once: %s", &a.stderr)
	}
	a.end()

	allowPing(t)
	a = newAgent(t, options...)
	for _, addr := range []string{gateway4, resolver, gateway6, "fd00::3", hostAddr.String()} {
		a.do("ping", addr, 56)
	}
	a.do("ping", hostAddr, 4000) // in fragments
	if r := a.try("ping", unroutable, 56); r.Errno != unix.EHOSTUNREACH && r.Errno != unix.ENETUNREACH {
		t.Errorf("ping %s: %q, want it unreachable", unroutable, r.Err)
	}
	eventually(t, patience, "two requests and two replies were counted", func() bool { // once they are in the container
		m := scrape(t, socket)
		return m["slipway_icmp_echo_requests_total"] == "2" && m["slipway_icmp_echo_replies_total"] == "2"
	})
}

// agentPing: ping ADDR SIZE.
func agentPing(args []string) (string, error) {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	addr, err := netip.ParseAddr(args[0])
	if err != nil {
		return "", err
	}
	family, proto, request := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
	level, recverr := unix.SOL_IP, unix.IP_RECVERR
	var sa unix.Sockaddr
	if addr.Is4() {
		sa = &unix.SockaddrInet4{Addr: addr.As4()}
	} else {
		family, proto, request = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
		level, recverr = unix.SOL_IPV6, unix.IPV6_RECVERR
		sa = &unix.SockaddrInet6{Addr: addr.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return "", fmt.Errorf("ping socket: %w", err)
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(3 * time.Second))
	if err := errors.Join(
		unix.SetsockoptInt(fd, level, recverr, 1), unix.Connect(fd, sa),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
	); err != nil {
		return "", err
	}
	// Type, code, checksum and id are the kernel's business, but for the type.
	message := make([]byte, 8+n)
	message[0] = request
	binary.BigEndian.PutUint16(message[6:], 1)
	if _, err := unix.Write(fd, message); err != nil {
		return "", err
	}
	got := make([]byte, 1<<16)
	k, err := unix.Read(fd, got)
	if err != nil {
		return "", err
	}
	if k != len(message) {
		return "", fmt.Errorf("an answer of %d bytes, want %d", k, len(message))
	}
	return "", nil
}
