package monitor_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/confine"
	"slipway/netstack/monitor"
	"slipway/netstack/netns"
)

// The test binary is monitor, engine and launcher too, by its first argument.
func TestMain(m *testing.M) {
	role := ""
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	var err error
	switch role {
	case "monitor":
		err = monitor.Serve()
	case "engine":
		err = engine()
	case "launcher":
		err = launcher(os.Args[2:])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		os.Exit(1)
	}
}

// engineConfig steers the engine of these tests.
type engineConfig struct {
	Mode string // "serve", "locked", "exit", "panic", "mute", "rude", "thief"
}

// engine answers on each TCP and unix listener: it writes its identity and then
// obeys lines.
func engine() error {
	c, start, err := monitor.Connect()
	if err != nil {
		return err
	}
	var cfg engineConfig
	if err := json.Unmarshal(start.Config, &cfg); err != nil {
		return err
	}
	switch cfg.Mode {
	case "exit":
		fmt.Fprintln(os.Stderr, "no such option: --frob")
		os.Exit(3)
	case "panic":
		panic("broken invariant")
	case "mute":
		<-c.Done()
		return nil
	case "thief": // asks for sockets although it was not told that it may
		_, err := c.Sockets(context.Background(), unix.AF_INET, 1)
		return err
	case "locked":
		// With the race detector, which needs cgo, there is no lock-down.
		if err := confine.Lock(); err != nil && !errors.Is(err, confine.ErrNotSupported) {
			return err
		}
	}
	for _, group := range start.Listeners {
		for _, f := range group {
			l, err := net.FileListener(f)
			if err != nil {
				continue // a UDP socket
			}
			go accept(l, c, start)
		}
	}
	for _, f := range start.Forwards {
		serveForward(f, c, start)
	}
	if err := c.Ready(); err != nil {
		return err
	}
	<-c.Done()
	return nil
}

// serveForward answers on what was asked for as on any other listener.
func serveForward(f monitor.Forward, c *monitor.Client, start *monitor.StartMessage) {
	for _, s := range f.Sockets {
		if l, err := net.FileListener(s); err == nil {
			go accept(l, c, start)
		}
		s.Close()
	}
}

func accept(l net.Listener, c *monitor.Client, start *monitor.StartMessage) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go obey(conn, c, start)
	}
}

func obey(conn net.Conn, c *monitor.Client, start *monitor.StartMessage) {
	defer conn.Close()
	var st unix.Stat_t
	deviceErr := unix.Fstat(int(start.Device.Fd()), &st)
	fmt.Fprintf(conn, "%d %d %v %v %v\n", os.Getpid(), start.Restarts, start.MAC, st.Rdev == unix.Mkdev(10, 200), deviceErr)
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		switch verb, rest, _ := strings.Cut(lines.Text(), " "); verb {
		case "sockets":
			n, _ := strconv.Atoi(rest)
			fds, err := c.Sockets(context.Background(), unix.AF_INET, n)
			for _, fd := range fds {
				if domain, e := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); e != nil || domain != unix.AF_INET {
					err = fmt.Errorf("domain %d, %w", domain, e)
				}
				unix.Close(fd)
			}
			fmt.Fprintf(conn, "%d %v\n", len(fds), err)
		case "many": // requests side by side
			errs := make(chan error)
			for range 40 {
				go func() {
					fds, err := c.Sockets(context.Background(), unix.AF_INET, 3)
					for _, fd := range fds {
						unix.Close(fd)
					}
					if len(fds) != 3 {
						err = fmt.Errorf("%d sockets: %w", len(fds), err)
					}
					errs <- err
				}()
			}
			var err error
			for range 40 {
				err = errors.Join(err, <-errs)
			}
			fmt.Fprintf(conn, "%v\n", err)
		case "late": // a reply that nobody waits for any more
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_, err := c.Sockets(ctx, unix.AF_INET, 8)
			fmt.Fprintf(conn, "%v\n", errors.Is(err, context.Canceled))
		case "listen": // NETWORK ADDR SPEC
			f := strings.Fields(rest)
			got, err := c.Listen(context.Background(), monitor.Listen{
				Network: f[0], Addrs: []netip.AddrPort{netip.MustParseAddrPort(f[1])},
			}, json.RawMessage(f[2]))
			if err != nil {
				fmt.Fprintf(conn, "%v\n", err)
				continue
			}
			serveForward(*got, c, start)
			fmt.Fprintf(conn, "%d %v\n", got.ID, got.Bound[0])
		case "unlisten":
			id, _ := strconv.Atoi(rest)
			fmt.Fprintf(conn, "%v\n", c.Unlisten(context.Background(), id))
		case "forwards": // those of earlier engines
			var list []string
			for _, f := range start.Forwards {
				list = append(list, fmt.Sprintf("%d=%s@%v", f.ID, f.Spec, f.Bound[0]))
			}
			fmt.Fprintln(conn, strings.Join(list, " "))
		case "resolvers":
			list, err := c.Resolvers(context.Background())
			fmt.Fprintf(conn, "%v %v\n", list, err)
		case "container":
			fmt.Fprintf(conn, "{\"Name\": %q, \"Namespace\": %d}\n", start.Container, start.Namespace)
		case "status":
			s, err := c.Status(context.Background())
			if err == nil {
				err = json.NewEncoder(conn).Encode(s)
			}
			if err != nil {
				fmt.Fprintln(conn, err)
			}
		case "exit":
			os.Exit(1)
		case "panic":
			panic("on demand")
		case "rude":
			rude()
		}
	}
}

