//go:build e2e

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func init() {
	helpers["answer"] = answer
	helpers["answerLoopback"] = answerLoopback
	helpers["foreigner"] = foreigner
}

// answer listens in a container and tells every client who it seems to be. Its
// arguments are ports, tcp:PORT or udp:PORT; stream:PORT sends without end, dial:PORT
// reads an address, connects to it and passes on what it gets. It says "answering"
// once it listens.
func answer(args []string) error {
	errs := make(chan error, len(args))
	for _, arg := range args {
		kind, port, _ := strings.Cut(arg, ":")
		if kind == "udp" {
			c, err := net.ListenPacket("udp", ":"+port)
			if err != nil {
				return err
			}
			go func() { errs <- answerPackets(c, port) }()
			continue
		}
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					errs <- err
					return
				}
				go answerConn(c, kind)
			}
		}()
	}
	fmt.Println("answering")
	return <-errs
}

func answerPackets(c net.PacketConn, port string) error {
	buf := make([]byte, 1500)
	for {
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo([]byte(identified(from, port)), from); err != nil {
			return err
		}
	}
}

// identified is what a client hears of itself, and where it is.
func identified(a net.Addr, port string) string {
	ap := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String() + " at port " + port
}

func answerConn(c net.Conn, kind string) {
	defer c.Close()
	switch kind {
	case "stream":
		buf := make([]byte, 64<<10)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	case "dial":
		addr, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return
		}
		d, err := net.DialTimeout("tcp", strings.TrimSpace(addr), patience)
		if err != nil {
			fmt.Fprint(c, err)
			return
		}
		defer d.Close()
		_, _ = io.Copy(c, d)
	default:
		_, port, _ := net.SplitHostPort(c.LocalAddr().String())
		fmt.Fprint(c, identified(c.RemoteAddr(), port))
	}
}

// answering starts a container with options that runs answer with ports.
func answering(t *testing.T, options []string, ports ...string) *process {
	t.Helper()
	args := append([]string{"run", "--rm"}, withHelper(t, "answer")...)
	args = append(append(append(args, options...), "host", "/e2e"), ports...)
	p := slipway(t, args...)
	p.says("answering")
	return p
}

// hear connects to addr, from the address local unless that is empty, and returns
// what an answer there says and what this end's address was.
func hear(network, local, addr string) (said, own string, err error) {
	d := net.Dialer{Timeout: patience}
	if local != "" {
		ip := net.ParseIP(local)
		d.LocalAddr = &net.TCPAddr{IP: ip}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: ip}
		}
	}
	c, err := d.Dial(network, addr)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", "", err
	}
	buf := make([]byte, 1500)
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", "", err
		}
		n, err := c.Read(buf)
		return string(buf[:n]), c.LocalAddr().String(), err
	}
	b, err := io.ReadAll(c)
	return string(b), c.LocalAddr().String(), err
}

// freePorts are n ports in a row that nobody has.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for range 50 {
		if first := freeTCP(t); allFree(first, n) {
			return first
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return 0
}

func allFree(first, n int) bool {
	for port := first; port < first+n; port++ {
		tcp, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return false
		}
		tcp.Close()
		udp, err := net.ListenPacket("udp", ":"+strconv.Itoa(port))
		if err != nil {
			return false
		}
		udp.Close()
	}
	return true
}

// ownAddress is an address of this machine of 32 or 128 bits that is neither loopback nor link-local
// nor inside a container's default networks; "" when there is none.
func ownAddress(t *testing.T, bits int) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			t.Fatal(err)
		}
		inside := netip.MustParsePrefix("10.0.2.0/24").Contains(p.Addr()) || netip.MustParsePrefix("fd00::/64").Contains(p.Addr())
		if p.Addr().IsGlobalUnicast() && p.Addr().BitLen() == bits && !inside {
			return p.Addr().String()
		}
	}
	return ""
}

