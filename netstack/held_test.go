package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	ft "slipway/netstack/internal/frametest"
	"slipway/netstack/tap"
)

// TestSourcePortIsReusedAtOnce: a guest may connect from the port of a connection that
// ended a moment ago, however it ended, and whatever gVisor still remembers of it.
func TestSourcePortIsReusedAtOnce(t *testing.T) {
	const times = 500
	g := newKernelGuest(t, tap.Auto, HostAccess{Loopback: Grant{Open: true}})
	n := DefaultNetwork()
	for _, tt := range []struct {
		network, listen string
		from, to        netip.Addr
	}{
		{"tcp4", "127.0.0.1:0", n.Guest4(), n.Gateway4()},
		{"tcp6", "[::1]:0", n.Guest6(), n.Gateway6()},
	} {
		l, err := net.Listen(tt.network, tt.listen)
		if err != nil {
			t.Logf("no %s here: %v", tt.network, err)
			continue
		}
		defer l.Close()
		go serve(l)
		src := netip.AddrPortFrom(tt.from, 20000)
		dst := netip.AddrPortFrom(tt.to, netip.MustParseAddrPort(l.Addr().String()).Port())
		// After dialerCloses the guest's own kernel keeps the port.
		endings := []byte{acceptorCloses, dialerResets, acceptorResets}
		for i := range times {
			c, err := g.dialFrom(src, dst)
			for errors.Is(err, syscall.EADDRNOTAVAIL) { // the last ACK is on its way
				c, err = g.dialFrom(src, dst)
			}
			if err != nil {
				t.Errorf("%s: connection %d, after ending %d: %v", tt.network, i, endings[(i+2)%3], err)
				continue
			}
			talk(t, c, endings[i%3])
		}
	}
}

// burstGuest is a guest that makes its segments itself, of a stack that makes few
// connections at a time.
func burstGuest(t testing.TB, pending int, heldForPlace time.Duration) *guest {
	t.Helper()
	return startGuest(t, Config{
		Network:      DefaultNetwork(),
		Policy:       Policy{Local: everythingLocal{}, HostAccess: HostAccess{Loopback: Grant{Open: true}}},
		Limits:       Limits{Flows: 1000, PendingDials: pending, UDPSessions: 1},
		heldForPlace: heldForPlace,
	})
}

// TestSYNsWaitForTheirPlace: of many connections at once, more than are made at a time, none
// has to be asked for twice.
func TestSYNsWaitForTheirPlace(t *testing.T) {
	const pending, all = 8, 200
	port, _ := greeter(t, "127.0.0.1:0")
	g := burstGuest(t, pending, time.Minute)
	conns := make(map[uint16]*rawTCP)
	for i := range uint16(all) {
		c := &rawTCP{guest: g, from: netip.AddrPortFrom(ft.Guest4, 20000+i), to: netip.AddrPortFrom(ft.Gate4, port), seq: 1000}
		conns[c.from.Port()] = c
		c.put(header.TCPFlagSyn, 0, nil)
		c.seq++
	}
	greeted := 0
	g.until("greetings of all connections", func(f []byte) bool {
		seg := segmentOf(f)
		if seg == nil {
			return false
		}
		c := conns[seg.DestinationPort()]
		switch {
		case c == nil:
		case seg.Flags() == synAck:
			if held := g.stack.Stats().SYNsHeld; held > all-pending {
				t.Errorf("%d SYNs wait, want %d at the most", held, all-pending)
			}
			c.put(header.TCPFlagAck, seg.SequenceNumber()+1, nil)
		case string(seg.Payload()) == greeting:
			greeted++
			delete(conns, seg.DestinationPort())
		case seg.Flags().Contains(header.TCPFlagRst):
			t.Errorf("connection from port %d is reset", seg.DestinationPort())
			delete(conns, seg.DestinationPort())
		}
		return len(conns) == 0
	})
	if s := g.stack.Stats(); greeted != all || s.SYNsHeld != 0 || s.DialsRefused != 0 || s.DialsPaced != 0 || s.SYNsRefused != 0 {
		t.Errorf("%d of %d connections stand, %d SYNs wait, refused: %d, %d, %d", greeted, all, s.SYNsHeld, s.DialsRefused, s.DialsPaced, s.SYNsRefused)
	}
}

