//go:build e2e

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stalledFlows are as many as there may be, nearly (--max-flows). deafFlows of them wait for
	// the host, the others for the guest.
	stalledFlows, deafFlows = 8000, 1000
	// stalledKernel is what the kernel has of each flow that waits for the guest, in bytes.
	stalledKernel = 200 << 10
	// Of the engine, in bytes: what all flows may have queued (--max-buffer), what each may take
	// beside that, and the rest.
	queuedMost, stalledFlowMost, engineMost = 256 << 20, 24 << 10, 64 << 20
	// returnedWithin is how soon the memory is the kernel's again, but for keptMost bytes.
	returnedWithin = 10 * time.Second
	keptMost       = 32 << 20
	// besideLeast is which part of its speed a stream keeps beside stalled flows.
	besideLeast = 0.7
)

// tcpMemory is how many bytes all sockets of the machine may have until the kernel saves memory
// on each of them (tcp_mem in tcp(7)), which costs streams nearly all of their speed. By default
// it is a sixteenth of the memory (tcp_init_mem in net/ipv4/tcp.c).
func tcpMemory(t *testing.T) int {
	t.Helper()
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	return int(info.Totalram) * int(info.Unit) / 16
}

// smallSockets makes the kernel's own buffers small: thousands of full ones would use up
// net.ipv4.tcp_mem, which is the whole machine's.
func smallSockets(_, _ string, raw syscall.RawConn) error {
	var errs []error
	err := raw.Control(func(fd uintptr) {
		for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
			errs = append(errs, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 4<<10))
		}
	})
	return errors.Join(append(errs, err)...)
}

// listenSmall has serve called for each connection to a port of the host's. end closes them.
func listenSmall(t *testing.T, serve func(net.Conn)) (port int, end func()) {
	t.Helper()
	config := net.ListenConfig{Control: smallSockets}
	l, err := config.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var accepted []net.Conn
	end = func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range accepted {
			c.Close()
		}
	}
	t.Cleanup(end)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			accepted = append(accepted, c)
			mu.Unlock()
			go serve(c)
		}
	}()
	return portOf(t, l.Addr()), end
}

// writeEndlessly is for a peer that does not read.
func writeEndlessly(c net.Conn) {
	b := make([]byte, 16<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// stalled: stalled ADDR N r|w keeps N connections, from which it does not read, or to which it
// writes all that it can; without arguments it ends them.
func (s *agentState) stalled(args []string) (string, error) {
	if len(args) == 0 {
		for _, c := range s.sockets {
			c.Close()
		}
		s.sockets = nil
		return "", nil
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	dialer := net.Dialer{Control: smallSockets, Timeout: patience}
	for i := range n {
		c, err := dialer.DialContext(context.Background(), "tcp", args[0])
		if err != nil {
			return "", fmt.Errorf("connection %d: %w", i, err)
		}
		s.sockets = append(s.sockets, c)
		if args[2] == "w" {
			go writeEndlessly(c)
		}
	}
	return "", nil
}

// TestQueuedBytesAreBounded: a guest that reads nothing of thousands of connections, and hosts
// that read nothing, cost an engine no more than its bound, nor a stream beside them
// more than a part of its speed, and when they have ended the memory is the kernel's again.
func TestQueuedBytesAreBounded(t *testing.T) {
	if !onPrivateHostWithin(t, 4*time.Minute) {
		return
	}
	raiseFiles(t)
	socket := metricsSocket(t)
	guest := newTarget(t)
	network := attachTo(t, "--pid", strconv.Itoa(guest.Process.Pid), "--host-access", "loopback", "--metrics", "unix:"+socket)
	engine := find(t, network.Process.Pid, "an engine", func(cmdline string) bool { return strings.HasSuffix(cmdline, "engine") })
	endless, _ := listenSmall(t, writeEndlessly)
	deaf, end := listenSmall(t, func(net.Conn) {})
	host := targetWith(t, nil) // in a process of its own, on the host
	host.do("bulkserver", fmt.Sprintf(":%d", bulkPort))
	speed := func() float64 {
		t.Helper()
		var r bulkResult
		if err := json.Unmarshal([]byte(guest.do("bulk", at(gateway4, bulkPort), "d", int64(500*time.Millisecond))), &r); err != nil {
			t.Fatal(err)
		}
		return float64(r.Bytes)
	}
	var alone []float64
	for range 3 {
		alone = append(alone, speed())
	}
	start := resident(t, engine)
	few := min(stalledFlows-deafFlows, tcpMemory(t)*7/10/stalledKernel)
	guest.do("stalled", at(gateway4, endless), few, "r")
	var beside []float64
	for range 5 {
		beside = append(beside, speed())
	}
	kept := slices.Max(beside) / median(alone)
	t.Logf("beside %d stalled flows a stream keeps %.2f of its speed", few, kept)
	if kept < besideLeast {
		t.Errorf("beside stalled flows a stream keeps %.2f of its speed, want %.1f at least", kept, besideLeast)
	}
	guest.do("stalled", at(gateway4, endless), stalledFlows-deafFlows-few, "r")
	guest.do("stalled", at(gateway4, deaf), deafFlows, "w")
	most := 0
	for range 5 {
		speed()
		most = max(most, resident(t, engine))
	}
	m := scrape(t, socket)
	queued, flows := number(t, m, "slipway_tcp_buffered_bytes"), number(t, m, "slipway_tcp_flows_open")
	t.Logf("%d stalled flows: %d MiB resident, %d MiB at the start, %d MiB queued", flows, most>>20, start>>20, queued>>20)
	if flows < stalledFlows {
		t.Errorf("%d flows are open, want %d", flows, stalledFlows)
	}
	if want := queuedMost + stalledFlows*stalledFlowMost + engineMost; most > want {
		t.Errorf("%d bytes are resident, want %d at most", most, want)
	}
	if queued == 0 || queued > queuedMost {
		t.Errorf("%d bytes are queued, want some, and %d at most", queued, queuedMost)
	}
	guest.do("stalled")
	end()
	eventually(t, patience, "the flows have ended", func() bool { return number(t, scrape(t, socket), "slipway_tcp_flows_open") == 0 })
	eventually(t, returnedWithin, "the memory is returned", func() bool { return resident(t, engine) <= start+keptMost })
	t.Logf("%d MiB resident after them", resident(t, engine)>>20)
}
