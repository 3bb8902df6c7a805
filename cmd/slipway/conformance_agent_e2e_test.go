//go:build e2e

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What an agent can do for the conformance suite alone.

func init() { helpers["lease"] = tellLease }

// agentExec: exec PROGRAM ARGS… runs it and returns what it says.
func agentExec(args []string) (string, error) {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// agentWrite: write FILE WORDS…
func agentWrite(args []string) (string, error) {
	return "", os.WriteFile(args[0], []byte(strings.Join(args[1:], " ")), 0o644)
}

// agentNetif: netif NAME returns a netif in JSON.
func agentNetif(args []string) (string, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return "", err
	}
	link, err := netlink.LinkByName(args[0])
	if err != nil {
		return "", err
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return "", err
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return "", err
	}
	i := netif{
		Up:         link.Attrs().Flags&net.FlagUp != 0,
		LoopbackUp: lo.Attrs().Flags&net.FlagUp != 0,
		MTU:        link.Attrs().MTU,
		MAC:        link.Attrs().HardwareAddr.String(),
	}
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			continue // cannot be used yet, RFC 4862 section 5.4
		}
		prefix, err := netip.ParsePrefix(a.IPNet.String())
		if err != nil {
			return "", err
		}
		i.Addrs = append(i.Addrs, prefix)
	}
	for _, r := range routes {
		everything := r.Dst == nil
		if !everything {
			bits, _ := r.Dst.Mask.Size()
			everything = bits == 0
		}
		if via, ok := netip.AddrFromSlice(r.Gw); ok && everything {
			i.Gateways = append(i.Gateways, via.Unmap())
		}
	}
	b, err := json.Marshal(i)
	return string(b), err
}

// agentARP: arp IFACE ADDR returns the hardware address of ADDR, or nothing when nobody
// answers, which is waited for only shortly.
func agentARP(args []string) (string, error) {
	iface, err := net.InterfaceByName(args[0])
	if err != nil {
		return "", err
	}
	target, err := netip.ParseAddr(args[1])
	if err != nil {
		return "", err
	}
	const etherTypeARP = 0x0806
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, etherTypeARP))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: iface.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: iface.Index}); err != nil {
		return "", err
	}
	// RFC 826: hardware and protocol space, their lengths, the opcode; sender, target.
	request := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	request = append(request, iface.HardwareAddr...)
	own := [4]byte{10, 0, 2, 100}
	if addrs, err := iface.Addrs(); err == nil {
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
				own = p.Addr().As4()
			}
		}
	}
	request = append(append(request, own[:]...), 0, 0, 0, 0, 0, 0)
	wanted := target.As4()
	request = append(request, wanted[:]...)
	if err := unix.Sendto(fd, request, 0, to); err != nil {
		return "", err
	}
	const opcodeReply = 2
	b := make([]byte, 128)
	for deadline := time.Now().Add(500 * time.Millisecond); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return "", nil
		}
		timeout := unix.NsecToTimeval(left.Nanoseconds() + 1e6)
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
			return "", err
		}
		n, _, err := unix.Recvfrom(fd, b, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return "", nil
		case err != nil:
			return "", err
		case n >= 28 && b[7] == opcodeReply && [4]byte(b[14:18]) == wanted:
			return net.HardwareAddr(b[8:14]).String(), nil
		}
	}
}

