//go:build e2e

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pageBytes = 100_000
	pageLoads = 200

	// pageRequest is how much of a page load goes the other way.
	pageRequest = 400
)

// trouble is what TCP_INFO knows of the connections of one side, and the kernel's
// counters of its network namespace.
type trouble struct {
	Conns   int
	Resent  int           // segments, sent once more for whatever reason
	RTOs    int           // retransmission time-outs
	Probes  int           // of a window that stayed closed
	Limited time.Duration // the longest that one waited for the other's window

	Counters map[string]int
}

// Counters of include/uapi/linux/snmp.h.
const (
	// A tail loss probe (RFC 8985 section 7) sends a segment again that has not been
	// acknowledged for 8 ms or so, as happens on a busy machine. Nothing waits for it.
	lossProbes = "TCPLossProbes"
	// The other side has to wait, for however short.
	zeroWindows = "TCPToZeroWindowAdv"
)

// stallCounters are those that a page load without a stall leaves alone.
var stallCounters = []string{"TCPTimeouts", "TCPWinProbe", "TCPZeroWindowDrop", "TCPRcvQDrop", "PruneCalled", "TCPBacklogDrop"}

// counted reads the counters of the own namespace.
func counted() (map[string]int, error) {
	wanted := append([]string{lossProbes, zeroWindows}, stallCounters...)
	b, err := os.ReadFile("/proc/self/net/netstat")
	if err != nil {
		return nil, err
	}
	out := make(map[string]int)
	var names []string
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if len(names) != len(words) || names[0] != words[0] {
			names = words
			continue
		}
		for i, name := range names {
			if slices.Contains(wanted, name) {
				if out[name], err = strconv.Atoi(words[i]); err != nil {
					return nil, err
				}
			}
		}
	}
	return out, nil
}

// pages is the side of page loads that is here, client or server.
type pages struct {
	mu   sync.Mutex
	seen trouble
	err  error
}

// look adds a connection that is about to be closed.
func (p *pages) look(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	var ierr error
	if err := raw.Control(func(fd uintptr) { info, ierr = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }); err != nil {
		return err
	}
	if ierr != nil {
		return ierr
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen.Conns++
	p.seen.Resent += int(info.Total_retrans)
	p.seen.RTOs += int(info.Total_rto) + int(info.Backoff)
	p.seen.Probes += int(info.Probes)
	p.seen.Limited = max(p.seen.Limited, time.Duration(info.Rwnd_limited)*time.Microsecond)
	return nil
}

// report returns what was seen, with the counters of the namespace.
func (p *pages) report() (trouble, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	counters, err := counted()
	p.seen.Counters = counters
	return p.seen, errors.Join(p.err, err)
}

// serve answers page requests: how long the request is and how long the answer.
func (p *pages) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if err := p.answer(c.(*net.TCPConn)); err != nil {
				p.mu.Lock()
				p.err = errors.Join(p.err, fmt.Errorf("page server: %w", err))
				p.mu.Unlock()
			}
		}()
	}
}

func (p *pages) answer(c *net.TCPConn) error {
	header := make([]byte, 8)
	if _, err := io.ReadFull(c, header); err != nil {
		return err
	}
	request, answer := binary.BigEndian.Uint32(header), binary.BigEndian.Uint32(header[4:])
	if _, err := io.CopyN(io.Discard, onlyReader{c}, int64(request)); err != nil {
		return err
	}
	if _, err := c.Write(make([]byte, answer)); err != nil {
		return err
	}
	// The client's FIN acknowledges everything.
	if _, err := c.Read(header); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for the client's FIN: %w", err)
	}
	return p.look(c)
}

// load loads a page from a page server and returns how long that took.
func (p *pages) load(addr string, request, answer int) (time.Duration, error) {
	begin := time.Now()
	conn, err := dialFrom("tcp4", addr, 0)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	c := conn.(*net.TCPConn)
	b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(request)), uint32(answer))
	if _, err := c.Write(append(b, make([]byte, request)...)); err != nil {
		return 0, err
	}
	if _, err := io.CopyN(io.Discard, onlyReader{c}, int64(answer)); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	if err := c.CloseWrite(); err != nil {
		return 0, err
	}
	if n, err := c.Read(b); !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("%d bytes after the page, %w", n, err)
	}
	return took, p.look(c)
}

