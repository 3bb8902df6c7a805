package udp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"slipway/netstack/internal/wire"
	"slipway/netstack/tap"
)

// datagramTo is a whole frame of the guest's with n bytes that differ.
func datagramTo(gateway netip.Addr, n int) []byte {
	payload := make([]byte, n)
	for i := range payload {
		payload[i] = byte(i*7 + i>>8)
	}
	src := at(guest4, 4000)
	if gateway.Is6() {
		src = at(guest6, 4000)
	}
	return udpFrame(src, at(gateway, 9), payload)
}

// split cuts a frame with one IP packet into fragments that carry size bytes, a multiple of 8.
func split(frame []byte, size int) [][]byte {
	head, id := 34, uint32(0x1234)
	if frame[12] == 0x86 {
		head = 54
	}
	var all [][]byte
	for off := 0; off < len(frame)-head; off += size {
		data := frame[head:][off:min(off+size, len(frame)-head)]
		flag := uint16(more)
		if off+len(data) == len(frame)-head {
			flag = last
		}
		all = append(all, piece(frame[:head], id, off, data, flag))
	}
	return all
}

// What a fragment says of the others: none follows, or some do.
const last, more = 0, 1

// piece is a fragment behind the headers of the whole packet; flag is last or more.
func piece(headers []byte, id uint32, offset int, data []byte, flag uint16) []byte {
	f := bytes.Clone(headers)
	if f[12] == 0x08 {
		where := uint16(offset/8) | flag<<13
		binary.BigEndian.PutUint16(f[16:], uint16(20+len(data)))
		binary.BigEndian.PutUint16(f[18:], uint16(id))
		binary.BigEndian.PutUint16(f[20:], where)
		return append(fixIPv4(f), data...)
	}
	where := uint16(offset) | flag
	binary.BigEndian.PutUint16(f[18:], uint16(8+len(data)))
	next := f[20]
	f[20] = 44
	f = append(f, next, 0)
	f = binary.BigEndian.AppendUint16(f, where)
	f = binary.BigEndian.AppendUint32(f, id)
	return append(f, data...)
}

// families are the two ways of making fragments.
var families = []struct {
	name, server   string
	guest, gateway netip.Addr
	max            int
}{{"IPv4", "127.0.0.1:0", guest4, gateway4, 65507}, {"IPv6", "[::1]:0", guest6, gateway6, 65487}}

// In whatever order fragments come, and how often, the host gets one datagram.
func TestFragmentsArriveAsOneDatagram(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			n := newNAT(t, testConfig(newGuest()))
			server, addr := hostSocket(t, family.server)
			for i, size := range []int{1, 1473, 8192, 9000, family.max} {
				payload := make([]byte, size)
				for i := range payload {
					payload[i] = byte(r.Uint32())
				}
				whole := udpFrame(at(family.guest, 4000), at(family.gateway, addr.Port()), payload)
				step := 1448
				if size < step {
					step = 8
				}
				for order := range 4 {
					pieces := split(whole, step)
					for k := range pieces { // each datagram has an identification of its own
						id := uint16(i*4 + order)
						if family.guest.Is4() {
							pieces[k] = put16(pieces[k], 18, id)
						} else {
							pieces[k] = put16(pieces[k], 60, id)
						}
					}
					switch order {
					case 1:
						slices.Reverse(pieces)
					case 2:
						r.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
					case 3:
						pieces = append(pieces[:1:1], pieces...) // the first one twice
					}
					in(t, n, pieces...)
					got, _ := read(t, server)
					if !bytes.Equal(got, payload) {
						t.Fatalf("%d bytes in order %d: %d others came", size, order, len(got))
					}
				}
			}
			s := n.Stats()
			if s.Reassembled != 20 || s.RxDatagrams != 20 || s.Dropped != (Dropped{Refused: 5}) || n.reassembler.waiting.Load() != 0 {
				t.Errorf("stats %+v, %d waiting", s, n.reassembler.waiting.Load())
			}
		})
	}
}

// Fragments that contradict each other spoil their datagram, whatever comes later.
func TestOverlappingFragments(t *testing.T) {
	for _, family := range families {
		whole := datagramTo(family.gateway, 4000)
		head := 34
		if family.guest.Is6() {
			head = 54
		}
		part := func(offset, n int, flag uint16) []byte {
			return piece(whole[:head], 0x1234, offset, whole[head+offset:head+offset+n], flag)
		}
		end := len(whole) - head
		other := part(800, 800, more)
		other[len(other)-1]++
		for name, bad := range map[string][]byte{
			"over the end of one":        part(1592, 800, more),
			"over the beginning of one":  part(792, 16, more),
			"other bytes":                other,
			"another end":                part(2400, 800, last),
			"behind the end":             piece(whole[:head], 0x1234, end/8*8+8, make([]byte, 8), more),
			"the end, with more to come": piece(whole[:head], 0x1234, 3200, make([]byte, 808), more),
		} {
			t.Run(family.name+" "+name, func(t *testing.T) {
				n := newNAT(t, testConfig(newGuest()))
				in(t, n, part(800, 800, more), part(3200, end-3200, last), bad)
				if s := n.Stats(); s.Dropped != (Dropped{Refused: 1}) {
					t.Fatalf("stats %+v", s)
				}
				in(t, n, split(whole, 800)...)
				if s := n.Stats(); s.Reassembled != 0 || s.RxDatagrams != 0 || s.Dropped.Refused != 1+6 {
					t.Errorf("stats %+v", s)
				}
			})
		}
	}
}