// agentDHCP: dhcp IFACE asks for a lease with busybox's udhcpc, and returns it as
// tellLease says it.
func agentDHCP(args []string) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("busybox", "udhcpc", "-f", "-q", "-n", "-t", "5", "-T", "1", "-i", args[0], "-s", exe)
	cmd.Env = append(os.Environ(), helperEnv+"=lease")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("udhcpc: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// tellLease is the script that udhcpc calls: it says what the lease has, in JSON.
func tellLease(args []string) error {
	if args[0] != "bound" {
		return nil
	}
	lease := make(map[string]string)
	for _, name := range []string{"ip", "subnet", "router", "dns", "serverid", "lease", "mtu", "domain", "hostname"} {
		if v, ok := os.LookupEnv(name); ok {
			lease[name] = v
		}
	}
	return json.NewEncoder(os.Stdout).Encode(lease)
}

// agentDHCP6: dhcp6 IFACE asks for the network's options, RFC 8415 section 6.1, and
// returns the resolvers that it gets.
func agentDHCP6(args []string) (string, error) {
	iface, err := net.InterfaceByName(args[0])
	if err != nil {
		return "", err
	}
	c, err := net.ListenUDP("udp6", &net.UDPAddr{Port: 546})
	if err != nil {
		return "", err
	}
	defer c.Close()
	const informationRequest, reply, optionClientID, optionRequest, optionElapsed, optionDNS = 11, 7, 1, 6, 8, 23
	m := []byte{informationRequest, 1, 2, 3, 0, optionClientID, 0, 10, 0, 3, 0, 1} // DUID-LL of an Ethernet
	m = append(m, iface.HardwareAddr...)
	m = append(m, 0, optionRequest, 0, 2, 0, optionDNS, 0, optionElapsed, 0, 2, 0, 0)
	b := make([]byte, 1500)
	for range 3 {
		if _, err := c.WriteTo(m, &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: 547, Zone: args[0]}); err != nil {
			return "", err
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return "", err
		}
		n, err := c.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return "", err
		}
		if n < 4 || b[0] != reply || [3]byte(b[1:4]) != [3]byte{1, 2, 3} {
			return "", fmt.Errorf("the reply is %x", b[:n])
		}
		var resolvers []string
		for o := b[4:n]; len(o) >= 4; {
			code, length := binary.BigEndian.Uint16(o), int(binary.BigEndian.Uint16(o[2:]))
			if len(o) < 4+length {
				return "", fmt.Errorf("the reply is cut: %x", b[:n])
			}
			for v := o[4 : 4+length]; code == optionDNS && len(v) >= 16; v = v[16:] {
				resolvers = append(resolvers, netip.AddrFrom16([16]byte(v)).String())
			}
			o = o[4+length:]
		}
		return strings.Join(resolvers, " "), nil
	}
	return "", errors.New("no reply")
}

// advertisement is a router's, RFC 4861 section 4.2.
type advertisement struct {
	HopLimit          int
	Managed, Other    bool
	Lifetime          time.Duration
	Prefix            netip.Prefix
	OnLink, Auto      bool
	Valid, Preferred  time.Duration
	MAC               string // of the router
	MTU               int
	Resolvers         []netip.Addr
	ResolversLifetime time.Duration
}

// agentSolicit: solicit IFACE asks for a router and returns its advertisement in JSON.
func agentSolicit(args []string) (string, error) {
	iface, err := net.InterfaceByName(args[0])
	if err != nil {
		return "", err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	const solicitation, advertised = 133, 134
	timeout := unix.NsecToTimeval(int64(time.Second))
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
		unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MULTICAST_IF, iface.Index),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
	); err != nil {
		return "", err
	}
	allRouters := &unix.SockaddrInet6{ZoneId: uint32(iface.Index), Addr: netip.MustParseAddr("ff02::2").As16()}
	b := make([]byte, 1500)
	for range 3 {
		if err := unix.Sendto(fd, []byte{solicitation, 0, 0, 0, 0, 0, 0, 0}, 0, allRouters); err != nil {
			return "", err
		}
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				return "", err
			}
			if n < 16 || b[0] != advertised {
				continue
			}
			text, err := json.Marshal(parseAdvertisement(b[:n]))
			return string(text), err
		}
	}
	return "", errors.New("no advertisement")
}