// TestPublishShowsTheClient asks a published server, on each path, who its clients
// are.
func TestPublishShowsTheClient(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"auto", "kernel", "tap"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			port := strconv.Itoa(freePorts(t, 1))
			answering(t, []string{"--publish-path", path, "-p", port + ":80", "-p", port + ":80/udp"}, "tcp:80", "udp:80")
			for _, network := range []string{"tcp", "udp"} {
				for _, tt := range []struct {
					name, local, addr string
					seen              string // "": as it is
				}{
					{"loopback", "127.0.0.1", "127.0.0.1", "10.0.2.2"},
					{"another loopback", "127.1.2.3", "127.0.0.1", "10.0.2.2"},
					{"IPv6 loopback", "::1", "::1", "fd00::2"},
					{"own address", ownAddress(t, 32), ownAddress(t, 32), ""},
					{"own IPv6 address", ownAddress(t, 128), ownAddress(t, 128), ""},
				} {
					t.Run(network+" from "+tt.name, func(t *testing.T) {
						if tt.local == "" {
							t.Skip("this machine has no such address, beside those in a container's own networks")
						}
						said, own, err := hear(network, tt.local, net.JoinHostPort(tt.addr, port))
						if err != nil {
							t.Fatal(err)
						}
						want := own
						if tt.seen != "" {
							_, ownPort, err := net.SplitHostPort(own)
							if err != nil {
								t.Fatal(err)
							}
							want = net.JoinHostPort(tt.seen, ownPort)
						}
						if want += " at port 80"; said != want {
							t.Errorf("client %s is told %q, want %q", own, said, want)
						}
					})
				}
			}
		})
	}
}

const (
	foreignLink = "slwe2e"
	foreign4    = "198.18.77.2" // RFC 2544's range for tests
	foreign6    = "2001:db8:77::2"
)

// foreigner waits for a link in its network namespace, gives it addresses, and asks
// the addresses that come on its standard input.
func foreigner([]string) error {
	var link netlink.Link
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if link, err = netlink.LinkByName(foreignLink); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
	}
	for _, a := range []string{foreign4 + "/24", foreign6 + "/64"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags |= syscall.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		network, addr, _ := strings.Cut(in.Text(), " ")
		said, own, err := hear(network, "", addr)
		fmt.Printf("client %s is told %q (%v)\n", own, said, err)
	}
	return in.Err()
}

// TestPublishShowsAForeignClient has a client with a network stack of its own.
func TestPublishShowsAForeignClient(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can join another network namespace to the machine's")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), helperEnv+"=foreigner")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	client := start(t, cmd)
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: foreignLink})
	veth.PeerName, veth.PeerNamespace = foreignLink, netlink.NsPid(client.Process.Pid)
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, syscall.ENODEV) {
			t.Error(err)
		}
	})
	for _, a := range []string{"198.18.77.1/24", "2001:db8:77::1/64"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags |= syscall.IFA_F_NODAD
		if err := netlink.AddrAdd(veth, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		t.Fatal(err)
	}

	for _, path := range []string{"kernel", "tap"} {
		t.Run(path, func(t *testing.T) {
			port := strconv.Itoa(freePorts(t, 1))
			answering(t, []string{"--publish-path", path, "-p", port + ":80", "-p", port + ":80/udp"}, "tcp:80", "udp:80")
			for _, network := range []string{"tcp", "udp"} {
				for own, addr := range map[string]string{foreign4: "198.18.77.1", foreign6: "2001:db8:77::1"} {
					before := len(client.stdout.String())
					if _, err := fmt.Fprintln(stdin, network, net.JoinHostPort(addr, port)); err != nil {
						t.Fatal(err)
					}
					eventually(t, patience, "an answer for the foreign client", func() bool { return strings.HasSuffix(client.stdout.String()[before:], "\n") })
					got := client.stdout.String()[before:]
					// As the client has it, port included, so is it told.
					m := regexp.MustCompile(`^client (\S+) is told "(\S+) at port 80" \(<nil>\)\n$`).FindStringSubmatch(got)
					if m == nil || m[1] != m[2] || !strings.HasPrefix(m[1], net.JoinHostPort(own, "")) {
						t.Errorf("%s to %s: %s", network, addr, got)
					}
				}
			}
		})
	}
}

// TestPublishPath looks at which way connections really went.
func TestPublishPath(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"kernel", "tap"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			port, socket := freePort(t), metricsSocket(t)
			answering(t, []string{"--publish-path", path, "-p", "127.0.0.1:" + port + ":80", "--metrics", "unix:" + socket}, "tcp:80")
			const clients = 3
			for range clients {
				if _, _, err := hear("tcp", "", "127.0.0.1:"+port); err != nil {
					t.Fatal(err)
				}
			}
			found := false
			for name, value := range scrape(t, socket) {
				if strings.HasPrefix(name, "slipway_port_connections_total{") && strings.Contains(name, `container_port="80"`) {
					found = true
					if !strings.Contains(name, `path="`+path+`"`) || value != strconv.Itoa(clients) {
						t.Errorf("%s is %s, want %d by path %s", name, value, clients, path)
					}
				}
			}
			if !found {
				t.Error("no metric counts the published port's connections")
			}
		})
	}
}

