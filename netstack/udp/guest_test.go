package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/internal/frametest"
	"slipway/netstack/tap"
)

const (
	patience = 10 * time.Second
	allUSO   = tap.Offload(unix.TUN_F_CSUM | unix.TUN_F_USO4 | unix.TUN_F_USO6)
)

var (
	gatewayMAC = net.HardwareAddr{0x52, 0x55, 0x0a, 0, 2, 2}
	guestMAC   = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}

	guest4   = netip.MustParseAddr("10.0.2.100")
	guest6   = netip.MustParseAddr("fd00::100")
	gateway4 = netip.MustParseAddr("10.0.2.2")
	gateway6 = netip.MustParseAddr("fd00::2")
	prefixes = []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fd00::/64")}

	errDenied = errors.New("denied by the test's policy")
)

// udpFrame builds a frame of the guest with right checksums.
func udpFrame(src, dst netip.AddrPort, payload []byte) []byte {
	u := binary.BigEndian.AppendUint16(nil, src.Port())
	u = binary.BigEndian.AppendUint16(u, dst.Port())
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(payload)))
	u = append(u, 0, 0)
	u = append(u, payload...)
	sum := ^frametest.Sum(frametest.Pseudo(src.Addr(), dst.Addr(), 17, len(u)), u)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(u[6:], sum)
	return ipFrame(src.Addr(), dst.Addr(), 17, u)
}

func ipFrame(src, dst netip.Addr, proto uint8, payload []byte) []byte {
	f := append(append([]byte{}, gatewayMAC...), guestMAC...)
	if src.Is4() {
		f = append(f, 0x08, 0, 0x45, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(20+len(payload)))
		f = append(f, 0x12, 0x34, 0x40, 0, 64, proto, 0, 0)
		f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
		fixIPv4(f)
	} else {
		f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(len(payload)))
		f = append(f, proto, 64)
		f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	}
	return append(f, payload...)
}

// fixIPv4 makes the header checksum right again after a change.
func fixIPv4(f []byte) []byte {
	f[24], f[25] = 0, 0
	binary.BigEndian.PutUint16(f[24:], ^frametest.Sum(f[14:34]))
	return f
}

// written is a frame that the NAT wrote.
type written struct {
	h     tap.Header
	frame []byte
}

// fakeGuest takes frames in the device's place.
type fakeGuest struct {
	frames chan written
	fail   atomic.Bool
}

func newGuest() *fakeGuest { return &fakeGuest{frames: make(chan written, 4096)} }

func (g *fakeGuest) write(h tap.Header, frame [][]byte) error {
	if g.fail.Load() {
		return unix.EIO
	}
	select {
	case g.frames <- written{h, bytes.Join(frame, nil)}:
		return nil
	default:
		return unix.ENOBUFS
	}
}

func (g *fakeGuest) next(t *testing.T) written {
	t.Helper()
	select {
	case w := <-g.frames:
		return w
	case <-time.After(patience):
		t.Fatal("no frame came to the guest")
		return written{}
	}
}

func (g *fakeGuest) none(t *testing.T) {
	t.Helper()
	select {
	case w := <-g.frames:
		t.Fatalf("unexpected frame % x", w.frame)
	default:
	}
}

// delivered is what the guest's kernel would hand to applications.
type delivered struct {
	Src, Dst netip.AddrPort
	Payload  []byte
}

