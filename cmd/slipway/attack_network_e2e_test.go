//go:build e2e

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func init() {
	maps.Copy(attacks, map[string]attack{
		"send":  attackSend,
		"frame": attackFrame,
	})
}

// attackSend sends a word to an address, `send tcp|udp ADDR WORD`, and waits for the
// answer or the refusal.
func attackSend(args []string) (string, error) {
	c, err := net.DialTimeout(args[0], args[1], time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := fmt.Fprintln(c, args[2]); err != nil {
		return "", err
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// attackFrame writes a frame to the device past the container's own TCP/IP, with a
// word in a datagram: `frame MAC SOURCE DESTINATION PORT WORD`.
func attackFrame(args []string) (string, error) {
	link, err := netlink.LinkByName("tap0")
	if err != nil {
		return "", err
	}
	mac, err := net.ParseMAC(args[0])
	if err != nil {
		return "", err
	}
	src, err1 := netip.ParseAddr(args[1])
	dst, err2 := netip.ParseAddr(args[2])
	port, err3 := strconv.ParseUint(args[3], 10, 16)
	if err := errors.Join(err1, err2, err3); err != nil {
		return "", err
	}
	frame := append(append([]byte{}, 0x02, 0, 0, 0, 0, 1), mac...)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Halen: 6}
	return "sent", unix.Sendto(fd, append(frame, attackPacket(src, dst, uint16(port), args[4]+"\n")...), 0, to)
}

// attackPacket is an EtherType and an IP packet with a datagram, all of its
// checksums right.
func attackPacket(src, dst netip.Addr, port uint16, payload string) []byte {
	u := binary.BigEndian.AppendUint16(nil, 40000)
	u = binary.BigEndian.AppendUint16(u, port)
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(payload)))
	u = append(append(u, 0, 0), payload...)
	pseudo := append(append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...), 0, unix.IPPROTO_UDP, 0, uint8(len(u)))
	binary.BigEndian.PutUint16(u[6:], attackSum(append(pseudo, u...)))
	if src.Is6() {
		ip := []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, uint8(len(u)), unix.IPPROTO_UDP, 64}
		return append(append(append(ip, src.AsSlice()...), dst.AsSlice()...), u...)
	}
	ip := append(append([]byte{0x45, 0, 0, uint8(20 + len(u)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], attackSum(ip))
	return append(append([]byte{0x08, 0}, ip...), u...)
}

// attackSum is the checksum of RFC 1071.
func attackSum(b []byte) uint16 {
	sum := uint32(0)
	for i, v := range b {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// ears hear at a TCP and a UDP port of all addresses of the host.
type ears struct {
	mu    sync.Mutex
	words []string
	port  int
}

func (e *ears) heard(word string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.words, word)
}

func (e *ears) note(b []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.words = append(e.words, strings.TrimSpace(string(b)))
}

// newEars listens; the answer comes from the address that was asked.
func newEars(t *testing.T, addrs []netip.Addr) *ears {
	t.Helper()
	e := &ears{port: 7000}
	for _, a := range addrs {
		l := hostListen(t, "tcp", at(a.String(), e.port))
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					b := make([]byte, 64)
					n, _ := c.Read(b)
					e.note(b[:n])
					_, _ = c.Write(b[:n])
				}()
			}
		}()
		p, err := net.ListenPacket("udp", at(a.String(), e.port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		go func() {
			b := make([]byte, 64)
			for {
				n, from, err := p.ReadFrom(b)
				if err != nil {
					return
				}
				e.note(b[:n])
				_, _ = p.WriteTo(b[:n], from)
			}
		}()
	}
	return e
}

// TestAttackHostAddresses: in whatever notation, and by TCP as by UDP, nothing of the
// host can be reached by default, and with grants only what they name.
func TestAttackHostAddresses(t *testing.T) {
	if !onPrivateHost(t) {
		return
	}
	const (
		own6          = "2001:db8::1"
		own4InNAT64   = "64:ff9b::c633:6401"
		own4In6to4    = "2002:c633:6401::1"
		loopInNAT64   = "64:ff9b::7f00:1"
		loopIn6to4    = "2002:7f00:1::1"
		metadata4     = "169.254.169.254"
		metadata6     = "fd00:ec2::254"
		metadataInNAT = "64:ff9b::a9fe:a9fe"
		alibaba       = "100.100.100.200"
	)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addrs := []netip.Addr{hostAddr, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	for _, s := range []string{own6, own4InNAT64, own4In6to4, loopInNAT64, loopIn6to4, metadata4, metadata6, metadataInNAT, alibaba} {
		a := netip.MustParseAddr(s)
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}); err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, a)
	}
	e := newEars(t, addrs)
	own4 := hostAddr.String()
	all := []string{
		gateway4, gateway6, resolver, "127.0.0.1", "127.0.0.2", "::1", "0.0.0.0", "::",
		own4, "::ffff:" + own4, "::" + own4, "::127.0.0.1", own6, own4InNAT64, own4In6to4, loopInNAT64, loopIn6to4,
		metadata4, "::ffff:" + metadata4, metadata6, metadataInNAT, alibaba, "255.255.255.255", "224.0.0.1",
	}
	for _, tt := range []struct {
		options []string
		open    []string
	}{
		{nil, nil},
		{[]string{"--allow-metadata"}, nil},
		{[]string{"--host-access", "loopback"}, []string{gateway4, gateway6}},
		{[]string{"--host-access", "addresses"}, []string{gateway4, gateway6, own4, "::ffff:" + own4, own6, own4InNAT64, own4In6to4}},
		{
			[]string{"--host-access", "addresses", "--allow-metadata"},
			[]string{gateway4, gateway6, own4, "::ffff:" + own4, own6, own4InNAT64, own4In6to4, metadata4, "::ffff:" + metadata4, metadata6, metadataInNAT, alibaba},
		},
	} {
		t.Run(strings.Join(tt.options, " "), func(t *testing.T) {
			a := attackInside(t, tt.options...)
			for i, host := range all {
				for _, network := range []string{"tcp", "udp"} {
					word := fmt.Sprintf("%s-%d-%s", network, i, strings.Join(tt.options, ""))
					got, _ := a.try("send", network, at(host, e.port), word)
					if slices.Contains(tt.open, host) {
						eventually(t, patience, word+" heard", func() bool { return e.heard(word) })
					} else if e.heard(word) {
						t.Errorf("%s to %s was heard (%s)", network, host, got)
					}
				}
			}
			a.end()
		})
	}
}

