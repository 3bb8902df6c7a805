package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"slipway/netstack/internal/neighbour"
	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"

	"golang.org/x/sys/unix"
)

const (
	// bigFrame is one buffer of gVisor's largest pool.
	bigFrame = 64 << 10
	// copyBelow is the frame length in bytes up to which a frame is copied into a
	// buffer of its own size: gVisor accounts the bytes of a segment and not the
	// buffer behind it, so a small frame must not pin 64 KiB.
	copyBelow = 32 << 10
	// maxFrame is the largest frame in bytes: an IPv6 packet without a jumbo payload.
	maxFrame = header.EthernetMinimumSize + header.IPv6MinimumSize + 65535
	// smallRun is after how many frames in a row that are copied the next is not expected to be lent
	// to gVisor.
	smallRun = 16
	// turnBelow is the frame length in bytes up to which the receive loop does gVisor's work
	// itself.
	turnBelow = 4 << 10
	// flushEvery bounds how many frames a handler may hold back while more are
	// waiting.
	flushEvery = 64
	// maxReadErrors in a row end the receive loop: a device whose every read fails
	// must not cost a core.
	maxReadErrors = 100
	// gsoMax is the most that the kernel takes as one segment: the IPv4 total
	// length is 16 bits.
	gsoMax = 65535
)

// Handler is a path that takes frames past gVisor.
type Handler interface {
	// Input looks at one Ethernet frame from the guest and reports whether it
	// took it. frame is valid during the call only.
	Input(h tap.Header, frame []byte) bool
	// Flush is called when no frame is waiting, before the loop parks.
	Flush()
}

// Config describes an Endpoint.
type Config struct {
	// Device is the TAP. The Endpoint owns it.
	Device *tap.Device
	// MTU of the link in bytes, without the Ethernet header.
	MTU int
	// MAC is the gateway's address, the source of every frame to the guest.
	MAC net.HardwareAddr
	// Guard decides which frames of the guest are looked at.
	Guard Guard
	// Neighbours is told where the senders of those frames are, and tells where packets
	// to the guest go.
	Neighbours *neighbour.Table
	// Handlers are asked in order before gVisor.
	Handlers []Handler
	// Stack is where segments go, of which the interface has the number NIC; nil: whoever
	// is attached does all of its work itself.
	Stack *stack.Stack
	NIC   tcpip.NICID
	// Turn hears of the segments that the receive loop does gVisor's work for.
	Turn Turn
	// Handshakes tells which segments finish a handshake; nil: gVisor does.
	Handshakes Handshakes
	// Memory is asked before gVisor gets payload of TCP to queue; nil: it gets all.
	Memory Memory
}

// Memory bounds what gVisor may queue.
type Memory interface {
	// Take notes so many bytes more. False: they are to be dropped.
	Take(bytes int) bool
}

// Endpoint implements [stack.LinkEndpoint] and [stack.GSOEndpoint].
type Endpoint struct {
	cfg     Config
	dev     *tap.Device
	mac     [6]byte
	stats   counters
	queue   *Queue
	writers sync.Pool
	looks   looks

	stopping   atomic.Bool  // tells the receive loop to end
	mu         sync.RWMutex // guards dispatcher and done
	dispatcher stack.NetworkDispatcher
	done       chan struct{} // closed when the receive loop has ended; nil before Attach
}

var (
	_ stack.LinkEndpoint = (*Endpoint)(nil)
	_ stack.GSOEndpoint  = (*Endpoint)(nil)
)

// New returns an endpoint over cfg.Device. Frames are read from Attach on.
func New(cfg Config) *Endpoint {
	return &Endpoint{
		cfg:     cfg,
		dev:     cfg.Device,
		mac:     [6]byte(cfg.MAC),
		writers: sync.Pool{New: func() any { return new(tap.Writer) }},
	}
}

// Queue makes the queueing discipline of the endpoint's interface, which closes it. A
// Config with a Stack needs it before Attach.
func (e *Endpoint) Queue() *Queue {
	e.queue = newQueue(e)
	return e.queue
}

// MTU implements stack.NetworkLinkEndpoint.
func (e *Endpoint) MTU() uint32 { return uint32(e.cfg.MTU) }

// SetMTU implements stack.NetworkLinkEndpoint. The MTU is fixed when the network
// is made.
func (e *Endpoint) SetMTU(uint32) {}

// MaxHeaderLength implements stack.NetworkLinkEndpoint.
func (e *Endpoint) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// LinkAddress implements stack.NetworkLinkEndpoint.
func (e *Endpoint) LinkAddress() tcpip.LinkAddress { return tcpip.LinkAddress(e.cfg.MAC) }