func parseAdvertisement(b []byte) advertisement {
	seconds := func(b []byte) time.Duration { return time.Duration(binary.BigEndian.Uint32(b)) * time.Second }
	a := advertisement{
		HopLimit: int(b[4]), Managed: b[5]&0x80 != 0, Other: b[5]&0x40 != 0,
		Lifetime: time.Duration(binary.BigEndian.Uint16(b[6:])) * time.Second,
	}
	for o := b[16:]; len(o) >= 8 && o[1] > 0 && len(o) >= 8*int(o[1]); o = o[8*int(o[1]):] {
		switch whole := o[:8*int(o[1])]; whole[0] {
		case 1:
			a.MAC = net.HardwareAddr(whole[2:8]).String()
		case 3:
			if len(whole) == 32 {
				a.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte(whole[16:])), int(whole[2]))
				a.OnLink, a.Auto = whole[3]&0x80 != 0, whole[3]&0x40 != 0
				a.Valid, a.Preferred = seconds(whole[4:]), seconds(whole[8:])
			}
		case 5:
			a.MTU = int(binary.BigEndian.Uint32(whole[4:]))
		case 25:
			a.ResolversLifetime = seconds(whole[4:])
			for v := whole[8:]; len(v) >= 16; v = v[16:] {
				a.Resolvers = append(a.Resolvers, netip.AddrFrom16([16]byte(v)))
			}
		}
	}
	return a
}

// agentTell: tell NETWORK ADDR returns a sight in JSON.
func agentTell(args []string) (string, error) {
	s, err := tell(args[0], args[1])
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(s)
	return string(b), err
}

// tell asks a teller at addr whom it sees.
func tell(network, addr string) (sight, error) {
	const within = 4 * time.Second
	c, err := net.DialTimeout(network, addr, within)
	if err != nil {
		return sight{}, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return sight{}, err
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return sight{}, err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		return sight{}, err
	}
	local, err := unmapped(c.LocalAddr().String())
	if err != nil {
		return sight{}, err
	}
	seen, err := unmapped(string(b[:n]))
	return sight{local, seen}, err
}

func unmapped(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port()), err
}

// agentTeller: teller NETWORK ADDR serves tellers, also after the reply.
func agentTeller(args []string) (string, error) {
	_, port, err := serveTeller(args[0], args[1])
	return strconv.Itoa(port), err
}

// serveTeller tells everybody who calls what his address is.
func serveTeller(network, addr string) (interface{ Close() error }, int, error) {
	if strings.HasPrefix(network, "udp") {
		c, err := net.ListenPacket(network, addr)
		if err != nil {
			return nil, 0, err
		}
		go func() {
			b := make([]byte, 1<<16)
			for {
				_, from, err := c.ReadFrom(b)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					_, _ = c.WriteTo([]byte(from.String()), from)
				}
			}
		}()
		return c, c.LocalAddr().(*net.UDPAddr).Port, nil
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return nil, 0, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := c.Read(make([]byte, 1)); err == nil {
					_, _ = c.Write([]byte(c.RemoteAddr().String()))
				}
			}()
		}
	}()
	return l, l.Addr().(*net.TCPAddr).Port, nil
}

// agentProbe: probe udp|icmp ADDR TTL sends what does not get farther than TTL hops and
// returns who answers, with ICMP type and code. As traceroute does it.
func agentProbe(args []string) (string, error) {
	addr, err := netip.ParseAddr(args[1])
	if err != nil {
		return "", err
	}
	ttl, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	protocol, message := 0, []byte("probe")
	if args[0] == "icmp" {
		protocol, message = unix.IPPROTO_ICMP, []byte{8, 0, 0, 0, 0, 0, 0, byte(ttl)}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1),
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TTL, ttl),
		// Nobody listens at traceroute's ports.
		unix.Connect(fd, &unix.SockaddrInet4{Addr: addr.As4(), Port: 33434 + ttl}),
	); err != nil {
		return "", err
	}
	if _, err := unix.Write(fd, message); err != nil {
		return "", err
	}
	events, err := awaitEvents(fd, 3*time.Second)
	if err != nil {
		return "", err
	}
	if events&unix.POLLERR == 0 {
		return addr.String() + " 0 0", nil
	}
	oob := make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 1500), oob, unix.MSG_ERRQUEUE)
	if err != nil {
		return "", err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return "", err
	}
	for _, m := range messages {
		// struct sock_extended_err, and the sockaddr_in of who said it: ip(7).
		const extended = 16
		if m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR && len(m.Data) >= extended+8 {
			return fmt.Sprintf("%s %d %d", netip.AddrFrom4([4]byte(m.Data[extended+4:])), m.Data[5], m.Data[6]), nil
		}
	}
	return "", errors.New("an error without its sender")
}

