//go:build e2e

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Ports of the private host that are forwarded to others of the guest.
const (
	hostPort  = 8080
	guestPort = 80
)

// Forwarded ports, by the API.
var portCases = []conformanceCase{
	{name: "port: TCP on 0.0.0.0", check: func(t *testing.T, d driver) { forwards(t, d, "tcp", "0.0.0.0") }},
	{name: "port: TCP on 127.0.0.1", check: func(t *testing.T, d driver) { forwards(t, d, "tcp", "127.0.0.1") }},
	{name: "port: UDP on 0.0.0.0", check: func(t *testing.T, d driver) { forwards(t, d, "udp", "0.0.0.0") }},
	{name: "port: UDP on 127.0.0.1", check: func(t *testing.T, d driver) { forwards(t, d, "udp", "127.0.0.1") }},
	{name: "port: no addresses given", check: func(t *testing.T, d driver) { forwards(t, d, "tcp", "") }},
	{name: "port: TCP half-close", check: func(t *testing.T, d driver) { playsByPort(t, d, halfCloses...) }},
	{name: "port: TCP reset by the client", check: func(t *testing.T, d driver) { playsByPort(t, d, resets[1]) }},
	{name: "port: TCP reset by the guest", known: excuse{bug, "the client sees an end of file"}, check: func(t *testing.T, d driver) { playsByPort(t, d, resets[0]) }},
	{name: "port: UDP of 1 to 65,507 bytes", check: func(t *testing.T, d driver) {
		g, s := d.guestOf(t)
		g.do("echo", "udp4", fmt.Sprintf(":%d", guestPort))
		s.publish(forward{Proto: "udp", HostAddr: "127.0.0.1", HostPort: hostPort, GuestPort: guestPort})
		for _, n := range datagrams {
			if err := packet("udp", at("127.0.0.1", hostPort), n); err != nil {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
	}},
	{name: "port: UDP replies by the address called", known: excuse{bug, "the kernel chooses the source of a reply"}, check: func(t *testing.T, d driver) {
		w := newWorld(t)
		g, s := d.guestOf(t)
		g.do("teller", "udp4", fmt.Sprintf(":%d", guestPort))
		s.publish(forward{Proto: "udp", HostAddr: "0.0.0.0", HostPort: hostPort, GuestPort: guestPort})
		for _, addr := range []netip.Addr{nearAddr, secondAddr, ifaceAddr} {
			if r := w.server.try("tell", "udp", at(addr.String(), hostPort)); r.Err != "" {
				t.Errorf("%s: %s", addr, r.Err)
			}
		}
	}},
	{name: "port: TCP with --disable-host-loopback", check: func(t *testing.T, d driver) {
		forwards(t, d, "tcp", "127.0.0.1", "--disable-host-loopback")
	}},
	{name: "port: UDP with --disable-host-loopback", known: excuse{bug, "replies to the host's loopback are dropped (podman#4586)"}, check: func(t *testing.T, d driver) {
		forwards(t, d, "udp", "127.0.0.1", "--disable-host-loopback")
	}},
	{name: "port: TCP and UDP share a number", check: func(t *testing.T, d driver) {
		g, s := d.guestOf(t)
		for _, network := range networks {
			g.do("echo", network+"4", fmt.Sprintf(":%d", guestPort))
			s.publish(forward{Proto: network, HostPort: hostPort, GuestPort: guestPort})
		}
		if err := echoed("tcp", at("127.0.0.1", hostPort), 1000, 0); err != nil {
			t.Error(err)
		}
		if err := packet("udp", at("127.0.0.1", hostPort), 1000); err != nil {
			t.Error(err)
		}
	}},
	{name: "port: another guest address", check: func(t *testing.T, d driver) {
		g, s := d.guestOf(t)
		g.do("exec", "ip", "addr add 10.0.2.55/24 dev tap0")
		g.do("echo", "tcp4", fmt.Sprintf("10.0.2.55:%d", guestPort))
		s.publish(forward{Proto: "tcp", HostPort: hostPort, GuestAddr: "10.0.2.55", GuestPort: guestPort})
		if err := echoed("tcp", at("127.0.0.1", hostPort), 1000, 0); err != nil {
			t.Error(err)
		}
	}},
	{name: "port: nobody listens in the guest", check: func(t *testing.T, d driver) {
		_, s := d.guestOf(t)
		s.publish(forward{Proto: "tcp", HostPort: hostPort, GuestPort: guestPort})
		// Upstream accepts first, so that this is an end or a reset of the connection.
		begin := time.Now()
		if err := echoed("tcp", at("127.0.0.1", hostPort), 1, 0); err == nil || time.Since(begin) > atOnce {
			t.Errorf("%v after %s, want an error at once", err, time.Since(begin))
		}
	}},
	{name: "port: remove_hostfwd", check: func(t *testing.T, d driver) {
		g, s := d.guestOf(t)
		g.do("echo", "tcp4", fmt.Sprintf(":%d", guestPort))
		f := forward{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: hostPort, GuestPort: guestPort}
		id := s.publish(f)
		established, err := dialFrom("tcp", at("127.0.0.1", hostPort), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer established.Close()
		chat(t, established)
		remove := fmt.Sprintf(`{"execute":"remove_hostfwd","arguments":{"id":%d}}`, id)
		if a := s.call(remove); a.Error != nil || a.Return == nil {
			t.Fatalf("remove: %v", a)
		}
		if c, err := dialFrom("tcp", at("127.0.0.1", hostPort), 0); err == nil {
			c.Close()
			t.Error("the port is still open")
		}
		chat(t, established)
		if a := s.call(remove); a.Error == nil {
			t.Error("the forward could be removed twice")
		}
		if again := s.publish(f); again <= id {
			t.Errorf("the id is %d, want one that was never used", again)
		}
	}},
	{name: "port: taken", check: func(t *testing.T, d driver) {
		_, s := d.guestOf(t)
		hostListen(t, "tcp4", at("127.0.0.1", hostPort+1))
		f := forward{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: hostPort, GuestPort: guestPort}
		s.publish(f)
		for _, port := range []int{hostPort, hostPort + 1} {
			f.HostPort = port
			if a := s.add(f); a.Error == nil || a.Error.Desc != "bad request: add_hostfwd: slirp_add_hostfwd failed" {
				t.Errorf("port %d: %v, want an error", port, a)
			}
		}
	}},
	{name: "port: list_hostfwd", check: func(t *testing.T, d driver) {
		_, s := d.guestOf(t)
		f := forward{Proto: "udp", HostAddr: "127.0.0.1", HostPort: hostPort, GuestPort: guestPort}
		f.ID = s.publish(f)
		f.GuestAddr = "10.0.2.100"
		if got := s.call(`{"execute":"list_hostfwd"}`).Entries; len(got) != 1 || got[0] != f {
			t.Errorf("the list is %v, want %v", got, f)
		}
	}},
	{name: "port: list_hostfwd as documented", known: excuse{bug, "the list is not in \"return\""}, check: func(t *testing.T, d driver) {
		_, s := d.guestOf(t)
		s.publish(forward{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: hostPort, GuestPort: guestPort})
		if a := s.call(`{"execute":"list_hostfwd"}`); a.Return == nil || len(a.Return.Entries) != 1 || a.Return.Entries[0].HostPort != hostPort {
			t.Errorf("the answer is %v", a)
		}
	}},
	{name: "port: bad requests", check: func(t *testing.T, d driver) {
		_, s := d.guestOf(t)
		for request, want := range map[string]string{
			`{`:                   "cannot parse JSON",
			`{}`:                  "no execute found",
			`{"execute":"dance"}`: "unknown execute",
			`{"execute":"add_hostfwd","arguments":{"proto":"sctp","host_port":1,"guest_port":1}}`:                          "add_hostfwd: bad arguments.proto",
			`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"localhost","host_port":1,"guest_port":1}}`:   "add_hostfwd: bad arguments.host_addr",
			`{"execute":"add_hostfwd","arguments":{"proto":"tcp","guest_port":1}}`:                                         "add_hostfwd: bad arguments.host_port",
			`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":8080,"guest_addr":"x","guest_port":1}}`:       "add_hostfwd: bad arguments.guest_addr",
			`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":8080,"guest_port":0}}`:                        "add_hostfwd: bad arguments.guest_port",
			`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"192.0.2.200","host_port":1,"guest_port":1}}`: "add_hostfwd: slirp_add_hostfwd failed",
			`{"execute":"remove_hostfwd","arguments":{}}`:                                                                  "remove_hostfwd: bad arguments.id",
			`{"execute":"remove_hostfwd","arguments":{"id":77}}`:                                                           "remove_hostfwd: bad arguments.id",
		} {
			if a := s.call(request); a.Error == nil || a.Error.Desc != "bad request: "+want {
				t.Errorf("%s: %v, want %q", request, a, want)
			}
		}
	}},
	{name: "port: no proto", known: excuse{bug, "it crashes"}, check: func(t *testing.T, d driver) {
		_, s := d.guestOf(t)
		if a := s.call(`{"execute":"add_hostfwd","arguments":{"host_port":8080,"guest_port":80}}`); a.Error == nil || a.Error.Desc != "bad request: add_hostfwd: bad arguments.proto" {
			t.Errorf("the answer is %v", a)
		}
	}},
	{name: "port: numbers that are no port", known: excuse{bug, "they are cut to 16 bits"}, check: func(t *testing.T, d driver) {
		_, s := d.guestOf(t)
		for _, port := range []string{"70000", "-1", "18083.9", `"80"`} {
			request := `{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":` + port + `,"guest_port":80}}`
			if a := s.call(request); a.Error == nil || a.Error.Desc != "bad request: add_hostfwd: bad arguments.host_port" {
				t.Errorf("%s: %v", port, a)
			}
		}
	}},
	{name: "port: a silent client of the API", known: excuse{bug, "everything stands still until it leaves"}, check: func(t *testing.T, d driver) {
		g, s := d.guestOf(t)
		c, err := net.Dial("unix", s.api)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if r := g.try("ping", gateway4, 56); r.Err != "" || r.Took > atOnce {
			t.Errorf("ping: %q after %s", r.Err, r.Took)
		}
		s.publish(forward{Proto: "tcp", HostPort: hostPort, GuestPort: guestPort})
	}},
	{name: "port: TCP, IPv6", known: excuse{ours, "the API is IPv4 only (#253)"}, check: func(t *testing.T, d driver) { forwards6(t, d, "tcp") }},
	{name: "port: UDP, IPv6", known: excuse{ours, "the API is IPv4 only (#253)"}, check: func(t *testing.T, d driver) { forwards6(t, d, "udp") }},
	{name: "port: 0 is any", known: excuse{ours, "0 is refused (#354)"}, check: func(t *testing.T, d driver) {
		g, s := d.guestOf(t)
		g.do("echo", "tcp4", fmt.Sprintf(":%d", guestPort))
		id := s.publish(forward{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: 0, GuestPort: guestPort})
		list := s.call(`{"execute":"list_hostfwd"}`).Entries
		if len(list) != 1 || list[0].ID != id || list[0].HostPort == 0 {
			t.Fatalf("the list is %v", list)
		}
		if err := echoed("tcp", at("127.0.0.1", list[0].HostPort), 1000, 0); err != nil {
			t.Error(err)
		}
	}},
}

// forwards forwards a port, and checks whom the guest sees: the client, from wherever
// the port can be reached, and for one on the host's loopback the gateway.
func forwards(t *testing.T, d driver, network, addr string, options ...string) {
	t.Helper()
	w := newWorld(t)
	g, s := d.guestOf(t, options...)
	g.do("teller", network+"4", fmt.Sprintf(":%d", guestPort))
	s.publish(forward{Proto: network, HostAddr: addr, HostPort: hostPort, GuestPort: guestPort})
	local := seesHost(t, network, at("127.0.0.1", hostPort))
	if want := netip.AddrPortFrom(netip.MustParseAddr(gateway4), local.Local.Port()); local.Seen != want {
		t.Errorf("the guest sees %s, want %s", local.Seen, want)
	}
	open := addr != "127.0.0.1"
	r := w.server.try("tell", network, at(nearAddr.String(), hostPort))
	if open != (r.Err == "") {
		t.Errorf("from outside: %q, want the port open: %v", r.Err, open)
	}
	if !open {
		return
	}
	if outside := sees(t, w.server, network, at(nearAddr.String(), hostPort)); outside.Seen != outside.Local || outside.Seen.Addr() != serverAddr {
		t.Errorf("the guest sees %s, want %s", outside.Seen, outside.Local)
	}
}

// forwards6 is forwards for IPv6.
func forwards6(t *testing.T, d driver, network string) {
	t.Helper()
	w := newWorld(t)
	g, s := d.guestOf(t, "--enable-ipv6")
	addr := address6(t, g)
	g.do("teller", network+"6", fmt.Sprintf(":%d", guestPort))
	s.publish(forward{Proto: network + "6", HostAddr: "::", HostPort: hostPort, GuestAddr: addr.String(), GuestPort: guestPort})
	local := seesHost(t, network, at("::1", hostPort))
	if want := netip.AddrPortFrom(netip.MustParseAddr(gateway6), local.Local.Port()); local.Seen != want {
		t.Errorf("the guest sees %s, want %s", local.Seen, want)
	}
	for _, host := range []netip.Addr{nearAddr6, secondAddr6} {
		outside := sees(t, w.server, network, at(host.String(), hostPort))
		if outside.Seen != outside.Local || outside.Seen.Addr() != serverAddr6 {
			t.Errorf("the guest sees %s, want %s", outside.Seen, outside.Local)
		}
	}
}

// playsByPort lets a client and a guest play scripts, over a forwarded port.
func playsByPort(t *testing.T, d driver, pairs ...[2]string) {
	t.Helper()
	g, s := d.guestOf(t)
	g.do("listen", "tcp4", fmt.Sprintf(":%d", guestPort))
	s.publish(forward{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: hostPort, GuestPort: guestPort})
	play(t,
		func(what string) reply {
			c, err := dialFrom("tcp", at("127.0.0.1", hostPort), 0)
			if err != nil {
				return replyOf("", err)
			}
			return replyOf(script(c.(*net.TCPConn), what))
		},
		func(what string) reply { return g.try("accept", guestPort, what) },
		pairs...)
}

// chat exchanges a word with an echo server.
func chat(t *testing.T, c net.Conn) {
	t.Helper()
	b := []byte("hello")
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, len(b))); err != nil || n != len(b) {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

// Beginning and end.
var lifeCases = []conformanceCase{
	{name: "ready: link configured, API listens", check: func(t *testing.T, d driver) {
		for range 5 {
			g, s := d.guestOf(t)
			// Nothing here waits.
			if a := s.call(`{"execute":"list_hostfwd"}`); a.Error != nil {
				t.Errorf("the API says %v", a)
			}
			configured(t, g, 1500, "10.0.2.100/24", gateway4)
			endsWell(t, s)
		}
	}},
	{name: "exit descriptor", check: func(t *testing.T, d driver) {
		g, s := d.guestOf(t)
		children := descendants(t, s.Process.Pid)
		endsWell(t, s)
		gone(t, g, s)
		for pid, name := range children {
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("%s (%d) outlives the driver: %v", name, pid, err)
			}
		}
	}},
	{name: "signals end it", check: func(t *testing.T, d driver) {
		for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGKILL} {
			g, s := d.guestOf(t)
			if err := s.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if status := s.wait(); status != 128+int(sig) {
				t.Errorf("%v: exit status %d, want %d", sig, status, 128+int(sig))
			}
			eventually(t, patience, "the end of the link", func() bool { return g.try("netif", "tap0").Err != "" })
		}
	}},
	{name: "the API's socket is removed on signals", known: excuse{bug, "it is left behind"}, check: func(t *testing.T, d driver) {
		for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT} {
			g, s := d.guestOf(t)
			if err := s.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			s.wait()
			gone(t, g, s)
		}
	}},
	{name: "no such target", check: func(t *testing.T, d driver) {
		dead := start(t, exec.Command("true"))
		dead.wait()
		p, ready, _ := d.begin(t, nil, "-c", fmt.Sprint(dead.Process.Pid), "tap0")
		defer ready.Close()
		if status := p.wait(); status != 1 {
			t.Errorf("exit status %d, want 1", status)
		}
		if n, err := ready.Read(make([]byte, 1)); n != 0 {
			t.Errorf("it says that it is ready: %d bytes, %v", n, err)
		}
		if !strings.Contains(p.stderr.String(), "child failed(1)") {
			t.Errorf("it does not say that its child failed: %s", &p.stderr)
		}
	}},
	{name: "--enable-sandbox --enable-seccomp", check: func(t *testing.T, d driver) {
		startResolver(t, resolverOne)
		setResolvConf(t, "nameserver "+resolverOne+"\n")
		g, s := d.guestOf(t, "--enable-sandbox", "--enable-seccomp", "--enable-ipv6")
		talks(t, g, gateway4)
		asks(t, g, resolver, resolverOne)
		address6(t, g)
		g.do("ping", gateway6, 56)
		for _, network := range networks {
			g.do("teller", network+"4", fmt.Sprintf(":%d", guestPort))
			s.publish(forward{Proto: network, HostPort: hostPort, GuestPort: guestPort})
			seesHost(t, network, at("127.0.0.1", hostPort))
		}
		endsWell(t, s)
	}},
}

// gone checks that nothing of a driver is left that has ended.
func gone(t *testing.T, guest *agent, s *service) {
	t.Helper()
	if _, err := os.Lstat(s.api); !os.IsNotExist(err) {
		t.Errorf("the API's socket is still there: %v", err)
	}
	if r := guest.try("netif", "tap0"); r.Err == "" {
		t.Errorf("the link is still there: %s", r.Text)
	}
}