func TestPublishRangesAndRandomPorts(t *testing.T) {
	t.Parallel()
	first := freePorts(t, 3)
	p := answering(t, []string{"-p", fmt.Sprintf("127.0.0.1:%d-%d:90-92", first, first+2), "-p", "93", "-p", "127.0.0.1::94/udp"},
		"tcp:90", "tcp:91", "tcp:92", "tcp:93", "udp:94")
	ports := map[int]int{90: first, 91: first + 1, 92: first + 2}
	chosen := regexp.MustCompile(`chosen by the kernel.*:(\d+)\].*network=(tcp|udp)`)
	for _, m := range chosen.FindAllStringSubmatch(p.stderr.String(), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		ports[map[string]int{"tcp": 93, "udp": 94}[m[2]]] = n
	}
	if len(ports) != 5 {
		t.Fatalf("standard error announces the chosen ports as %q", &p.stderr)
	}
	for inside, outside := range ports {
		network := "tcp"
		if inside == 94 {
			network = "udp"
		}
		said, _, err := hear(network, "", "127.0.0.1:"+strconv.Itoa(outside))
		if want := fmt.Sprintf(" at port %d", inside); err != nil || !strings.HasSuffix(said, want) {
			t.Errorf("%s port %d of the host says %q (%v), want an end of %q", network, outside, said, err, want)
		}
	}
	// The random one is the same for both families.
	if _, _, err := hear("tcp", "", fmt.Sprintf("[::1]:%d", ports[93])); err != nil {
		t.Errorf("port chosen for IPv4 and IPv6: %v", err)
	}
	// What was bound to 127.0.0.1 is not elsewhere.
	if c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.2:%d", first), patience); err == nil {
		c.Close()
		t.Error("a port published at 127.0.0.1 answers at 127.0.0.2")
	}
}

// TestPublishedPortIsNobodysLoopback: what listens on the container's 127.0.0.1 was
// not published.
func TestPublishedPortIsNobodysLoopback(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"kernel", "tap"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			args := append([]string{"run", "--rm", "--publish-path", path, "-p", "127.0.0.1:" + port + ":80"}, withHelper(t, "answerLoopback")...)
			slipway(t, append(args, "host", "/e2e")...).says("answering")
			said, _, err := hear("tcp", "", "127.0.0.1:"+port)
			if err == nil || said != "" {
				t.Errorf("a server on the container's loopback answers %q (%v) through a published port", said, err)
			}
		})
	}
}

// answerLoopback is answer for one port of the container's loopback.
func answerLoopback([]string) error {
	l, err := net.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		return err
	}
	fmt.Println("answering")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		answerConn(c, "tcp")
	}
}

// TestPublishPortInUse wants nothing to have happened when a port cannot be had.
func TestPublishPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().(*net.TCPAddr).Port
	u, err := net.ListenPacket("udp6", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	takenUDP := u.LocalAddr().(*net.UDPAddr).Port
	free := freePorts(t, 1)

	for _, tt := range []struct {
		name, publish string
		port          int
	}{
		{"the address", fmt.Sprintf("127.0.0.1:%d:80", taken), taken},
		{"every address", fmt.Sprintf("%d:80", taken), taken},
		{"UDP", fmt.Sprintf("%d:80/udp", takenUDP), takenUDP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := openDir(t)
			p := inNursery(t, "run", "--rm", "-v", dir+":/w", "-p", fmt.Sprintf("%d:81", free), "-p", tt.publish, "host", "touch", "/w/ran")
			if status := p.wait(); status != 125 {
				t.Errorf("exit status %d, want 125", status)
			}
			oneLine(t, p.stderr.String(), strconv.Itoa(tt.port), "in use", "ss -lnp")
			if _, err := os.Stat(filepath.Join(dir, "ran")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the workload ran (%v)", err)
			}
			p.leftNothing()
			if !allFree(free, 1) {
				t.Errorf("port %d, which was free, is still taken", free)
			}
		})
	}
}

// TestPublishedPortsUnderManyClients: the answer is the right client's, whoever else
// asks.
func TestPublishedPortsUnderManyClients(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	answering(t, []string{"-p", "127.0.0.1:" + port + ":80"}, "tcp:80")
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 25 {
				said, own, err := hear("tcp", "", "127.0.0.1:"+port)
				if err != nil {
					t.Error(err)
					return
				}
				_, ownPort, _ := net.SplitHostPort(own)
				if want := "10.0.2.2:" + ownPort + " at port 80"; said != want {
					t.Errorf("client %s is told %q, want %q", own, said, want)
				}
			}
		})
	}
	wg.Wait()
}
