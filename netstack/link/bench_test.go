package link

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	ft "slipway/netstack/internal/frametest"
	"slipway/netstack/internal/neighbour"
	"slipway/netstack/tap"
)

// taker is a Handler and a dispatcher that tells of each frame it is given.
type taker struct {
	passOn bool // as a Handler it takes none
	came   chan int
}

func (k *taker) tell(n int) {
	select {
	case k.came <- n:
	default:
	}
}

func (k *taker) Input(_ tap.Header, frame []byte) bool {
	if !k.passOn {
		k.tell(len(frame))
	}
	return !k.passOn
}

func (k *taker) Flush() {}

func (k *taker) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	k.tell(pkt.Size())
}

func (k *taker) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// testLink is an Endpoint on a real TAP device.
type testLink struct {
	*Endpoint
	taker *taker
	guest int // a UDP socket of the guest, connected to the gateway
}

// newLink makes the device in a network namespace of its own, in which the calling thread
// stays.
func newLink(tb testing.TB, mode tap.Mode) *testLink {
	tb.Helper()
	runtime.LockOSThread() // for good: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Skipf("no network namespace for the test: %v", err)
	}
	node, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		tb.Skipf("no /dev/net/tun here: %v", err)
	}
	device, err := tap.Attach(node, "tap0", mode)
	if err != nil {
		tb.Skipf("no TAP device for the test: %v", err)
	}
	if mode == tap.Auto && !device.Offload().Has(tap.CSum) {
		device.Close()
		tb.Skipf("no offloads here: %s", device.Reason())
	}
	w := &testLink{taker: &taker{came: make(chan int, 1)}}
	mac := net.HardwareAddr{0x52, 0x55, 0x0a, 0, 2, 2}
	w.Endpoint = New(Config{
		Device: device, MTU: 1500, MAC: mac, Guard: testGuard(),
		Neighbours: neighbour.New([6]byte([]byte(ft.GuestMAC))), Handlers: []Handler{w.taker},
	})
	w.Attach(w.taker)
	tb.Cleanup(func() { w.Attach(nil) })

	done := func(what string, err error) {
		tb.Helper()
		if err != nil {
			tb.Fatalf("%s: %v", what, err)
		}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	done("netlink", err)
	defer h.Close()
	l, err := h.LinkByName("tap0")
	done("find link", err)
	a, err := netlink.ParseAddr(netip.PrefixFrom(ft.Guest4, 24).String())
	done("parse address", err)
	done("add address", h.AddrAdd(l, a))
	done("set link up", h.LinkSetUp(l))
	done("add neighbour", h.NeighSet(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ft.Gate4.AsSlice(), HardwareAddr: mac,
	}))
	w.guest, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	done("socket", err)
	tb.Cleanup(func() { unix.Close(w.guest) })
	done("connect", unix.Connect(w.guest, &unix.SockaddrInet4{Addr: ft.Gate4.As4(), Port: 9}))
	return w
}

// from sends a datagram of the guest and waits until it has come.
func (w *testLink) from(tb testing.TB, payload []byte) {
	if _, err := unix.Write(w.guest, payload); err != nil {
		tb.Fatal(err)
	}
	const headers = header.IPv4MinimumSize + header.UDPMinimumSize
	// The kernel of the guest also speaks by itself, of multicast.
	for {
		switch n := <-w.taker.came; n - headers - len(payload) {
		case 0, header.EthernetMinimumSize:
			return
		}
	}
}

// to sends the guest a frame in three pieces.
func (w *testLink) to(tb testing.TB, pieces [][]byte) {
	if err := w.WriteFrame(tap.Header{}, pieces); err != nil {
		tb.Fatal(err)
	}
}

// toGuest is a frame for the guest, in three pieces.
func toGuest(payload string) [][]byte {
	f := ft.Datagram(netip.AddrPortFrom(ft.Gate4, 9), netip.AddrPortFrom(ft.Guest4, 4000), payload)
	copy(f, ft.GuestMAC)
	return [][]byte{f[:14], f[14:42], f[42:]}
}

// packet is one of gVisor for the guest, as the link layer gets it.
func (w *testLink) packet() stack.PacketBufferList {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.EthernetMinimumSize,
		Payload:            buffer.MakeWithData(ft.IP(header.TCPProtocolNumber, ft.Gate4, ft.Guest4, make([]byte, 1400))),
	})
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	w.AddHeader(pkt)
	var l stack.PacketBufferList
	l.PushBack(pkt)
	return l
}

// allOf runs f for each way over the link, a frame a call.
func (w *testLink) allOf(tb testing.TB, f func(name string, run func())) {
	payload, pieces, packets := make([]byte, 1400), toGuest(string(make([]byte, 1400))), w.packet()
	defer packets.Reset()
	f("from the guest to a handler", func() { w.from(tb, payload) })
	f("to the guest", func() { w.to(tb, pieces) })
	f("to the guest from gVisor", func() {
		if _, err := w.WritePackets(packets); err != nil {
			tb.Fatal(err)
		}
	})
}

var modes = map[string]tap.Mode{"offloads": tap.Auto, "plain": tap.Off}

func BenchmarkLink(b *testing.B) {
	for name, mode := range modes {
		b.Run(name, func(b *testing.B) {
			w := newLink(b, mode)
			w.allOf(b, func(name string, run func()) {
				b.Run(name, func(b *testing.B) {
					b.SetBytes(1400)
					b.ReportAllocs()
					for b.Loop() {
						run()
					}
				})
			})
		})
	}
}

// delivery hands gVisor frames of a stream, as the receive loop does.
type delivery struct {
	e     *Endpoint
	taker *taker
	lent  loans
	big   *buffer.View
	frame []byte
}

func newDelivery(tb testing.TB, size int) *delivery {
	d := &delivery{taker: &taker{passOn: true, came: make(chan int, 1)}, frame: segment(ft.Guest4, ft.World4, string(bytes.Repeat([]byte{7}, size)))}
	d.e = New(Config{MTU: 1500, MAC: net.HardwareAddr{0x52, 0x55, 0x0a, 0, 2, 2}, Guard: testGuard(), Neighbours: neighbour.New([6]byte([]byte(ft.GuestMAC)))})
	d.big = d.lent.next()
	tb.Cleanup(d.lent.release)
	return d
}

func (d *delivery) run() {
	held := copy(d.big.AsSlice(), d.frame)
	if d.e.deliver(d.taker, tap.Header{Flags: tap.FlagNeedsCsum}, d.big.AsSlice()[:held:held], nil, d.big) {
		d.big = d.lent.next()
	}
	<-d.taker.came
}

// streamFrames are payloads in bytes: an ACK, a packet, and a segment as large as one gets.
var streamFrames = []int{0, 1448, 65535 - header.IPv4MinimumSize - header.TCPMinimumSize - header.EthernetMinimumSize}

func BenchmarkDeliver(b *testing.B) {
	for _, size := range streamFrames {
		b.Run(fmt.Sprintf("%d bytes", size), func(b *testing.B) {
			d := newDelivery(b, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				d.run()
			}
		})
	}
}
