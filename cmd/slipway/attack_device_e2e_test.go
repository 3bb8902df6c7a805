//go:build e2e

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func init() {
	maps.Copy(attacks, map[string]attack{
		"link":    attackLink,
		"flush":   attackFlush,
		"sysctls": attackSysctls,
		"flood":   attackFlood,
	})
}

// attackLink does something to tap0: `link down|up|delete|mtu|queue|mac|rename|away`.
func attackLink(args []string) (string, error) {
	l, err := netlink.LinkByName("tap0")
	if err != nil {
		return "", err
	}
	switch args[0] {
	case "down":
		err = netlink.LinkSetDown(l)
	case "up":
		err = netlink.LinkSetUp(l)
	case "delete":
		err = netlink.LinkDel(l)
	case "mtu":
		err = errors.Join(netlink.LinkSetMTU(l, 68), netlink.LinkSetMTU(l, 65521))
	case "queue":
		err = netlink.LinkSetTxQLen(l, 0)
	case "mac":
		err = netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 9, 9, 9, 9, 9})
	case "rename":
		err = errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "gone0"))
	case "away":
		err = attackMoveAway(l)
	default:
		err = fmt.Errorf("unknown: %s", args[0])
	}
	return args[0], err
}

// attackMoveAway moves a device into a namespace that nobody else has.
func attackMoveAway(l netlink.Link) error {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer here.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	there, err := os.Open("/proc/thread-self/ns/net")
	if err := errors.Join(err, unix.Setns(int(here.Fd()), unix.CLONE_NEWNET)); err != nil {
		return err
	}
	defer there.Close()
	return netlink.LinkSetNsFd(l, int(there.Fd()))
}

// attackFlush removes all addresses, routes, policy rules and neighbours.
func attackFlush([]string) (string, error) {
	n := 0
	links, err := netlink.LinkList()
	if err != nil {
		return "", err
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return "", err
		}
		for i := range rules {
			rules[i].Family = family
			if netlink.RuleDel(&rules[i]) == nil {
				n++
			}
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, 0)
		if err != nil {
			return "", err
		}
		for i := range routes {
			if netlink.RouteDel(&routes[i]) == nil {
				n++
			}
		}
		for _, l := range links {
			addrs, err := netlink.AddrList(l, family)
			if err != nil {
				return "", err
			}
			for i := range addrs {
				if netlink.AddrDel(l, &addrs[i]) == nil {
					n++
				}
			}
			neighbours, err := netlink.NeighList(l.Attrs().Index, family)
			if err != nil {
				return "", err
			}
			for i := range neighbours {
				if netlink.NeighDel(&neighbours[i]) == nil {
					n++
				}
			}
		}
	}
	if n == 0 {
		return "", errors.New("nothing flushed")
	}
	return fmt.Sprint(n, " removed"), nil
}

// attackSysctls writes nonsense to every sysctl of the container's network.
func attackSysctls([]string) (string, error) {
	proc, err := attackMount([]string{"proc", "proc"})
	if err != nil {
		return "", err
	}
	n := 0
	err = filepath.WalkDir(proc+"/sys/net", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // what cannot be listed cannot be written
		}
		for _, v := range []string{"2147483647", "0", "1", "1 1 1"} {
			if os.WriteFile(path, []byte(v), 0) == nil {
				n++
			}
		}
		return nil
	})
	if n == 0 {
		return "", errors.Join(errors.New("nothing written"), err)
	}
	return fmt.Sprint(n, " written"), err
}

// attackFlood sends frames of every kind and length for a while, most of them garbage.
func attackFlood([]string) (string, error) {
	l, err := netlink.LinkByName("tap0")
	if err != nil {
		return "", err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6}
	sent := 0
	for i := range 20_000 {
		frame := make([]byte, 14+i%1500)
		for j := range frame {
			frame[j] = byte(i * (j + 7) >> (j % 5))
		}
		copy(frame[12:], []string{"\x08\x00\x45", "\x86\xdd\x60", "\x08\x06\x00", "\x88\xcc\x00"}[i%4])
		if unix.Sendto(fd, frame, 0, to) == nil {
			sent++
		}
	}
	if sent == 0 {
		return "", errors.New("nothing sent")
	}
	return fmt.Sprint(sent, " sent"), nil
}

// cpuTime is what a process has used so far, in clock ticks of 10 ms (proc_pid_stat(5)).
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var user, system int
	if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &system); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// TestAttackOwnNetwork: a container's root may wreck its own network. That costs it
// the network; it does not crash, spin or grow what is at the other end, and nothing
// is left of it.
func TestAttackOwnNetwork(t *testing.T) {
	t.Parallel()
	for _, tt := range [][]string{
		{"link down"}, {"link down", "link up"}, {"link delete"}, {"link mtu"}, {"link queue"}, {"link mac"}, {"link rename"}, {"link away"},
		{"flush"}, {"sysctls"}, {"flood"}, {"sysctls", "flood", "flush", "link down", "link delete"},
	} {
		t.Run(strings.Join(tt, ","), func(t *testing.T) {
			t.Parallel()
			socket := metricsSocket(t)
			tcp, udp := freePort(t), freePort(t)
			a := attackInside(t, "--metrics", "unix:"+socket, "-p", "127.0.0.1:"+tcp+":80", "-p", "127.0.0.1:"+udp+":81/udp")
			launcher := a.Process.Pid
			engine := child(t, launcher, " engine")
			client, err := net.Dial("udp", "127.0.0.1:"+udp)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			knock := func() {
				for range 20 {
					_, _ = client.Write([]byte("anybody?"))
				}
				attackConnect("127.0.0.1:" + tcp)
			}
			knock() // there are sessions
			for _, words := range tt {
				var args []any
				for w := range strings.FieldsSeq(words) {
					args = append(args, w)
				}
				a.works(args...)
			}
			knock()

			before := cpuTime(t, engine)
			time.Sleep(time.Second) // what is measured is this second
			if used := cpuTime(t, engine) - before; used > 200*time.Millisecond {
				t.Errorf("the engine uses %s in a second in which nothing happens", used)
			}
			if n := scrape(t, socket)["slipway_engine_restarts_total"]; n != "0" {
				t.Errorf("%s engines ended", n)
			}
			if now := child(t, launcher, " engine"); now != engine {
				t.Errorf("the engine is process %d, was %d", now, engine)
			}
			ours := descendants(t, launcher)
			a.end()
			for pid := range ours {
				if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
					t.Errorf("process %d (%s) is left", pid, ours[pid])
				}
			}
			if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the metrics socket is left: %v", err)
			}
		})
	}
}