// open reads a UDP frame as the guest's kernel would: it completes or verifies the
// checksum, and cuts runs.
func (w written) open(t *testing.T) []delivered {
	t.Helper()
	f := w.frame
	if !bytes.Equal(f[:6], guestMAC) || !bytes.Equal(f[6:12], gatewayMAC) {
		t.Fatalf("frame from % x to % x", f[6:12], f[:6])
	}
	var src, dst netip.Addr
	var u []byte
	var proto byte
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		if s := frametest.Sum(f[14:34]); s != 0xffff {
			t.Fatalf("IPv4 header sums to %#x", s)
		}
		if n := int(binary.BigEndian.Uint16(f[16:])); n != len(f)-14 {
			t.Fatalf("total length %d in a packet of %d bytes", n, len(f)-14)
		}
		src, dst, proto, u = netip.AddrFrom4([4]byte(f[26:30])), netip.AddrFrom4([4]byte(f[30:34])), f[23], f[34:]
	case 0x86dd:
		if n := int(binary.BigEndian.Uint16(f[18:])); n != len(f)-54 {
			t.Fatalf("payload length %d in a packet of %d bytes", n, len(f)-14)
		}
		src, dst, proto, u = netip.AddrFrom16([16]byte(f[22:38])), netip.AddrFrom16([16]byte(f[38:54])), f[20], f[54:]
	default:
		t.Fatalf("frame of type % x", f[12:14])
	}
	if proto != 17 {
		t.Fatalf("protocol %d, want UDP", proto)
	}
	if n := int(binary.BigEndian.Uint16(u[4:])); n != len(u) {
		t.Fatalf("UDP length %d of %d bytes", n, len(u))
	}
	ps := frametest.Pseudo(src, dst, 17, len(u))
	if w.h.Flags&tap.FlagNeedsCsum != 0 {
		if at := int(w.h.CsumStart); at != len(f)-len(u) || w.h.CsumOffset != 6 {
			t.Fatalf("checksum at %d+%d, UDP header at %d", w.h.CsumStart, w.h.CsumOffset, len(f)-len(u))
		}
		if got, want := binary.BigEndian.Uint16(u[6:]), frametest.Sum(ps); got != want {
			t.Fatalf("sum of the pseudo-header %#x, want %#x", got, want)
		}
	} else if s := frametest.Sum(ps, u); s != 0xffff {
		t.Fatalf("UDP sums to %#x", s)
	}
	size := max(len(u)-8, 1)
	if w.h.GSOType == tap.GSOUDPL4 {
		size = int(w.h.GSOSize)
		if int(w.h.HdrLen) != len(f)-len(u)+8 {
			t.Fatalf("header length %d, want %d", w.h.HdrLen, len(f)-len(u)+8)
		}
	}
	from := netip.AddrPortFrom(src, binary.BigEndian.Uint16(u))
	to := netip.AddrPortFrom(dst, binary.BigEndian.Uint16(u[2:]))
	var all []delivered
	for p := u[8:]; ; {
		b := p[:min(size, len(p))]
		all = append(all, delivered{from, to, b})
		if p = p[len(b):]; len(p) == 0 {
			return all
		}
	}
}

// toLoopback maps the gateway to the host's loopback and 198.51.100.0/24 to nowhere,
// and lets 127.0.0.0/8 through as it is. Everything else is denied.
func toLoopback(dst netip.AddrPort) (netip.AddrPort, error) {
	switch a := dst.Addr(); {
	case a == gateway4:
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), dst.Port()), nil
	case a == gateway6:
		return netip.AddrPortFrom(netip.IPv6Loopback(), dst.Port()), nil
	case a.Is4() && a.As4()[0] == 127:
		return dst, nil
	case netip.MustParsePrefix("198.51.100.0/24").Contains(a):
		return netip.AddrPort{}, unix.EHOSTUNREACH
	}
	return netip.AddrPort{}, errDenied
}

func testConfig(g *fakeGuest) Config {
	return Config{
		Write: g.write, Route: toLoopback, GatewayMAC: gatewayMAC, GuestMAC: guestMAC,
		Gateway4: gateway4, Gateway6: gateway6, Prefixes: prefixes, MTU: 1500, Offload: allUSO,
	}
}

func newNAT(t testing.TB, cfg Config) *NAT {
	t.Helper()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// in gives frames to the NAT as the RX loop does, and parks.
func in(t testing.TB, n *NAT, frames ...[]byte) {
	t.Helper()
	for _, f := range frames {
		if !n.Input(tap.Header{}, f) {
			t.Fatal("the frame was not taken")
		}
	}
	n.Flush()
}

// hostSocket is a socket of a server or a client on the host.
func hostSocket(t testing.TB, addr string) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skipf("no IPv6 here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return c, netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func read(t testing.TB, c *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	b := make([]byte, 65536)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func writeTo(t testing.TB, c *net.UDPConn, b []byte, to netip.AddrPort) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort(b, to); err != nil {
		t.Fatal(err)
	}
}

// eventually polls what has no event.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