// TestAttackFrames: what the container's own TCP/IP would not send does no more.
func TestAttackFrames(t *testing.T) {
	if !onPrivateHost(t) {
		return
	}
	const (
		guest4, guest6 = "10.0.2.100", "fd00::64"
		mac            = "02:00:00:00:00:64"
		foreign        = `slipway_drops_total{reason="foreign_source"}`
		group          = `slipway_drops_total{reason="foreign_mac"}`
	)
	e := newEars(t, []netip.Addr{hostAddr, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()})
	own := hostAddr.String()
	count := func(socket, name string) int {
		n, err := strconv.Atoi(scrape(t, socket)[name])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	forged := [][2]string{
		{"10.0.2.55", gateway4}, {gateway4, gateway4}, {"127.0.0.1", gateway4}, {own, gateway4}, {"0.0.0.0", gateway4}, {"10.0.2.55", "127.0.0.1"},
		{"fd00::65", gateway6}, {"::1", gateway6}, {gateway6, gateway6}, {"fe80::1", gateway6},
	}
	aimed := [][2]string{
		{guest4, "127.0.0.1"}, {guest4, "127.1.2.3"}, {guest4, "0.0.0.0"}, {guest4, "255.255.255.255"}, {guest4, "224.0.0.1"},
		{guest6, "::1"}, {guest6, "::ffff:127.0.0.1"}, {guest6, "::127.0.0.1"}, {guest6, "::"}, {guest6, "ff02::1"},
	}
	for _, access := range []string{"none", "loopback"} {
		t.Run(access, func(t *testing.T) {
			socket := metricsSocket(t)
			a := attackInside(t, "--host-access", access, "--metrics", "unix:"+socket)
			send := func(mac string, way [2]string) string {
				word := fmt.Sprintf("%s-%s-%s-%s", access, mac, way[0], way[1])
				a.works("frame", mac, way[0], way[1], e.port, word)
				return word
			}
			var words []string
			before := count(socket, foreign)
			for _, way := range forged {
				words = append(words, send(mac, way))
			}
			eventually(t, patience, "forged sources counted", func() bool { return count(socket, foreign) >= before+len(forged) })
			if n := count(socket, foreign) - before; n != len(forged) {
				t.Errorf("%d frames with forged sources counted, want %d", n, len(forged))
			}
			for _, way := range aimed {
				words = append(words, send(mac, way))
			}
			if n := count(socket, foreign) - before; n != len(forged) {
				t.Errorf("%d frames with forged sources counted, want %d still", n, len(forged))
			}
			before = count(socket, group)
			words = append(words, send("03:00:00:00:00:64", [2]string{guest4, gateway4}))
			eventually(t, patience, "a group's address as source counted", func() bool { return count(socket, group) == before+1 })

			// The same frame, honest: it is last, so whatever was to be heard was heard by then.
			for _, way := range [][2]string{{guest4, gateway4}, {guest6, gateway6}} {
				word := send(mac, way)
				if access == "loopback" {
					eventually(t, patience, word+" heard", func() bool { return e.heard(word) })
				} else {
					words = append(words, word)
				}
			}
			got, _ := a.try("send", "udp", at(gateway4, e.port), "last-"+access) // the engine has taken all frames before
			if e.heard("last-"+access) != (access == "loopback") {
				t.Errorf("the last datagram: %s", got)
			}
			for _, word := range words {
				if e.heard(word) {
					t.Errorf("the host heard %s", word)
				}
			}
			a.end()
		})
	}
}

// TestAttackOwnListener: a grant of loopback does not reach the metrics of the
// network itself.
func TestAttackOwnListener(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	l := hostListen(t, "tcp", "127.0.0.1:0")
	go echoStreams(l)
	a := attackInside(t, "--host-access", "loopback", "--metrics", "127.0.0.1:"+port)
	a.refused([]error{unix.ECONNREFUSED, unix.ENETUNREACH, unix.EHOSTUNREACH}, "send", "tcp", net.JoinHostPort(gateway4, port), "x")
	a.works("send", "tcp", at(gateway4, portOf(t, l.Addr())), "x")
	a.end()
}
