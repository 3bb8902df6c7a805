//go:build e2e

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// floodRate is how many frames a flood sends a second.
const floodRate = 10_000

// guestAddr is the guest's, worldAddr one to which the host has a way but where nobody is.
var (
	guestAddr  = netip.MustParseAddr("10.0.2.100")
	guestAddr6 = netip.MustParseAddr("fd00::64")
	worldAddr  = netip.MustParseAddr("198.18.0.0")

	broadcastAddr = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// crafter makes the frames of a flood, past the guest's own TCP/IP.
type crafter struct {
	rnd  *rand.Rand
	mac  [6]byte // the guest's
	own6 netip.Addr
	port int // where somebody listens at the host
	buf  []byte
}

// floods are what a guest can flood a network with. Each makes one frame at a time.
var floods = map[string]func(c *crafter) []byte{
	"random":     (*crafter).garbage,
	"syn-dead":   func(c *crafter) []byte { return c.syn(guestAddr, c.world(), c.any16()) },
	"syn-closed": func(c *crafter) []byte { return c.syn(guestAddr, gatewayAddr, c.any16()) },
	// The SYN-ACK goes to an address that the guest's kernel has not, which is silent.
	"syn-half":  func(c *crafter) []byte { return c.syn(c.neighbour(), gatewayAddr, uint16(c.port)) },
	"udp-ports": (*crafter).datagram,
	"arp":       (*crafter).arp,
	"ndp":       (*crafter).discovery,
	"fragments": (*crafter).fragment,
	"dhcp":      (*crafter).lease,
	"dns":       (*crafter).query,
	"echo":      (*crafter).echo,
}

var (
	gatewayAddr  = netip.MustParseAddr(gateway4)
	resolverAddr = netip.MustParseAddr(resolver)
	gatewayAddr6 = netip.MustParseAddr(gateway6)
)

func (c *crafter) any16() uint16 { return uint16(c.rnd.Uint32()) }

// high is a port that nobody listens at by chance.
func (c *crafter) high() uint16 { return 1024 + uint16(c.rnd.IntN(60000)) }

// world is one of 131,072 addresses.
func (c *crafter) world() netip.Addr {
	b := worldAddr.As4()
	b[1] |= byte(c.rnd.IntN(2))
	b[2], b[3] = byte(c.rnd.Uint32()), byte(c.rnd.Uint32())
	return netip.AddrFrom4(b)
}

// neighbour is an address in the guest's network that nobody has.
func (c *crafter) neighbour() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, 2, byte(110 + c.rnd.IntN(140))})
}

func (c *crafter) stranger() (mac [6]byte) {
	binary.BigEndian.PutUint32(mac[2:], c.rnd.Uint32())
	mac[0] = 2
	return mac
}

func (c *crafter) fill(n int) {
	for range n {
		c.buf = append(c.buf, byte(c.rnd.Uint32()))
	}
}

// Protocol numbers, and the EtherTypes that a guest has a use for.
const (
	ethIPv4, ethARP, ethIPv6                      = 0x0800, 0x0806, 0x86dd
	ipICMP, ipTCP, ipUDP, ipFragment, ipICMPv6    = 1, 6, 17, 44, 58
	icmpEcho, icmpEcho6, icmpRS, icmpNS, icmpNA   = 8, 128, 133, 135, 136
	dhcpServers, dhcpClients, dhcp6s, dhcp6c, dns = 67, 68, 547, 546, 53
)

// Ethernet addresses: everybody's, and the gateway's.
var (
	everybody  = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	gatewayMAC = [6]byte{0x52, 0x55, 10, 0, 2, 2}
)

func (c *crafter) ethernet(to, from [6]byte, kind uint16) {
	c.buf = append(append(c.buf[:0], to[:]...), from[:]...)
	c.buf = binary.BigEndian.AppendUint16(c.buf, kind)
}

// sum is the Internet checksum of parts, each of an even length but the last.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for ; len(b) > 1; b = b[2:] {
			s += uint32(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			s += uint32(b[0]) << 8
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// ip makes a frame of one IP packet. The payload's checksum, whose place is at check,
// is filled in; -1: it has none. field is IPv4's flags and offset.
func (c *crafter) ip(src, dst netip.Addr, proto uint8, field uint16, check int, payload []byte) []byte {
	if check >= 0 {
		pseudo := append(src.AsSlice(), dst.AsSlice()...)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(payload)))
		pseudo = append(pseudo, 0, 0, 0, proto)
		if proto == ipICMP {
			pseudo = nil
		}
		binary.BigEndian.PutUint16(payload[check:], sum(pseudo, payload))
	}
	to := gatewayMAC
	if dst.IsMulticast() || dst == broadcastAddr {
		to = everybody
	}
	if src.Is6() {
		c.ethernet(to, c.mac, ethIPv6)
		c.buf = append(c.buf, 0x60, 0, 0, 0)
		c.buf = binary.BigEndian.AppendUint16(c.buf, uint16(len(payload)))
		c.buf = append(c.buf, proto, 255)
		c.buf = append(append(c.buf, src.AsSlice()...), dst.AsSlice()...)
		return append(c.buf, payload...)
	}
	c.ethernet(to, c.mac, ethIPv4)
	h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0}
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(h[4:], c.any16())
	binary.BigEndian.PutUint16(h[6:], field)
	h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(h[10:], sum(h))
	return append(append(c.buf, h...), payload...)
}