// The oldest makes room, and the memory of one serves the next.
func TestIncompleteDatagramsAreBounded(t *testing.T) {
	n := newNAT(t, testConfig(newGuest()))
	whole := datagramTo(gateway6, 4000)
	for id := range uint32(3 * maxPartial) {
		in(t, n, piece(whole[:54], id, 0, whole[54:54+800], more))
	}
	r := &n.reassembler
	if s := n.Stats(); s.Dropped != (Dropped{Incomplete: 2 * maxPartial}) || len(r.partial) != maxPartial || len(r.free) > 1 {
		t.Errorf("stats %+v, %d waiting, %d free", s, len(r.partial), len(r.free))
	}
	if r.partial[0].of.id != 2*maxPartial {
		t.Errorf("the oldest is %d, want %d", r.partial[0].of.id, 2*maxPartial)
	}
}

// What stays incomplete is given up, and the guest is told when its first fragment had come
// (RFC 792, RFC 8200 section 4.5).
func TestIncompleteDatagramsExpire(t *testing.T) {
	for i, family := range families {
		t.Run(family.name, func(t *testing.T) {
			g := newGuest()
			n := newNAT(t, testConfig(g))
			pieces := split(datagramTo(family.gateway, 4000), 1448)
			others := split(datagramTo(family.gateway, 4001), 1448)
			for k := range others {
				at := 18
				if family.guest.Is6() {
					at = 60
				}
				others[k] = put16(others[k], at, 99)
			}
			in(t, n, pieces[0], others[1])
			start, limit := n.clock(), []time.Duration{30 * time.Second, 60 * time.Second}[i]
			n.sweep(start + limit - time.Second)
			if s := n.Stats(); s.Dropped.Incomplete != 0 {
				t.Fatalf("stats %+v", s)
			}
			g.none(t)
			n.sweep(start + limit)
			w := g.next(t)
			p, v := wire.Parse(w.frame)
			want := [][]byte{{wire.TimeExceeded4, 1}, {wire.TimeExceeded6, 1}}[i]
			if v != wire.OK || p.Src != family.gateway || p.Dst != family.guest || !bytes.HasPrefix(p.Payload, want) {
				t.Errorf("verdict %d, from %v to %v: % x", v, p.Src, p.Dst, p.Payload[:8])
			}
			head := len(pieces[0]) - 1448
			if quote := p.Payload[8+wire.HeaderLen(family.guest):]; !bytes.HasPrefix(pieces[0][head:], quote) || len(quote) < wire.UDPLen {
				t.Errorf("the error is about % x", quote)
			}
			g.none(t)
			// What comes too late begins anew.
			in(t, n, pieces[1:]...)
			if s := n.Stats(); s.Dropped.Incomplete != 2 || s.Reassembled != 0 || s.ICMPErrors != 1 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

// What is incomplete ages also while there is no session.
func TestIncompleteDatagramsWakeThePoller(t *testing.T) {
	n := newNAT(t, testConfig(newGuest()))
	n.now.Store(-int64(time.Hour))
	in(t, n, split(datagramTo(gateway4, 4000), 1480)[0])
	n.reassembler.mu.Lock()
	n.reassembler.partial[0].since -= reassemblyTime4
	n.reassembler.mu.Unlock()
	eventually(t, "an incomplete datagram has expired", func() bool { return n.Stats().Dropped.Incomplete == 1 })
}

// Fragments of what is not UDP, or has options, are the full stack's.
func TestOtherFragments(t *testing.T) {
	n := newNAT(t, testConfig(newGuest()))
	tcp4 := piece(ipFrame(guest4, gateway4, 6, nil), 1, 0, make([]byte, 800), more)
	tcp6 := piece(ipFrame(guest6, gateway6, 6, nil), 1, 0, make([]byte, 800), more)
	options := split(datagramTo(gateway4, 4000), 1480)[0]
	options = append(options[:34:34], append([]byte{1, 1, 1, 1}, options[34:]...)...)
	options[14] = 0x46
	options = put16(options, 16, uint16(len(options)-14))
	for name, f := range map[string][]byte{"TCP": tcp4, "IPv6 TCP": tcp6, "IPv4 options": options} {
		if n.Input(tap.Header{}, f) {
			t.Errorf("%s: taken", name)
		}
	}
	if s := n.Stats(); s != (Stats{}) {
		t.Errorf("stats %+v", s)
	}
}

func TestMalformedFragments(t *testing.T) {
	n := newNAT(t, testConfig(newGuest()))
	count := uint64(0)
	for _, family := range families {
		headers := split(datagramTo(family.gateway, 0), 8)[0]
		if family.guest.Is6() {
			headers = ipFrame(guest6, gateway6, 17, nil)
		} else {
			headers = headers[:34]
		}
		whole := piece(headers, 1, 0, make([]byte, 800), more)
		for name, f := range map[string][]byte{
			"not a multiple of 8 bytes": piece(headers, 1, 0, make([]byte, 801), more),
			"nothing":                   piece(headers, 1, 800, nil, last),
			"beyond IP":                 piece(headers, 1, 65528, make([]byte, 16), last),
			"no UDP header":             piece(headers, 1, 0, make([]byte, 7), last),
			"cut off":                   whole[:len(whole)-1],
		} {
			if family.guest.Is4() && name == "no UDP header" {
				continue // not a fragment
			}
			if count++; !n.Input(tap.Header{}, f) || n.Stats().Dropped.Malformed != count {
				t.Errorf("%s %s: stats %+v", family.name, name, n.Stats())
			}
		}
	}
	sum := piece(datagramTo(gateway4, 0)[:34], 1, 0, make([]byte, 800), more)
	sum[24]++
	if n.Input(tap.Header{}, sum); n.Stats().Dropped.Malformed != count+1 || n.reassembler.waiting.Load() != 0 {
		t.Errorf("wrong header checksum: stats %+v", n.Stats())
	}
}

// FuzzReassembly holds the reassembler against one that remembers every byte on its own. The input
// is a list of fragments, six bytes each: which datagram, where, how long, last or not, what.
func FuzzReassembly(f *testing.F) {
	first, rest := []byte{0, 0, 0, 2, 1, 7}, []byte{0, 0, 3, 1, 0, 7} // 24 bytes, and 16 behind them
	for _, list := range [][][]byte{
		{first, rest},
		{rest, first},
		{first, first, rest},              // twice
		{first, {0, 0, 0, 2, 1, 8}, rest}, // twice, with other bytes
		{first, {0, 0, 2, 2, 1, 7}, rest}, // overlap
		{first, {1, 0, 3, 1, 0, 7}, rest}, // of two datagrams
		{rest, {0, 0, 6, 1, 0, 7}, first}, // two ends
		{rest, {0, 0, 1, 3, 1, 7}, first}, // beyond the end
		{{0, 0x1f, 0, 200, 0, 7}, first},  // far behind
		{{0, 0, 0, 65, 1, 7}, {0, 0, 66, 65, 1, 8}, {0, 0, 132, 0, 0, 9}, // across words of the bitmap
			first, rest},
		{first, rest, first, rest}, // a second datagram in the memory of the first
	} {
		f.Add(bytes.Join(list, nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var c counters
		r := reassembler{count: &c}
		type model struct {
			bytes  map[int]byte
			total  int
			spoilt bool
		}
		models := map[uint32]*model{}
		header := make([]byte, wire.EthernetLen)
		for b = b[:min(len(b), 6*32)]; len(b) >= 6; b = b[6:] {
			g := fragment{of: datagramID{src: guest6, dst: gateway6, id: uint32(b[0] & 3)}, more: b[4]&1 != 0}
			g.offset = int(binary.BigEndian.Uint16(b[1:])&0x1fff) * 8
			size := int(b[3])*8 + 8
			if !g.more {
				size -= int(b[4]) >> 1 & 7
			}
			g.data = bytes.Repeat(b[5:6], size)
			if g.offset+size > 65535 {
				continue // refused by parseFragment
			}
			m := models[g.of.id]
			if m == nil {
				m = &model{bytes: map[int]byte{}}
				models[g.of.id] = m
			}
			if !m.spoilt {
				had, same := 0, true
				for i, v := range g.data {
					if w, ok := m.bytes[g.offset+i]; ok {
						had++
						same = same && w == v
					}
				}
				end := g.offset + size
				beyond := false
				for i := range m.bytes {
					beyond = beyond || !g.more && i >= end
				}
				switch {
				case m.total > 0 && (end > m.total || g.more && end == m.total || !g.more && end != m.total), m.total == 0 && beyond:
					m.spoilt = true
				case had == size && same:
				case had > 0:
					m.spoilt = true
				default:
					for i, v := range g.data {
						m.bytes[g.offset+i] = v
					}
					if !g.more {
						m.total = end
					}
				}
			}
			complete := !m.spoilt && m.total > 0 && len(m.bytes) == m.total
			p := r.add(&g, header, 0)
			if (p != nil) != complete {
				t.Fatalf("complete: %t, want %t", p != nil, complete)
			}
			if p == nil {
				continue
			}
			got := p.frame()[wire.EthernetLen+wire.IPv6Len:]
			if len(got) != m.total {
				t.Fatalf("%d bytes, want %d", len(got), m.total)
			}
			for i, v := range got {
				if m.bytes[i] != v {
					t.Fatalf("byte %d is %d, want %d", i, v, m.bytes[i])
				}
			}
			r.done(p)
			if p.came != [len(p.came)]uint64{} {
				t.Fatal("a trace of a datagram is left for the next")
			}
			delete(models, g.of.id)
		}
		if len(r.partial) != len(models) || len(r.partial)+len(r.free) > 4 {
			t.Fatalf("%d waiting, %d free, want %d waiting", len(r.partial), len(r.free), len(models))
		}
	})
}