// SetLinkAddress implements stack.NetworkLinkEndpoint. The address is fixed.
func (e *Endpoint) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.NetworkLinkEndpoint. Received checksums are
// settled before gVisor sees a frame, by the kernel or by the guard; those of TCP in
// fragments, which only a guest makes that wants to, are nobody's concern. And gVisor need
// not ask where a neighbour is, AddHeader knows.
func (e *Endpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// GSOMaxSize implements stack.GSOEndpoint.
func (e *Endpoint) GSOMaxSize() uint32 { return gsoMax }

// SupportedGSO implements stack.GSOEndpoint. gVisor knows one answer for both IP
// versions, so both must have the offload.
func (e *Endpoint) SupportedGSO() stack.SupportedGSO {
	if e.dev.Offload().Has(tap.CSum | tap.TSO4 | tap.TSO6) {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

// ARPHardwareType implements stack.NetworkLinkEndpoint.
func (e *Endpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// AddHeader implements stack.NetworkLinkEndpoint.
func (e *Endpoint) AddHeader(pkt *stack.PacketBuffer) {
	claim(pkt)
	eth := pkt.LinkHeader().Push(header.EthernetMinimumSize)
	wire.PutEthernet(eth, e.destination(pkt), e.mac, uint16(pkt.NetworkProtocolNumber))
}

// destination is the Ethernet address that pkt goes to: the one that gVisor names in an
// answer to a request (ARP, neighbour discovery), or else where its IP destination is.
func (e *Endpoint) destination(pkt *stack.PacketBuffer) [6]byte {
	if to := pkt.EgressRoute.RemoteLinkAddress; len(to) == 6 {
		return [6]byte([]byte(to))
	}
	b := pkt.NetworkHeader().Slice()
	switch {
	case pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber && len(b) >= header.IPv4MinimumSize:
		return e.cfg.Neighbours.At(netip.AddrFrom4([4]byte(b[16:20])))
	case pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber && len(b) >= header.IPv6MinimumSize:
		if b[24] == 0xff { // multicast: RFC 2464 section 7
			return [6]byte{0x33, 0x33, b[36], b[37], b[38], b[39]}
		}
		return e.cfg.Neighbours.At(netip.AddrFrom16([16]byte(b[24:40])))
	}
	return [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
}

// ParseHeader implements stack.NetworkLinkEndpoint.
func (e *Endpoint) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// SetOnCloseAction implements stack.NetworkLinkEndpoint. Nobody closes the
// endpoint but its owner.
func (e *Endpoint) SetOnCloseAction(func()) {}

// IsAttached implements stack.NetworkLinkEndpoint.
func (e *Endpoint) IsAttached() bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.dispatcher != nil
}

// Attach implements stack.NetworkLinkEndpoint: with a dispatcher it starts the
// receive loop. With nil it does not wait for that to end: the stack detaches under its
// own lock, and a frame on its way up may want that one.
func (e *Endpoint) Attach(d stack.NetworkDispatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dispatcher = d
	if d != nil && e.done == nil {
		e.done = make(chan struct{})
		go e.receive(d, e.done)
	}
}

// Close implements stack.NetworkLinkEndpoint. It ends the receive loop, and closes
// the device after it; nobody may send any more. The stack calls it when it has removed
// the interface.
func (e *Endpoint) Close() {
	e.stopping.Store(true)
	// A deadline in the past wakes a loop that is parked. The only error of both
	// calls is that the device is closed already.
	_ = e.dev.File().SetReadDeadline(time.Unix(1, 0))
	e.Wait()
	_ = e.dev.Close()
}

// Wait implements stack.NetworkLinkEndpoint.
func (e *Endpoint) Wait() {
	e.mu.RLock()
	done := e.done
	e.mu.RUnlock()
	if done != nil {
		<-done
	}
}

// receive is the life of the receive loop.
func (e *Endpoint) receive(d stack.NetworkDispatcher, done chan struct{}) {
	defer close(done)
	r, err := tap.NewReader(e.dev)
	if err != nil {
		return // closed before the first frame
	}
	var rest [256]byte // a frame of 64 KiB and its Ethernet header overflows the big buffer
	var lent loans
	defer lent.release()
	big := lent.next()
	flat := make([]byte, tap.HeaderLen+maxFrame)
	small := 0 // frames in a row
	sinceFlush := 0
	for failed := 0; failed < maxReadErrors && !e.stopping.Load(); {
		var h tap.Header
		var frame []byte
		var n int
		var err error
		view := big
		e.looks.begin()
		if small >= smallRun {
			view = nil
			h, frame, err = r.TryReadFlat(flat)
			n = len(frame)
		} else {
			h, n, err = r.TryRead(big.AsSlice(), rest[:])
		}
		idle := errors.Is(err, unix.EAGAIN)
		if idle {
			e.looks.empty()
		}
		if sinceFlush++; idle || sinceFlush == flushEvery {
			sinceFlush = 0
			for _, p := range e.cfg.Handlers {
				p.Flush()
			}
		}
		if idle {
			view = big
			h, n, err = r.Read(big.AsSlice(), rest[:])
		}
		switch {
		case err == nil:
		case errors.Is(err, tap.ErrHeader):
			e.stats.rxBadHeader.Add(1)
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue // stopping
		case errors.Is(err, unix.EBADFD), errors.Is(err, os.ErrClosed):
			return // EBADFD: the device was deleted from inside the namespace
		default:
			e.stats.rxErrors.Add(1)
			failed++
			continue
		}
		failed = 0
		if small++; n > copyBelow {
			small = 0
		}
		if view != nil {
			// Nobody reads on into what an earlier frame left behind this one.
			held := min(n, bigFrame)
			frame = view.AsSlice()[:held:held]
		}
		if e.deliver(d, h, frame, rest[:n-len(frame)], view) {
			big = lent.next()
		}
	}
}

// deliver passes on a frame, and what of it lies in rest. view is where frame lies, nil when it must be
// copied. deliver reports whether gVisor holds view from now on.
func (e *Endpoint) deliver(d stack.NetworkDispatcher, h tap.Header, frame, rest []byte, view *buffer.View) (lent bool) {
	n := len(frame) + len(rest)
	e.stats.rxPackets.Add(1)
	e.stats.rxBytes.Add(uint64(n))
	if reason := e.cfg.Guard.check(h, frame, n); reason != pass {
		e.stats.rxDropped[reason].Add(1)
		return false
	}
	if from, ok := e.cfg.Guard.sender(frame); ok {
		e.cfg.Neighbours.Learn(from, [6]byte(frame[6:12]))
	}
	if len(rest) == 0 {
		for _, p := range e.cfg.Handlers {
			if p.Input(h, frame) {
				return false
			}
		}
	}
	if h.GSOType&^tap.GSOECN == tap.GSOUDPL4 {
		// Many datagrams behind one header would look like one to gVisor.
		e.stats.rxDropped[badLength].Add(1)
		return false
	}
	// gVisor's IP layer holds a reference to the network header while it reads on, and
	// what has two references is copied before the next look at it
	// (buffer.Buffer.PullUp). So the headers lie apart from the data.
	heads, segment, fragment := headers(frame)
	if fragment {
		e.stats.rxFragments.Add(1)
	}
	var ep *tcp.Endpoint
	if n <= turnBelow || e.handshaking() {
		ep = e.endpoint(frame, segment)
	}
	if ep != nil && ep.EndpointState() == tcp.StateSynRecv && !e.finishes(frame, segment) {
		e.reset(frame, segment)
		return false
	}
	if n > heads && segment != 0 && e.cfg.Memory != nil && !e.cfg.Memory.Take(n-heads) {
		e.stats.rxDropped[noMemory].Add(1)
		return false
	}
	payload := buffer.MakeWithData(frame[:heads])
	switch {
	case n == heads:
	case n <= copyBelow, view == nil:
		_ = payload.Append(buffer.NewViewWithData(frame[heads:]))
	default:
		data := view.Clone()
		data.CapLength(len(frame))
		data.TrimFront(heads)
		_ = payload.Append(data)
		if len(rest) > 0 {
			_ = payload.Append(buffer.NewViewWithData(rest))
		}
		lent = true
	}
	if ep != nil && n <= turnBelow {
		e.take(d, ep, payload)
	} else {
		dispatch(d, payload)
	}
	return lent
}

// headers of a frame that the guard has passed: their length in bytes, Ethernet, IP and
// TCP, or of all of it where it is anything else than TCP in one piece; where the TCP
// header begins, 0 where there is none of a whole packet; and whether the frame is a
// fragment of an IP packet. In IPv6 the fragment header is the first that the kernel sends
// (RFC 8200 section 4.1).
func headers(frame []byte) (length, segment int, fragment bool) {
	if len(frame) < header.EthernetMinimumSize+header.IPv4MinimumSize {
		return len(frame), 0, false
	}
	l := header.EthernetMinimumSize
	var proto tcpip.TransportProtocolNumber
	switch b := frame[l:]; binary.BigEndian.Uint16(frame[12:]) {
	case uint16(header.IPv4ProtocolNumber):
		ip := header.IPv4(b)
		if ip.More() || ip.FragmentOffset() != 0 {
			return len(frame), 0, true
		}
		proto = ip.TransportProtocol()
		l += int(ip.HeaderLength())
	case uint16(header.IPv6ProtocolNumber):
		if len(b) < header.IPv6MinimumSize {
			return len(frame), 0, false
		}
		next := header.IPv6(b).NextHeader()
		if next == uint8(header.IPv6FragmentExtHdrIdentifier) {
			return len(frame), 0, true
		}
		proto = tcpip.TransportProtocolNumber(next)
		l += header.IPv6MinimumSize
	}
	if proto != header.TCPProtocolNumber || len(frame) < l+header.TCPMinimumSize {
		return len(frame), 0, false
	}
	return min(l+int(header.TCP(frame[l:]).DataOffset()), len(frame)), l, false
}

// dispatch hands a whole Ethernet frame to gVisor.
func dispatch(d stack.NetworkDispatcher, frame buffer.Buffer) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: frame})
	defer pkt.DecRef()
	if hdr, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize); ok {
		pkt.NetworkProtocolNumber = header.Ethernet(hdr).Type()
		d.DeliverNetworkPacket(pkt.NetworkProtocolNumber, pkt)
	}
}