// awaitEvents waits until a socket has an answer or an error.
func awaitEvents(fd int, within time.Duration) (int16, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(within); ; {
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0:
			return 0, unix.ETIMEDOUT
		default:
			return fds[0].Revents, nil
		}
	}
}

// agentPMTU: pmtu ADDR SIZE sends datagrams of that size, which must not be fragmented,
// until the kernel knows a smaller MTU of the path, and returns what it knows.
func agentPMTU(args []string) (string, error) {
	addr, err := netip.ParseAddr(args[0])
	if err != nil {
		return "", err
	}
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	family, level, discover, known := unix.AF_INET, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU
	var sa unix.Sockaddr
	if addr.Is4() {
		sa = &unix.SockaddrInet4{Addr: addr.As4(), Port: echoPort}
	} else {
		family, level, discover, known = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU
		sa = &unix.SockaddrInet6{Addr: addr.As16(), Port: echoPort}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	// IPV6_PMTUDISC_DO has the same value.
	if err := errors.Join(unix.SetsockoptInt(fd, level, discover, unix.IP_PMTUDISC_DO), unix.Connect(fd, sa)); err != nil {
		return "", err
	}
	first, err := unix.GetsockoptInt(fd, level, known)
	if err != nil {
		return "", err
	}
	for range 10 {
		if _, err := unix.Write(fd, make([]byte, size)); err != nil && !errors.Is(err, unix.EMSGSIZE) {
			return "", err
		}
		// An echo would show that it was fragmented.
		if events, err := awaitEvents(fd, 300*time.Millisecond); err == nil && events&unix.POLLERR == 0 {
			return "", errors.New("the datagram went through")
		}
		now, err := unix.GetsockoptInt(fd, level, known)
		if err != nil {
			return "", err
		}
		if now != first {
			return strconv.Itoa(now), nil
		}
	}
	return "", fmt.Errorf("the path's MTU is still %d", first)
}

// agentTCPOptions: tcpoptions ADDR returns which options a connection has agreed on.
func agentTCPOptions(args []string) (string, error) {
	c, err := dialFrom("tcp", args[0], 0)
	if err != nil {
		return "", err
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return "", err
	}
	var info *unix.TCPInfo
	var ierr error
	if err := raw.Control(func(fd uintptr) { info, ierr = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }); err != nil {
		return "", err
	}
	if ierr != nil {
		return "", ierr
	}
	var out []string
	// TCPI_OPT_* of include/uapi/linux/tcp.h.
	for i, name := range []string{"timestamps", "sack", "wscale"} {
		if info.Options&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return strings.Join(out, " "), nil
}

// watchPings: watchpings makes ready for pinged.
func (s *agentState) watchPings([]string) (string, error) {
	var err error
	s.pings, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
	return "", err
}

// pinged: pinged returns who sent an echo request since watchpings.
func (s *agentState) pinged([]string) (string, error) {
	if err := s.pings.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	b := make([]byte, 1<<16)
	for {
		n, from, err := s.pings.ReadFrom(b)
		if err != nil {
			return "", err
		}
		if n > 0 && b[0] == 8 {
			return from.String(), nil
		}
	}
}
