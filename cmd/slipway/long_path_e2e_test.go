//go:build e2e

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"slipway/bench"
)

// The long path. The rate is low enough that the path is the limit, whatever else the
// machine does.
const (
	longRTT  = 100 * time.Millisecond
	longRate = 200_000_000 / 8 // bytes a second, 2.5 MB a round trip

	// pathPackets that wait for the path's program in the queue of a device.
	pathPackets = 1 << 14
)

// The ends of the long path: on the private host, and at a test host.
var (
	pathNear = netip.MustParsePrefix("192.0.2.1/24")
	pathFar  = netip.MustParsePrefix("192.0.2.80/24")
)

// agentPath: path NAME NAME makes two TUN devices with the long path between them, which
// lasts until the agent ends, wherever the devices go.
func (s *agentState) agentPath(args []string) (string, error) {
	s.path = &bench.Path{RoundTrip: longRTT, Rate: longRate}
	if err := s.path.Open(args[0], args[1]); err != nil {
		return "", err
	}
	go func() {
		if err := s.path.Run(); err != nil {
			fmt.Fprintf(os.Stderr, "path: %v\n", err)
			os.Exit(1)
		}
	}()
	return "", nil
}

// pathRest: pathrest waits until nothing has been under way for two round trips, and
// returns how many packets were dropped since the last time.
func (s *agentState) pathRest([]string) (string, error) {
	for before := int64(-1); before != s.path.Passed(); time.Sleep(2 * longRTT) {
		before = s.path.Passed()
	}
	dropped := s.path.Dropped()
	s.pathDropped, dropped = dropped, dropped-s.pathDropped
	return strconv.FormatInt(dropped, 10), nil
}

// A bulk server is told in one byte which way bytes shall flow, and in eight for how long.
const (
	bulkUp   = 'u' // to the server, which answers how many came in that time
	bulkDown = 'd' // from the server, for as long as somebody takes them
)

// bulkServer: bulkserver ADDR serves, also after the reply.
func agentBulkServer(args []string) (string, error) {
	l, err := net.Listen("tcp4", args[0])
	if err != nil {
		return "", err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if err := bulkServe(c.(*net.TCPConn)); err != nil {
					fmt.Fprintf(os.Stderr, "bulk server: %v\n", err)
				}
			}()
		}
	}()
	return "", nil
}

func bulkServe(c *net.TCPConn) error {
	request := make([]byte, 9)
	if _, err := io.ReadFull(c, request); err != nil {
		return err
	}
	if request[0] == bulkDown {
		bulkSend(c, new(atomic.Int64)) // until the client has enough
		return nil
	}
	n, err := bulkReceive(c, time.Duration(binary.BigEndian.Uint64(request[1:])))
	if err != nil {
		return err
	}
	_, err = c.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c) // until the client has read it
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// bulkSend sends until it fails, and counts what the kernel has taken.
func bulkSend(c *net.TCPConn, sent *atomic.Int64) {
	b := make([]byte, 256<<10)
	for {
		n, err := c.Write(b)
		sent.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// bulkReceive returns how many bytes came within a time that begins with the first.
func bulkReceive(c *net.TCPConn, within time.Duration) (int64, error) {
	b := make([]byte, 256<<10)
	n, err := c.Read(b)
	if err != nil {
		return 0, err
	}
	received := int64(n)
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return 0, err
	}
	for {
		n, err := c.Read(b)
		received += int64(n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return received, c.SetReadDeadline(time.Time{})
		}
		if err != nil {
			return 0, err
		}
	}
}

// bulkResult is what one flow did.
type bulkResult struct {
	Bytes int64         // that came
	Ahead int64         // that had been sent when the receiver had those, up only
	RTT   time.Duration // of the handshake
}

// bulk lets bytes flow one way between here and a bulk server.
func bulk(addr string, way byte, within time.Duration) (bulkResult, error) {
	var r bulkResult
	begin := time.Now()
	conn, err := dialFrom("tcp4", addr, 0)
	if err != nil {
		return r, err
	}
	r.RTT = time.Since(begin)
	c := conn.(*net.TCPConn)
	defer c.Close()
	if err := errors.Join(c.SetDeadline(time.Now().Add(within+patience)), c.SetLinger(0)); err != nil {
		return r, err
	}
	if _, err := c.Write(binary.BigEndian.AppendUint64([]byte{way}, uint64(within))); err != nil {
		return r, err
	}
	if way == bulkDown {
		r.Bytes, err = bulkReceive(c, within)
		return r, err
	}
	var sent atomic.Int64
	go bulkSend(c, &sent) // until the connection is closed
	answer := make([]byte, 8)
	if _, err := io.ReadFull(c, answer); err != nil {
		return r, err
	}
	r.Bytes = int64(binary.BigEndian.Uint64(answer))
	r.Ahead = sent.Load() - r.Bytes
	return r, nil
}

// agentBulk: bulk ADDR u|d NANOSECONDS returns a bulkResult in JSON.
func agentBulk(args []string) (string, error) {
	within, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return "", err
	}
	r, err := bulk(args[0], args[1][0], time.Duration(within))
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(r)
	return string(b), err
}