// TestSYNsWaitInVain: a SYN that gets no place is dropped after its time, and counted.
func TestSYNsWaitInVain(t *testing.T) {
	port, _ := greeter(t, "127.0.0.1:0")
	g := burstGuest(t, 1, time.Millisecond)
	for i := range uint16(2) {
		c := &rawTCP{guest: g, from: netip.AddrPortFrom(ft.Guest4, 20000+i), to: netip.AddrPortFrom(ft.Gate4, port), seq: 1000}
		c.put(header.TCPFlagSyn, 0, nil)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // between two looks
		if s := g.stack.Stats(); s.SYNsHeld == 0 && s.DialsRefused == 1 {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("%d SYNs wait, %d are refused; want 0, 1", s.SYNsHeld, s.DialsRefused)
		}
	}
}

// TestHeldSYNsAreBounded: more than may wait are dropped and counted, and nothing is left of
// the others when the stack closes.
func TestHeldSYNsAreBounded(t *testing.T) {
	const more = 500
	port, _ := greeter(t, "127.0.0.1:0")
	before := held(t)
	sub := &subTest{TB: t}
	g := burstGuest(sub, 1, time.Minute)
	for i := range uint16(1 + maxHeldSYNs + more) {
		c := &rawTCP{guest: g, from: netip.AddrPortFrom(ft.Guest4, 20000+i), to: netip.AddrPortFrom(ft.Gate4, port), seq: 1000}
		c.put(header.TCPFlagSyn, 0, nil)
	}
	g.settle()
	// On a slow machine the first has been asked twice by now, and made room.
	if s := g.stack.Stats(); s.SYNsHeld > maxHeldSYNs || s.SYNsRefused == 0 || s.SYNsHeld+int64(s.SYNsRefused) < maxHeldSYNs+more-10 {
		t.Errorf("%d SYNs wait, %d are refused; want %d, %d", s.SYNsHeld, s.SYNsRefused, maxHeldSYNs, more)
	}
	sub.cleanup()
	returnsTo(t, before)
}

// TestBurst: a kernel's connections, thousands at once, all carry their bytes.
func TestBurst(t *testing.T) {
	const n = 2000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Max < 6*n {
		t.Skipf("at most %d open files, %d are needed: ulimit -Hn; %v", limit.Max, 6*n, err)
	}
	g := newKernelGuest(t, tap.Auto, HostAccess{Loopback: Grant{Open: true}})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serve(l)
	dst := netip.AddrPortFrom(DefaultNetwork().Gateway4(), netip.MustParseAddrPort(l.Addr().String()).Port())
	sockets := make([]*os.File, n)
	for i := range sockets {
		sockets[i] = g.socket(dst.Addr())
		defer sockets[i].Close()
	}
	errs := make(chan error, n)
	for _, sock := range sockets {
		go func() { errs <- burstTalk(t, sock, dst) }()
	}
	lost := make(map[string]int)
	for range n {
		if err := <-errs; err != nil {
			lost[err.Error()]++
		}
	}
	if len(lost) > 0 {
		t.Errorf("connections lost: %v", lost)
	}
}

// burstTalk connects a socket of the guest and has a byte back.
func burstTalk(t *testing.T, sock *os.File, dst netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := connect(ctx, sock, netip.AddrPortFrom(DefaultNetwork().Guest4(), 0), dst); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := sock.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	b := []byte{acceptorCloses}
	if _, err := sock.Write(b); err != nil {
		return errors.Unwrap(err)
	}
	if _, err := io.ReadFull(sock, b); err != nil {
		return errors.Unwrap(err)
	}
	return nil
}
