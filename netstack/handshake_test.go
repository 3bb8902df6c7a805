package netstack

import (
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	ft "slipway/netstack/internal/frametest"
	"slipway/netstack/link"
	"slipway/netstack/relay"
	"slipway/netstack/tap"
)

// rawTCP is a connection of a guest that makes its segments itself.
type rawTCP struct {
	*guest
	from, to netip.AddrPort
	seq      uint32 // of the next segment
}

const greeting = "the host's bytes"

// greeter is a server of the host that speaks first. Closed gets a value for every
// connection that has ended.
func greeter(t *testing.T, addr string) (port uint16, closed chan struct{}) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("nothing listens at %s: %v", addr, err)
	}
	t.Cleanup(func() { l.Close() })
	closed = make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, greeting)
				_, _ = io.Copy(io.Discard, c)
				closed <- struct{}{}
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String()).Port(), closed
}

func (c *rawTCP) segment(flags header.TCPFlags, ack uint32, payload []byte) []byte {
	b := make(header.TCP, header.TCPMinimumSize, header.TCPMinimumSize+len(payload))
	b.Encode(&header.TCPFields{
		SrcPort: c.from.Port(), DstPort: c.to.Port(), SeqNum: c.seq, AckNum: ack,
		DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 65535,
	})
	b = append(b, payload...)
	a := fullAddress(c.from).Addr
	pseudo := header.PseudoHeaderChecksum(header.TCPProtocolNumber, a, fullAddress(c.to).Addr, uint16(len(b)))
	b.SetChecksum(^checksum.Checksum(b, pseudo))
	return b
}

func (c *rawTCP) put(flags header.TCPFlags, ack uint32, payload []byte) {
	c.t.Helper()
	c.send(tap.Header{Flags: tap.FlagDataValid}, ft.Frame(header.TCPProtocolNumber, c.from.Addr(), c.to.Addr(), c.segment(flags, ack, payload)))
}

// heard is the next segment of the connection, of those that want likes.
func (c *rawTCP) heard(what string, want func(header.TCP) bool) header.TCP {
	c.t.Helper()
	var found header.TCP
	c.until(what, func(f []byte) bool {
		seg := segmentOf(f)
		if seg == nil || seg.SourcePort() != c.to.Port() || seg.DestinationPort() != c.from.Port() || !want(seg) {
			return false
		}
		found = append(header.TCP(nil), seg...)
		return true
	})
	return found
}

// segmentOf is the TCP segment of a frame, nil where there is none.
func segmentOf(f []byte) header.TCP {
	if len(f) < header.EthernetMinimumSize+header.IPv4MinimumSize {
		return nil
	}
	switch b := f[header.EthernetMinimumSize:]; header.Ethernet(f).Type() {
	case header.IPv4ProtocolNumber:
		if ip := header.IPv4(b); ip.TransportProtocol() == header.TCPProtocolNumber {
			return header.TCP(ip.Payload())
		}
	case header.IPv6ProtocolNumber:
		if ip := header.IPv6(b); ip.NextHeader() == uint8(header.TCPProtocolNumber) {
			return header.TCP(ip.Payload())
		}
	}
	return nil
}

func flagged(flags header.TCPFlags) func(header.TCP) bool {
	return func(seg header.TCP) bool { return seg.Flags() == flags }
}

// silence checks that nothing of the connection has come but what may.
func (c *rawTCP) silence(may ...header.TCPFlags) {
	c.t.Helper()
	c.send(tap.Header{}, ft.ARP(header.ARPRequest, ft.Gate4))
	c.until("an ARP reply", func(f []byte) bool {
		if seg := segmentOf(f); seg != nil {
			if len(seg.Payload()) > 0 || !slices.Contains(may, seg.Flags()) {
				c.t.Errorf("a segment with flags %v and %d bytes", seg.Flags(), len(seg.Payload()))
			}
		}
		return isARPReply(f)
	})
}