// loads loads n pages, one after the other, and returns how long the slowest took.
func (p *pages) loads(addr string, n, request, answer int) (time.Duration, error) {
	var slowest time.Duration
	for i := range n {
		took, err := p.load(addr, request, answer)
		if err != nil {
			return 0, fmt.Errorf("page load %d: %w", i, err)
		}
		slowest = max(slowest, took)
	}
	return slowest, nil
}

// agentPages: pages ADDR serves pages, also after the reply, and returns its port.
func (s *agentState) servePages(args []string) (string, error) {
	l, err := net.Listen("tcp4", args[0])
	if err != nil {
		return "", err
	}
	go s.pages.serve(l)
	return "", nil
}

// loadPages: loads ADDR N REQUEST ANSWER returns how long the slowest took.
func (s *agentState) loadPages(args []string) (string, error) {
	var n [3]int
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(args[1+i]); err != nil {
			return "", err
		}
	}
	slowest, err := s.pages.loads(args[0], n[0], n[1], n[2])
	return strconv.FormatInt(int64(slowest), 10), err
}

// pageTrouble: trouble returns the agent's in JSON.
func (s *agentState) pageTrouble([]string) (string, error) {
	seen, err := s.pages.report()
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(seen)
	return string(b), err
}

// stallMTUs are those of slirp4netns' users, the largest of a TAP, and where slirp4netns
// begins to stall.
var stallMTUs = []int{1500, 9000, 20000, 32768, 49192, 65520, 65521}

// TestStall: page loads through the TAP device, of a published port and by the container,
// meet no retransmission time-out and no window of zero at any MTU. What posts as much is
// no slower.
func TestStall(t *testing.T) {
	if !onPrivateHost(t) {
		return
	}
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_rmem")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("| slowest of %d loads of %d bytes, in ms; tcp_rmem %s\n", pageLoads, pageBytes, strings.Join(strings.Fields(string(b)), " "))
	const row = "| %5v | %-11v | %9v | %9v | %9v | %9v | %15v | %14v | %11v |\n"
	fmt.Printf(row, "MTU", "by", "published", "fetched", "posted in", "sent out", "window awaited", "host's closed", "loss probes")
	for _, mtu := range stallMTUs {
		s := newStall(t, mtu)
		s.dropIn()
		fmt.Printf(row, s.cells("slirp4netns")...)
		if mtu == slices.Max(stallMTUs) {
			continue // attach takes no such MTU
		}
		s = newStall(t, mtu)
		s.attached()
		fmt.Printf(row, s.cells("attach")...)
	}
}

// stall is the page loads at one MTU.
type stall struct {
	t     *testing.T
	mtu   int
	guest *agent
	host  pages
	port  int // of the host's pages

	before  [2]map[string]int // counters of host and guest
	slowest []time.Duration
	limited time.Duration
	probes  int
	closed  [2]int // windows
}

func newStall(t *testing.T, mtu int) *stall {
	t.Helper()
	s := &stall{t: t, mtu: mtu, guest: newTarget(t)}
	unpaced(s.guest)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s.port = portOf(t, l.Addr())
	go s.host.serve(l)
	s.guest.do("pages", fmt.Sprintf(":%d", guestPort))
	return s
}

// dropIn has the pages loaded through the drop-in.
func (s *stall) dropIn() {
	s.t.Helper()
	d := drivers(s.t)[0]
	service := d.serve(s.t, s.guest, "-c", fmt.Sprintf("--mtu=%d", s.mtu))
	service.publish(forward{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: hostPort, GuestPort: guestPort})
	s.run(hostPort)
	service.exit.Close()
	service.wait()
}