// Deliver hands gVisor a frame of the guest that a handler took earlier. The frame
// is not kept.
func (e *Endpoint) Deliver(frame []byte) {
	e.mu.RLock()
	d := e.dispatcher
	e.mu.RUnlock()
	if d != nil {
		dispatch(d, buffer.MakeWithData(frame))
	}
}

// WritePackets implements stack.LinkWriter. It keeps no packet.
func (e *Endpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	w := e.writers.Get().(*tap.Writer)
	defer e.writers.Put(w)
	for i, pkt := range pkts.AsSlice() {
		if err := e.writePacket(w, pkt); err != nil {
			e.stats.txError(err)
			if i == 0 && pkts.Len() == 1 {
				return 0, &tcpip.ErrNoBufferSpace{}
			}
		}
	}
	return pkts.Len(), nil
}

// writeOne is WritePackets of one packet.
func (e *Endpoint) writeOne(pkt *stack.PacketBuffer) tcpip.Error {
	w := e.writers.Get().(*tap.Writer)
	defer e.writers.Put(w)
	if err := e.writePacket(w, pkt); err != nil {
		e.stats.txError(err)
		return &tcpip.ErrNoBufferSpace{}
	}
	return nil
}

func (e *Endpoint) writePacket(w *tap.Writer, pkt *stack.PacketBuffer) error {
	w.Reset(gsoHeader(pkt))
	views, skip := pkt.AsViewList()
	size := 0
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b = b[skip:]
		skip = 0
		size += len(b)
		w.Append(b)
	}
	offer := e.offers(pkt)
	if err := w.WriteTo(e.dev); err != nil {
		return err
	}
	if offer {
		e.cfg.Handshakes.Offered(sentID(pkt))
	}
	e.stats.txPackets.Add(1)
	e.stats.txBytes.Add(uint64(size))
	return nil
}