// tcpState is a state of RFC 9293 in which a guest's segment finds a connection.
type tcpState struct {
	name string
	// reach brings a new connection there, and returns the acknowledgment number that is
	// right.
	reach func(t *testing.T, c *rawTCP) (right uint32)
	// wrong is what a wrong one is answered with; 0: with nothing. RFC 9293 wants an ACK
	// where the connection stands, which gVisor leaves out.
	wrong header.TCPFlags
	// flags of the segment that is tried.
	flags header.TCPFlags
}

const synAck = header.TCPFlagSyn | header.TCPFlagAck

// called has the host connect to the guest, whose SYN is returned.
func (c *rawTCP) called(t *testing.T) header.TCP {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if _, err := io.WriteString(client, greeting); err != nil {
		t.Fatal(err)
	}
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.stack.ForwardTCP(ctx, served.(*net.TCPConn), c.to, c.from, new(relay.Bytes))
		served.Close()
	}()
	t.Cleanup(func() { cancel(); <-done })
	return c.heard("a SYN", flagged(header.TCPFlagSyn))
}

var tcpStates = []tcpState{
	{"CLOSED", func(*testing.T, *rawTCP) uint32 { return 1 << 20 }, header.TCPFlagRst, header.TCPFlagAck},
	{"SYN-SENT", func(t *testing.T, c *rawTCP) uint32 {
		return c.called(t).SequenceNumber() + 1
	}, header.TCPFlagRst, synAck},
	{"SYN-RECEIVED", func(_ *testing.T, c *rawTCP) uint32 {
		c.put(header.TCPFlagSyn, 0, nil)
		c.seq++
		return c.heard("a SYN-ACK", flagged(synAck)).SequenceNumber() + 1
	}, header.TCPFlagRst, header.TCPFlagAck},
	{"SYN-RECEIVED, both have sent a SYN", func(t *testing.T, c *rawTCP) uint32 {
		c.called(t)
		c.put(header.TCPFlagSyn, 0, nil)
		c.seq++
		return c.heard("a SYN-ACK", flagged(synAck)).SequenceNumber() + 1
	}, header.TCPFlagRst, header.TCPFlagAck},
	{"ESTABLISHED", func(_ *testing.T, c *rawTCP) uint32 {
		c.put(header.TCPFlagSyn, 0, nil)
		c.seq++
		right := c.heard("a SYN-ACK", flagged(synAck)).SequenceNumber() + 1
		c.put(header.TCPFlagAck, right, nil)
		c.heard("the greeting", func(seg header.TCP) bool { return string(seg.Payload()) == greeting })
		c.put(header.TCPFlagAck, right+uint32(len(greeting)), nil)
		return right + uint32(len(greeting))
	}, 0, header.TCPFlagAck},
}

