package netns_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"slipway/netstack/netns"
	"slipway/netstack/netns/nstest"
)

func TestKeepReplies(t *testing.T) {
	path := nstest.TUN(t)
	target := nstest.New(t).Target(t)
	tun, err := target.OpenTUN(path)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	attach(t, tun, "tap0")
	h := handle(t, target)
	guest4, guest6 := netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("fd00::100")
	if _, err := netns.Configure(h, netns.Link{
		Name:      "tap0",
		Addresses: []netip.Prefix{netip.PrefixFrom(guest4, 24), netip.PrefixFrom(guest6, 64)},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")},
	}); err != nil {
		t.Fatal(err)
	}
	ports := []netns.PortRange{{First: 8080, Last: 8090}}
	for range 2 {
		if err := netns.KeepReplies(h, []netip.Addr{guest4, guest6}, ports); err != nil {
			t.Fatal(err)
		}
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	// Kernels that do not know the size do not list it either.
	if got := lo.Attrs().GSOIPv4MaxSize; got != 0 && got != 256<<10 {
		t.Errorf("lo sends packets of up to %d bytes, want %d", got, 256<<10)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := h.RuleList(family)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, r := range rules {
			if r.Table == netns.ReplyTable {
				n++
			}
		}
		if n != 1 {
			t.Errorf("family %d has %d rules, want 1: %v", family, n, rules)
		}
	}

	tests := []struct {
		name          string
		family        int
		client, guest string
		wantErr       error
	}{
		{"ipv4", unix.AF_INET, "198.51.100.7:40001", "10.0.2.100:8080", nil},
		{"ipv4 end of range", unix.AF_INET, "198.51.100.7:40002", "10.0.2.100:8090", nil},
		{"ipv4 gateway", unix.AF_INET, "10.0.2.2:40003", "10.0.2.100:8081", nil},
		{"ipv4 any port", unix.AF_INET, "198.51.100.7:0", "10.0.2.100:8082", nil},
		{"ipv6", unix.AF_INET6, "[2001:db8::7]:40001", "[fd00::100]:8080", nil},
		{"ipv6 gateway", unix.AF_INET6, "[fd00::2]:40002", "[fd00::100]:8081", nil},
		// The reply of a port that is not published leaves by the TAP, where nobody
		// answers.
		{"ipv4 unpublished", unix.AF_INET, "198.51.100.7:40004", "10.0.2.100:8091", os.ErrDeadlineExceeded},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			client, guest := netip.MustParseAddrPort(tt.client), netip.MustParseAddrPort(tt.guest)
			files, err := target.Sockets(tt.family, 2)
			if err != nil {
				t.Fatal(err)
			}
			l := listen(t, files[0], guest)
			limit := 5 * time.Second
			if tt.wantErr != nil {
				limit = 300 * time.Millisecond
			}
			conn, err := connect(t, files[1], client, guest, limit)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("connect: %v, want %v", err, tt.wantErr)
			}
			if err != nil {
				return
			}
			defer conn.Close()
			l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			seen := server.RemoteAddr().(*net.TCPAddr).AddrPort()
			if seen.Addr() != client.Addr() || client.Port() != 0 && seen != client {
				t.Errorf("the listener sees %v, want %v", seen, client)
			}
			for _, way := range []struct{ from, to net.Conn }{{conn, server}, {server, conn}} {
				way.from.SetDeadline(time.Now().Add(5 * time.Second))
				way.to.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := way.from.Write([]byte("slipway")); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 7)
				if _, err := way.to.Read(b); err != nil || string(b) != "slipway" {
					t.Errorf("got %q, %v", b, err)
				}
			}
		})
	}
}

func TestKeepRepliesBounded(t *testing.T) {
	h := handle(t, nstest.New(t).Target(t))
	var apart, together []netns.PortRange
	for i := range netns.MaxReplyRules + 1 {
		apart = append(apart, netns.PortRange{First: uint16(1 + 2*i), Last: uint16(1 + 2*i)})
		together = append(together, netns.PortRange{First: uint16(1 + i), Last: uint16(1 + i)})
	}
	guest := []netip.Addr{netip.MustParseAddr("10.0.2.100")}
	if err := netns.KeepReplies(h, guest, apart); !errors.Is(err, netns.ErrTooManyRules) {
		t.Errorf("got %v, want ErrTooManyRules", err)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	if err := netns.KeepReplies(h, guest, together); err != nil {
		t.Error(err)
	}
	rules, err := h.RuleListFiltered(netlink.FAMILY_V4, &netlink.Rule{Table: netns.ReplyTable}, netlink.RT_FILTER_TABLE)
	if err != nil || len(rules) != 1 {
		t.Errorf("rules %v (%v), want one for ports that touch", rules, err)
	}
}

func listen(t *testing.T, f *os.File, at netip.AddrPort) net.Listener {
	t.Helper()
	fd := int(f.Fd())
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		t.Fatalf("bind %v: %v", at, err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { l.Close() })
	return l
}

func connect(t *testing.T, f *os.File, from, to netip.AddrPort, limit time.Duration) (net.Conn, error) {
	t.Helper()
	defer f.Close()
	fd := int(f.Fd())
	if err := unix.Bind(fd, sockaddr(from)); err != nil {
		t.Fatalf("bind %v: %v", from, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, err
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for deadline := time.Now().Add(limit); ; {
		n, err := unix.Poll(p, int(time.Until(deadline).Milliseconds())+1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, os.ErrDeadlineExceeded
		}
		break
	}
	if e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || e != 0 {
		return nil, errors.Join(err, syscall.Errno(e))
	}
	return net.FileConn(f)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