// gsoHeader says what gVisor left to the kernel. gVisor wrote the pseudo-header's
// sum into the checksum field of a packet with GSO options, and the whole sum
// into every other.
func gsoHeader(pkt *stack.PacketBuffer) tap.Header {
	g := pkt.GSOOptions
	if g.Type == stack.GSONone || !g.NeedsCsum {
		return tap.Header{}
	}
	h := tap.Header{
		Flags:      tap.FlagNeedsCsum,
		CsumStart:  header.EthernetMinimumSize + g.L3HdrLen,
		CsumOffset: g.CsumOffset,
	}
	if pkt.Data().Size() <= int(g.MSS) {
		return h
	}
	h.GSOType = tap.GSOTCPv4
	if g.Type == stack.GSOTCPv6 {
		h.GSOType = tap.GSOTCPv6
	}
	h.GSOSize = g.MSS
	h.HdrLen = uint16(pkt.HeaderSize())
	return h
}

// WriteFrame sends one whole Ethernet frame, in pieces, to the guest. It is for
// the paths past gVisor. The pieces are not kept.
func (e *Endpoint) WriteFrame(h tap.Header, pieces [][]byte) error {
	w := e.writers.Get().(*tap.Writer)
	defer e.writers.Put(w)
	w.Reset(h)
	size := 0
	for _, b := range pieces {
		size += len(b)
		w.Append(b)
	}
	if err := w.WriteTo(e.dev); err != nil {
		e.stats.txError(err)
		return fmt.Errorf("write frame of %d bytes: %w", size, err)
	}
	e.stats.txPackets.Add(1)
	e.stats.txBytes.Add(uint64(size))
	return nil
}
