//go:build e2e

package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"slipway/netstack/netns"
)

// The link and its addresses.
var linkCases = []conformanceCase{
	{name: "-c configures the link", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		configured(t, g, 1500, "10.0.2.100/24", gateway4)
		talks(t, g, gateway4)
	}},
	{name: "frames with offloads, or plain ones", known: excuse{ours, "plain frames only"}, check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		if link := g.do("exec", "ip", "-details", "link", "show", "tap0"); !strings.Contains(link, d.frames) {
			t.Errorf("the device is %q, want %s", link, d.frames)
		}
	}},
	{name: "without -c nothing is configured", check: func(t *testing.T, d driver) {
		g := newTarget(t)
		d.serve(t, g)
		i := tapOf(t, g)
		if i.Up || i.LoopbackUp || len(i.Addrs) != 0 || len(i.Gateways) != 0 || i.MTU != 1500 {
			t.Errorf("the link is %+v, want it untouched", i)
		}
		byHand(g)
		talks(t, g, gateway4)
	}},
	{name: "persistent TAP with -c", check: func(t *testing.T, d driver) {
		g := newTarget(t)
		before := persistentTAP(t, g.Process.Pid)
		s := d.serve(t, g, "-c")
		configured(t, g, 1500, "10.0.2.100/24", gateway4)
		talks(t, g, gateway4)
		endsWell(t, s)
		if after := tapIndex(t, g.Process.Pid); after != before {
			t.Errorf("the device had index %d, it has %d", before, after)
		}
	}},
	{name: "persistent TAP without -c, twice", check: func(t *testing.T, d driver) {
		g := newTarget(t)
		before := persistentTAP(t, g.Process.Pid)
		byHand(g)
		for range 2 {
			s := d.serve(t, g, "--mtu=65520")
			if i := tapOf(t, g); i.MTU != 1500 {
				t.Errorf("the MTU is %d, want it untouched", i.MTU)
			}
			talks(t, g, gateway4)
			endsWell(t, s)
		}
		if after := tapIndex(t, g.Process.Pid); after != before {
			t.Errorf("the device had index %d, it has %d", before, after)
		}
	}},
	{name: "--netns-type=path", check: func(t *testing.T, d driver) {
		g := newTarget(t)
		proc := "/proc/" + strconv.Itoa(g.Process.Pid) + "/ns/"
		d.launch(t, nil, "-c", "--netns-type=path", "--userns-path="+proc+"user", proc+"net", "tap0")
		configured(t, g, 1500, "10.0.2.100/24", gateway4)
		talks(t, g, gateway4)
	}},
	{name: "--netns-type=tapfd", known: excuse{newer, "since 1.3.0"}, check: func(t *testing.T, d driver) {
		g := newTarget(t)
		tap := openTAP(t, g.Process.Pid)
		byHand(g)
		d.launch(t, []*os.File{tap}, "--netns-type=tapfd", "5")
		talks(t, g, gateway4)
	}},
	{name: "--macaddress", check: func(t *testing.T, d driver) {
		const mac = "02:00:5e:10:00:7b"
		g, _ := d.guestOf(t, "--macaddress="+mac)
		if i := tapOf(t, g); i.MAC != mac {
			t.Errorf("the address is %s, want %s", i.MAC, mac)
		}
		talks(t, g, gateway4)
	}},
	{name: "--cidr", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t, "--cidr=10.0.135.128/25")
		configured(t, g, 1500, "10.0.135.228/25", "10.0.135.130")
		talks(t, g, "10.0.135.130")
		if mac := g.do("arp", "tap0", "10.0.135.131"); mac != "52:55:0a:00:87:83" {
			t.Errorf("the resolver has the address %q", mac)
		}
		if got := lease(t, g); got["ip"] != "10.0.135.143" || got["router"] != "10.0.135.130" || got["dns"] != "10.0.135.131" {
			t.Errorf("the lease is %v", got)
		}
	}},
	{name: "--mtu from 1280 to 65521", check: func(t *testing.T, d driver) {
		for _, mtu := range []int{1280, 9000, 65520, 65521} {
			g, _ := d.guestOf(t, "--mtu="+strconv.Itoa(mtu))
			configured(t, g, mtu, "10.0.2.100/24", gateway4)
			g.do("talk", at(gateway4, hostEcho(t, "tcp4", "127.0.0.1:0")), 0, 4<<20)
			g.do("packet", "udp", at(gateway4, hostEcho(t, "udp4", "127.0.0.1:0")), 65000)
		}
	}},
	{name: "ARP for gateway and resolver only", check: func(t *testing.T, d driver) {
		g, _ := d.guestOf(t)
		for addr, want := range map[string]string{
			gateway4: "52:55:0a:00:02:02", resolver: "52:55:0a:00:02:03",
			"10.0.2.1": "", "10.0.2.4": "", "10.0.2.99": "", "10.0.2.100": "", "10.0.2.255": "", "198.51.100.1": "",
		} {
			if got := g.do("arp", "tap0", addr); got != want {
				t.Errorf("%s has the address %q, want %q", addr, got, want)
			}
		}
	}},
	{name: "any guest address of the subnet", check: func(t *testing.T, d driver) {
		g := newTarget(t)
		d.serve(t, g)
		for _, args := range []string{"link set tap0 up", "addr add 10.0.2.55/24 dev tap0", "route add default via " + gateway4} {
			g.do("exec", "ip", args)
		}
		talks(t, g, gateway4)
	}},
	{name: "DHCP", check: func(t *testing.T, d driver) {
		g := newTarget(t)
		d.serve(t, g)
		g.do("exec", "ip", "link set tap0 up")
		got := lease(t, g)
		for name, want := range map[string]string{
			"ip": "10.0.2.15", "subnet": "255.255.255.0", "router": gateway4, "dns": resolver, "serverid": gateway4, "lease": "86400",
		} {
			if got[name] != want {
				t.Errorf("%s is %q, want %q", name, got[name], want)
			}
		}
		for _, name := range []string{"mtu", "domain", "hostname"} {
			if v, ok := got[name]; ok {
				t.Errorf("%s is %q, want none", name, v)
			}
		}
	}},
}