// garbage is every second time of random bytes alone, and else has an EtherType and a
// version that somebody looks at.
func (c *crafter) garbage() []byte {
	c.buf = c.buf[:0]
	c.fill(14 + c.rnd.IntN(1500))
	if c.rnd.IntN(2) == 0 {
		return c.buf
	}
	c.buf[6] &^= 1 // no group
	switch c.rnd.IntN(4) {
	case 0:
		copy(c.buf[12:], "\x08\x00\x45")
		if len(c.buf) >= 34 { // the address can be the guest's
			copy(c.buf[26:], guestAddr.AsSlice())
			binary.BigEndian.PutUint16(c.buf[16:], uint16(len(c.buf)-14))
			c.buf[24], c.buf[25] = 0, 0
			binary.BigEndian.PutUint16(c.buf[24:], sum(c.buf[14:34]))
		}
	case 1:
		copy(c.buf[12:], "\x86\xdd\x60")
		if len(c.buf) >= 54 {
			copy(c.buf[22:], c.own6.AsSlice())
			binary.BigEndian.PutUint16(c.buf[18:], uint16(len(c.buf)-54))
		}
	case 2:
		copy(c.buf[12:], "\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01")
	case 3:
		copy(c.buf[12:], "\x88\xcc")
	}
	return c.buf
}

func (c *crafter) syn(src, dst netip.Addr, port uint16) []byte {
	b := make([]byte, 24)
	binary.BigEndian.PutUint16(b, c.high())
	binary.BigEndian.PutUint16(b[2:], port)
	binary.BigEndian.PutUint32(b[4:], c.rnd.Uint32())
	b[12], b[13] = 6<<4, 2 // data offset, SYN
	b[14], b[15] = 0xff, 0xff
	copy(b[20:], "\x02\x04\x05\xb4") // MSS 1460
	return c.ip(src, dst, ipTCP, 0, 16, b)
}

func (c *crafter) udp(src, dst netip.Addr, from, to uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return c.ip(src, dst, ipUDP, 0, 6, append(b, payload...))
}

// datagram is for somebody who answers, for a closed port, or for nobody.
func (c *crafter) datagram() []byte {
	payload := []byte("who is there?")
	switch c.rnd.IntN(3) {
	case 0:
		return c.udp(guestAddr, gatewayAddr, c.high(), uint16(c.port), payload)
	case 1:
		return c.udp(guestAddr, gatewayAddr, c.high(), c.high(), payload)
	}
	return c.udp(guestAddr, c.world(), c.high(), c.high(), payload)
}

// arp asks for any address, from any address.
func (c *crafter) arp() []byte {
	mac := c.stranger()
	c.ethernet(everybody, mac, ethARP)
	c.buf = append(c.buf, 0, 1, 8, 0, 6, 4, 0, byte(1+c.rnd.IntN(2))) // a request or a reply
	sender, target := c.neighbour(), c.neighbour()
	if c.rnd.IntN(4) == 0 {
		target = gatewayAddr
	}
	c.buf = append(append(c.buf, mac[:]...), sender.AsSlice()...)
	return append(append(c.buf, 0, 0, 0, 0, 0, 0), target.AsSlice()...)
}