// attached has them loaded through slipway attach, whose engine can be asked.
func (s *stall) attached() {
	s.t.Helper()
	port, socket := freeTCP(s.t), metricsSocket(s.t)
	a := attachTo(s.t, "--pid", strconv.Itoa(s.guest.Process.Pid), "--mtu", strconv.Itoa(s.mtu), "--host-access", "loopback",
		"--publish-path", "tap", "-p", at("127.0.0.1", port)+":"+strconv.Itoa(guestPort), "--metrics", "unix:"+socket)
	s.run(port)
	m := scrape(s.t, socket)
	if flows := number(s.t, m, "slipway_tcp_flows_total"); flows != 4*pageLoads {
		s.t.Errorf("MTU %d: %d flows through the TAP device, want %d", s.mtu, flows, 4*pageLoads)
	}
	// A segment that is lost and sent again at once is no stall.
	if n := number(s.t, m, "slipway_netstack_tcp_timeouts_total"); n != 0 {
		s.t.Errorf("MTU %d: the engine counts %d retransmission time-outs", s.mtu, n)
	}
	a.end()
}

// run loads the pages, and says what it finds.
func (s *stall) run(port int) {
	s.t.Helper()
	s.before[0], s.before[1] = s.reports()[0].Counters, s.reports()[1].Counters
	published, own := at("127.0.0.1", port), at(gateway4, s.port)
	for _, load := range []struct {
		guest           bool
		request, answer int
	}{
		{false, pageRequest, pageBytes},
		{true, pageRequest, pageBytes},
		{false, pageBytes, pageRequest},
		{true, pageBytes, pageRequest},
	} {
		var slowest time.Duration
		if load.guest {
			text := s.guest.do("loads", own, pageLoads, load.request, load.answer)
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			slowest = time.Duration(n)
		} else {
			var err error
			if slowest, err = s.host.loads(published, pageLoads, load.request, load.answer); err != nil {
				s.t.Fatalf("MTU %d: %v", s.mtu, err)
			}
		}
		s.slowest = append(s.slowest, slowest)
		if slowest > atOnce {
			s.t.Errorf("MTU %d: a page load took %s", s.mtu, slowest)
		}
	}
	// Servers look at their connections after the client has gone.
	eventually(s.t, patience, "the ends of all page loads", func() bool {
		r := s.reports()
		return r[0].Conns == 4*pageLoads && r[1].Conns == 4*pageLoads
	})
	for i, r := range s.reports() {
		where := []string{"the host", "the container"}[i]
		grew := func(name string) int { return r.Counters[name] - s.before[i][name] }
		for _, name := range stallCounters {
			if n := grew(name); n != 0 {
				s.t.Errorf("MTU %d: %s: %s grew by %d", s.mtu, where, name, n)
			}
		}
		if r.RTOs != 0 || r.Probes != 0 || r.Resent > grew(lossProbes) {
			s.t.Errorf("MTU %d: %s: %d time-outs, %d window probes; %d segments sent again, of which %d to probe for a loss",
				s.mtu, where, r.RTOs, r.Probes, r.Resent, grew(lossProbes))
		}
		if r.Limited > minRTO {
			s.t.Errorf("MTU %d: %s: a connection waited for a window for %s", s.mtu, where, r.Limited)
		}
		s.limited = max(s.limited, r.Limited)
		s.probes += grew(lossProbes)
		s.closed[i] = grew(zeroWindows)
	}
	// On the loopback device this is between the host's kernel and itself, and means that the
	// engine or the test had no processor for a moment.
	if n := s.closed[1]; n != 0 {
		s.t.Errorf("MTU %d: the container closed its window %d times", s.mtu, n)
	}
}

// minRTO is when a sender asks about a window of zero, and repeats what it sent: TCP_RTO_MIN
// of include/net/tcp.h.
const minRTO = 200 * time.Millisecond

// reports are those of host and container.
func (s *stall) reports() [2]trouble {
	s.t.Helper()
	var out [2]trouble
	var err error
	if out[0], err = s.host.report(); err != nil {
		s.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(s.guest.do("trouble")), &out[1]); err != nil {
		s.t.Fatal(err)
	}
	return out
}

// cells are the table's for one program.
func (s *stall) cells(name string) []any {
	out := []any{s.mtu, name}
	for _, d := range s.slowest {
		out = append(out, fmt.Sprintf("%.1f", d.Seconds()*1e3))
	}
	return append(out, fmt.Sprintf("%.1f", s.limited.Seconds()*1e3), s.closed[0], s.probes)
}