// configured checks what -c has done, without waiting for it.
func configured(t *testing.T, guest *agent, mtu int, prefix, gateway string) {
	t.Helper()
	i := tapOf(t, guest)
	if !i.Up || !i.LoopbackUp || i.MTU != mtu || !slices.Equal(i.only4(), []netip.Prefix{netip.MustParsePrefix(prefix)}) ||
		!slices.Contains(i.Gateways, netip.MustParseAddr(gateway)) {
		t.Errorf("the link is %+v, want it up with MTU %d, %s, and a route by %s", i, mtu, prefix, gateway)
	}
}

// talks checks that a guest reaches the private host's loopback by its gateway.
func talks(t *testing.T, guest *agent, gateway string) {
	t.Helper()
	guest.do("talk", at(gateway, hostEcho(t, "tcp4", "127.0.0.1:0")), 0, 100000)
	guest.do("packet", "udp", at(gateway, hostEcho(t, "udp4", "127.0.0.1:0")), 1000)
}

// endsWell ends a driver by its exit descriptor.
func endsWell(t *testing.T, s *service) {
	t.Helper()
	s.exit.Close()
	if status := s.wait(); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

// lease is what DHCP gives a guest.
func lease(t *testing.T, guest *agent) map[string]string {
	t.Helper()
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("no busybox for its udhcpc")
	}
	got := make(map[string]string)
	if err := json.Unmarshal([]byte(guest.do("dhcp", "tap0")), &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// openTAP makes tap0 in the namespaces of a process and returns it.
func openTAP(t *testing.T, pid int) *os.File {
	t.Helper()
	space, err := netns.FromPID(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	tun, err := space.OpenTUN("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tun.Close() })
	req, err := unix.NewIfreq("tap0")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(int(tun.Fd()), unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
	return tun
}