// rude sends the monitor something that is no message.
func rude() {
	_ = unix.Sendto(ownSocket(), []byte("{"), 0, nil)
}

// ownSocket finds the duplicate of the monitor's socket that the client uses.
func ownSocket() int {
	for fd := 3; fd < 1000; fd++ {
		if typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && typ == unix.SOCK_SEQPACKET {
			return fd
		}
	}
	return -1
}

// launcherConfig is what a launcher of these tests does.
type launcherConfig struct {
	PID      int // whose namespaces
	TUN      string
	Unix     string
	Workload int // pid to guard
}

// launcher starts a monitor, guards a process, says what came of it, and waits to
// be killed.
func launcher(args []string) error {
	var cfg launcherConfig
	if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
		return err
	}
	target, err := netns.FromPID(cfg.PID)
	if err != nil {
		return err
	}
	p, ready, err := monitor.Start(config(target, cfg.TUN, engineConfig{Mode: "serve"},
		monitor.Listen{Network: "tcp", Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}},
		monitor.Listen{Network: "unix", Path: cfg.Unix}))
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(cfg.Workload, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(pidfd), "workload")
	if err := p.Guard(f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	fmt.Println(p.PID(), ready.EnginePID, ready.Bound[0][0])
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// config is a network of these tests.
func config(target netns.Target, tun string, e engineConfig, listen ...monitor.Listen) monitor.Config {
	raw, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return monitor.Config{
		Target: target, TunPath: tun, Engine: raw, Listen: listen,
		Link: netns.Link{
			Name: "tap0", MTU: 1500,
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24"), netip.MustParsePrefix("fd00::100/64")},
			Gateways:  []netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00::2")},
		},
		KernelPorts: []netns.PortRange{{First: 80, Last: 80}},
		Guests:      []netip.Addr{netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr("fd00::100")},
	}
}

// eventually polls until ok, or fails the test after limit.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// alive reports whether the process is there and no zombie.
func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

// session is a conversation with an engine of these tests.
type session struct {
	net.Conn
	r *bufio.Reader

	pid, restarts int
	mac           string
}

// talk connects, and waits for the engine's word for at most limit.
func talk(network, address string, limit time.Duration) (*session, error) {
	c, err := net.DialTimeout(network, address, limit)
	if err != nil {
		return nil, err
	}
	s := &session{Conn: c, r: bufio.NewReader(c)}
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	line, err := s.r.ReadString('\n')
	if err != nil {
		c.Close()
		return nil, err
	}
	var device bool
	var deviceErr string
	if _, err := fmt.Sscan(line, &s.pid, &s.restarts, &s.mac, &device, &deviceErr); err != nil || !device {
		c.Close()
		return nil, fmt.Errorf("%q: %w", line, err)
	}
	return s, c.SetDeadline(time.Now().Add(10 * time.Second))
}

func (s *session) ask(t *testing.T, line string) string {
	t.Helper()
	if _, err := fmt.Fprintln(s, line); err != nil {
		t.Fatal(err)
	}
	reply, err := s.r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(reply)
}