// TestAcknowledgmentNumbers: a segment that acknowledges what was never sent gets the answer
// of RFC 9293 section 3.10.7 in every state: a reset before the connection stands, and no
// byte of the host's. The right number finishes the handshake also after that, and a
// connection that stands goes on.
func TestAcknowledgmentNumbers(t *testing.T) {
	wrong := map[string]func(right uint32) uint32{
		"one more": func(right uint32) uint32 { return right + 1 },
		"far more": func(right uint32) uint32 { return right + 1<<30 },
		"zero":     func(uint32) uint32 { return 0 },
		"one less": func(right uint32) uint32 { return right - 1 },
	}
	for _, family := range []struct {
		name, listen string
		from, to     netip.Addr
	}{{"IPv4", "127.0.0.1:0", ft.Guest4, ft.Gate4}, {"IPv6", "[::1]:0", ft.Guest6, ft.Gate6}} {
		port, _ := greeter(t, family.listen)
		for _, state := range tcpStates {
			for name, number := range wrong {
				if state.name == "ESTABLISHED" && name != "one more" && name != "far more" {
					continue // those are old, and no fault
				}
				t.Run(family.name+"/"+state.name+"/"+name, func(t *testing.T) {
					g := newGuest(t, Policy{Local: everythingLocal{}, HostAccess: HostAccess{Loopback: Grant{Open: true}}})
					c := &rawTCP{guest: g, from: netip.AddrPortFrom(family.from, 20000), to: netip.AddrPortFrom(family.to, port), seq: 1000}
					right := state.reach(t, c)
					ack := number(right)
					before := g.stack.Stats().FlowsTotal
					c.put(state.flags, ack, nil)
					if state.wrong != 0 {
						if answer := c.heard("an answer", flagged(state.wrong)); answer.SequenceNumber() != ack {
							t.Errorf("the answer has sequence number %d, want %d", answer.SequenceNumber(), ack)
						}
					}
					c.silence(header.TCPFlagSyn, synAck)
					if n := g.stack.Stats().FlowsTotal; n != before {
						t.Errorf("%d flows, %d before", n, before)
					}
					switch state.name {
					case "SYN-RECEIVED":
						c.put(state.flags, right, nil)
						c.heard("the greeting", func(seg header.TCP) bool { return string(seg.Payload()) == greeting })
					case "ESTABLISHED":
						c.put(state.flags, right, []byte("x"))
						c.heard("an acknowledgement", func(seg header.TCP) bool { return seg.AckNumber() == c.seq+1 })
					}
				})
			}
		}
	}
}

// TestWrongAnswersMakeNoFlow: an answer with a wrong acknowledgment number makes no flow,
// whatever it looks like: with data, in a frame that the receive loop does not do gVisor's
// work for, and in IP fragments. The handshake ends when its time is over, and the host's
// server hears of it.
func TestWrongAnswersMakeNoFlow(t *testing.T) {
	for name, answer := range map[string]func(c *rawTCP, ack uint32){
		"bare":       func(c *rawTCP, ack uint32) { c.put(header.TCPFlagAck, ack, nil) },
		"with data":  func(c *rawTCP, ack uint32) { c.put(header.TCPFlagAck|header.TCPFlagPsh, ack, []byte("x")) },
		"with a FIN": func(c *rawTCP, ack uint32) { c.put(header.TCPFlagAck|header.TCPFlagFin, ack, nil) },
		"large":      func(c *rawTCP, ack uint32) { c.put(header.TCPFlagAck, ack, make([]byte, 8<<10)) },
		"fragments": func(c *rawTCP, ack uint32) {
			seg := c.segment(header.TCPFlagAck, ack, make([]byte, 100))
			const cut = 64
			for i, part := range [][]byte{seg[:cut], seg[cut:]} {
				f := ft.Frame(header.TCPProtocolNumber, c.from.Addr(), c.to.Addr(), part)
				ip := header.IPv4(f[header.EthernetMinimumSize:])
				ip.SetID(7)
				var flags uint8 = header.IPv4FlagMoreFragments
				if i == 1 {
					flags = 0
				}
				ip.SetFlagsFragmentOffset(flags, uint16(i*cut))
				ip.SetChecksum(0)
				ip.SetChecksum(^ip.CalculateChecksum())
				c.send(tap.Header{}, f)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			port, closed := greeter(t, "127.0.0.1:0")
			g := startGuest(t, Config{
				Network:       DefaultNetwork(),
				Policy:        Policy{Local: everythingLocal{}, HostAccess: HostAccess{Loopback: Grant{Open: true}}},
				handshakeTime: 300 * time.Millisecond,
			})
			c := &rawTCP{guest: g, from: netip.AddrPortFrom(ft.Guest4, 20000), to: netip.AddrPortFrom(ft.Gate4, port), seq: 1000}
			c.put(header.TCPFlagSyn, 0, nil)
			c.seq++
			iss := c.heard("a SYN-ACK", flagged(synAck)).SequenceNumber()
			answer(c, iss+1000)
			c.heard("a reset", func(seg header.TCP) bool {
				if len(seg.Payload()) > 0 {
					t.Errorf("the guest got %q", seg.Payload())
				}
				return seg.Flags().Contains(header.TCPFlagRst)
			})
			select {
			case <-closed:
			case <-time.After(10 * time.Second):
				t.Fatal("the host's connection has not ended after 10 s")
			}
			s := g.stack.Stats()
			if s.FlowsTotal != 0 || s.HandshakesFailed != 1 || s.TCPToGuest != 0 {
				t.Errorf("%d flows, %d handshakes failed, %d bytes to the guest; want 0, 1, 0", s.FlowsTotal, s.HandshakesFailed, s.TCPToGuest)
			}
		})
	}
}