const (
	bulkPort   = 5001
	longRounds = 3
	longFlow   = 6 * time.Second // of each flow, its slow start included
)

// longFlows are the flows one way of somebody.
type longFlows struct {
	rates []float64 // bytes a second
	ahead int64     // the most
	drops []string
}

// median is that of the rates.
// TestLongPath: one TCP flow of a container to or from a host that is 100 ms away is as
// fast as one of the container's host, each way. slirp4netns is shown beside.
func TestLongPath(t *testing.T) {
	if !onPrivateHostWithin(t, 5*time.Minute) {
		return
	}
	far := targetWith(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET})
	path := longPath(t, far)
	far.do("bulkserver", fmt.Sprintf(":%d", bulkPort))
	addr := at(pathFar.Addr().String(), bulkPort)

	names := []string{"the host"}
	flow := []func(way byte) bulkResult{func(way byte) bulkResult {
		r, err := bulk(addr, way, longFlow)
		if err != nil {
			t.Fatal(err)
		}
		if r.RTT < longRTT || r.RTT > longRTT+longRTT/2 {
			t.Errorf("the round trip of the path is %s, want %s", r.RTT, longRTT)
		}
		return r
	}}
	for _, d := range drivers(t) {
		if _, err := d.version(); err != nil {
			t.Logf("no comparison with %s: %v", d.name, err)
			continue
		}
		guest, _ := d.guestOf(t)
		unpaced(guest)
		names = append(names, d.name)
		flow = append(flow, func(way byte) bulkResult {
			var r bulkResult
			if err := json.Unmarshal([]byte(guest.do("bulk", addr, string(way), int64(longFlow))), &r); err != nil {
				t.Fatal(err)
			}
			return r
		})
	}

	results := map[byte][]longFlows{bulkUp: make([]longFlows, len(flow)), bulkDown: make([]longFlows, len(flow))}
	for range longRounds {
		for _, way := range []byte{bulkUp, bulkDown} {
			for i := range flow {
				path.do("pathrest")
				r := flow[i](way)
				f := &results[way][i]
				f.rates = append(f.rates, float64(r.Bytes)/longFlow.Seconds())
				f.ahead = max(f.ahead, r.Ahead)
				f.drops = append(f.drops, path.do("pathrest"))
			}
		}
	}

	const row = "| %-14s | %-11s | %-25s | %6s | %-18s | %-10s |\n"
	fmt.Printf(row, "flow of 6 s", "of", "Mbit/s in each round", "ratio", "most sent ahead", "dropped")
	for _, way := range []byte{bulkUp, bulkDown} {
		host := median(results[way][0].rates)
		for i, name := range names {
			f := &results[way][i]
			direction, ahead := "from far away", ""
			if way == bulkUp {
				direction, ahead = "to far away", fmt.Sprintf("%.1f MB", float64(f.ahead)/1e6)
			}
			var rates []string
			for _, r := range f.rates {
				rates = append(rates, fmt.Sprintf("%.1f", r*8/1e6))
			}
			ratio := median(f.rates) / host
			fmt.Printf(row, direction, name, strings.Join(rates, " "), fmt.Sprintf("%.3f", ratio), ahead, strings.Join(f.drops, " "))
			if name == "slipway" && ratio < 0.9 {
				t.Errorf("%s, slipway reaches %.3f of what the host does, want 0.9", direction, ratio)
			}
		}
	}
}

// longPath puts the long path between the private host and an agent's namespace, and
// returns the agent that is the path.
func longPath(t *testing.T, far *agent) *agent {
	t.Helper()
	path := targetWith(t, nil)
	path.do("path", "near0", "far0")
	ip(t, "link", "set", "far0", "netns", far.Process.Pid)
	for _, end := range []struct {
		name string
		addr netip.Prefix
		on   func(args ...any)
	}{
		{"near0", pathNear, func(args ...any) { t.Helper(); ip(t, args...) }},
		{"far0", pathFar, func(args ...any) { t.Helper(); far.do(append([]any{"exec", "ip"}, args...)...) }},
	} {
		// What waits for the path's program is no part of the path's queue: let it take all.
		end.on("link", "set", end.name, "txqueuelen", pathPackets)
		end.on("addr", "add", end.addr, "dev", end.name)
		end.on("link", "set", end.name, "up")
	}
	if err := os.WriteFile(congestionControl, []byte("reno"), 0); err != nil {
		t.Fatal(err)
	}
	unpaced(far)
	return path
}

// congestionControl is per network namespace.
const congestionControl = "/proc/sys/net/ipv4/tcp_congestion_control"

// unpaced makes the TCP of an agent's namespace send by reno. Every kernel has it, it may
// be used by everybody, and it neither paces (bbr) nor guesses from jitter that a queue
// is filling (cubic): what it reaches depends on the path and on who uses it only.
func unpaced(a *agent) { a.t.Helper(); a.do("write", congestionControl, "reno") }