// discovery is a solicitation of a neighbour or a router, or an advertisement, from any
// address.
func (c *crafter) discovery() []byte {
	src := netip.MustParseAddr("fe80::1:0:0:0").As16()
	binary.BigEndian.PutUint64(src[8:], c.rnd.Uint64())
	from := netip.AddrFrom16(src)
	mac := c.stranger()
	target := gatewayAddr6
	if c.rnd.IntN(2) == 0 {
		target = netip.AddrFrom16(src)
	}
	link := append([]byte{1, 1}, mac[:]...) // source link-layer address
	switch c.rnd.IntN(3) {
	case 0:
		b := append([]byte{icmpNS, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
		return c.ip(from, target, ipICMPv6, 0, 2, append(b, link...))
	case 1:
		return c.ip(from, netip.MustParseAddr("ff02::2"), ipICMPv6, 0, 2, append([]byte{icmpRS, 0, 0, 0, 0, 0, 0, 0}, link...))
	}
	link[0] = 2 // target link-layer address
	b := append([]byte{icmpNA, 0, 0, 0, 0x20, 0, 0, 0}, from.AsSlice()...)
	return c.ip(from, gatewayAddr6, ipICMPv6, 0, 2, append(b, link...))
}

// fragment is the first or a later one of a datagram of which no other comes. Its identity
// (16 bits, and who talks to whom) is no other datagram's.
func (c *crafter) fragment() []byte {
	payload := make([]byte, 8*(1+c.rnd.IntN(180)))
	offset := uint16(c.rnd.IntN(2) * c.rnd.IntN(1000))
	if c.rnd.IntN(2) == 0 {
		return c.ip(guestAddr, c.world(), ipUDP, 0x2000|offset, -1, payload)
	}
	b := []byte{ipUDP, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[2:], offset<<3|1)
	binary.BigEndian.PutUint32(b[4:], c.rnd.Uint32())
	return c.ip(c.own6, gatewayAddr6, ipFragment, 0, -1, append(b, payload...))
}

// lease is what clients of DHCP and DHCPv6 send, each another one.
func (c *crafter) lease() []byte {
	mac := c.stranger()
	if c.rnd.IntN(3) == 0 {
		m := []byte{11, 1, 2, 3, 0, 1, 0, 10, 0, 3, 0, 1} // an information request, its DUID
		m = append(append(m, mac[:]...), 0, 6, 0, 2, 0, 23)
		return c.udp(netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::1:2"), dhcp6c, dhcp6s, m)
	}
	m := make([]byte, 236)
	m[0], m[1], m[2] = 1, 1, 6 // a request by Ethernet
	binary.BigEndian.PutUint32(m[4:], c.rnd.Uint32())
	copy(m[28:], mac[:])
	m = append(m, "\x63\x82\x53\x63\x35\x01"...)
	m = append(m, byte(1+2*c.rnd.IntN(2))) // discover or request
	m = append(append(m, 61, 7, 1), mac[:]...)
	m = append(m, 50, 4, 10, 0, 2, byte(15+c.rnd.IntN(16)), 255)
	return c.udp(netip.IPv4Unspecified(), broadcastAddr, dhcpClients, dhcpServers, m)
}

// query asks for a name of its own.
func (c *crafter) query() []byte {
	m := []byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 8}
	binary.BigEndian.PutUint16(m, c.any16())
	m = fmt.Appendf(m, "%08x", c.rnd.Uint32())
	return c.udp(guestAddr, resolverAddr, c.high(), dns, append(m, "\x07example\x00\x00\x01\x00\x01"...))
}

// echo pings who answers, and who does not.
func (c *crafter) echo() []byte {
	b := make([]byte, 64)
	b[0] = icmpEcho
	binary.BigEndian.PutUint32(b[4:], c.rnd.Uint32())
	switch c.rnd.IntN(4) {
	case 0:
		return c.ip(guestAddr, gatewayAddr, ipICMP, 0, 2, b)
	case 1:
		return c.ip(guestAddr, hostAddr, ipICMP, 0, 2, b)
	case 2:
		b[0] = icmpEcho6
		return c.ip(c.own6, gatewayAddr6, ipICMPv6, 0, 2, b)
	}
	return c.ip(guestAddr, c.world(), ipICMP, 0, 2, b)
}

// flood: flood KIND PORT floods, also after the reply, until calm.
func (s *agentState) flood(args []string) (string, error) {
	craft, ok := floods[args[0]]
	if !ok {
		return "", fmt.Errorf("no flood %q", args[0])
	}
	port, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	iface, err := net.InterfaceByName("tap0")
	if err != nil {
		return "", err
	}
	c := &crafter{rnd: rand.New(rand.NewPCG(1, 2)), mac: [6]byte(iface.HardwareAddr), own6: guestAddr6, port: port}
	if addrs, err := iface.Addrs(); err == nil { // it may have configured itself
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() && !p.Addr().IsLinkLocalUnicast() {
				c.own6 = p.Addr()
			}
		}
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	to := &unix.SockaddrLinklayer{Ifindex: iface.Index, Halen: 6}
	stop, sent := make(chan struct{}), make(chan int, 1)
	s.calmFlood = func() int { close(stop); return <-sent }
	go func() {
		defer unix.Close(fd)
		n := 0
		defer func() { sent <- n }()
		const tick = 2 * time.Millisecond
		pace := time.NewTicker(tick)
		defer pace.Stop()
		for begin := time.Now(); ; {
			select {
			case <-stop:
				return
			case <-pace.C:
			}
			// What one tick comes too late for, the next makes good, but no more than that.
			due := int(time.Since(begin) / (time.Second / floodRate))
			for range min(due-n, 5*floodRate/int(time.Second/tick)) {
				if err := unix.Sendto(fd, craft(c), 0, to); err == nil || errors.Is(err, unix.ENOBUFS) {
					n++
				}
			}
		}
	}()
	return "", nil
}

// calm: calm ends the flood and returns how many frames it had.
func (s *agentState) calm([]string) (string, error) {
	n := s.calmFlood()
	s.calmFlood = nil
	return strconv.Itoa(n), nil
}

// steady: steady ADDR sends as fast as it can, also after the reply.
func (s *agentState) steady(args []string) (string, error) {
	c, err := net.DialTimeout("tcp", args[0], patience)
	if err != nil {
		return "", err
	}
	go func() {
		defer c.Close()
		var sent atomic.Int64
		bulkSend(c.(*net.TCPConn), &sent)
	}()
	return "", nil
}