// TestHandshakesThatMayBeGivenUp: only those whose guest would have been heard.
func TestHandshakesThatMayBeGivenUp(t *testing.T) {
	id := stack.TransportEndpointID{LocalPort: 1, LocalAddress: tcpip.AddrFrom4([4]byte{192, 0, 2, 1}), RemotePort: 2, RemoteAddress: tcpip.AddrFrom4([4]byte{192, 0, 2, 2})}
	type step struct {
		offered bool // a SYN-ACK goes out
		seen    link.Seen
		state   tcp.EndpointState
	}
	waits := tcp.EndpointState(tcp.StateSynRecv)
	for name, tt := range map[string]struct {
		steps          []step
		charged, yield bool
	}{
		"not offered":                  {[]step{{seen: link.All, state: waits}}, false, false},
		"not seen":                     {[]step{{true, link.NotYet, waits}}, false, false},
		"unanswered":                   {[]step{{true, link.All, waits}}, true, false},
		"unanswered, long ago":         {[]step{{true, link.All, waits}, {false, link.All, waits}}, true, false},
		"unanswered twice":             {[]step{{true, link.All, waits}, {true, link.All, waits}}, true, true},
		"answer may be on its way":     {[]step{{true, link.All, waits}, {true, link.NotYet, waits}}, true, false},
		"answer may be lost once":      {[]step{{true, link.Held, waits}}, false, false},
		"answer may be lost":           {[]step{{true, link.Held, waits}, {true, link.Held, waits}, {true, link.Held, waits}}, true, false},
		"answers may be lost but once": {[]step{{true, link.Held, waits}, {true, link.All, waits}}, true, false},
		"finished":                     {[]step{{true, link.All, tcp.StateEstablished}, {true, link.All, tcp.StateEstablished}}, false, false},
		"finished late":                {[]step{{true, link.All, waits}, {true, link.All, tcp.StateEstablished}}, true, false},
		"heard of after long":          {[]step{{true, link.Held, waits}, {true, link.All, waits}, {true, link.All, waits}}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			var now step
			seen := []link.Seen{link.NotYet} // since each mark
			h := &handshakes{
				seenSince: func(mark uint64) link.Seen { return seen[mark] },
				looks:     func() uint64 { seen = append(seen, link.NotYet); return uint64(len(seen) - 1) },
				state:     func(stack.TransportEndpointID) tcp.EndpointState { return now.state },
				all:       make(map[stack.TransportEndpointID]*handshake),
			}
			hs := h.begin(id)
			charged := 0
			for _, now = range tt.steps {
				if now.offered {
					h.Offer(id, make(header.TCP, header.TCPMinimumSize))
					h.Offered(id)
				}
				seen[len(seen)-1] = now.seen
				charged += h.sweep()
			}
			got, yields := h.yields()
			if charged != map[bool]int{true: 1}[tt.charged] || yields != tt.yield || yields && got != id {
				t.Errorf("charged %d times, given up: %v; want %v, %v", charged, yields, tt.charged, tt.yield)
			}
			if h.Finishes(id, make(header.TCP, header.TCPMinimumSize)) && yields {
				t.Error("gVisor sees an answer to what was given up")
			}
			h.end(hs)
			if h.Unfinished() != 0 || len(h.all) != 0 || h.fresh.Len() != 0 || h.overdue.Len() != 0 {
				t.Errorf("left: %+v", h)
			}
		})
	}
}
