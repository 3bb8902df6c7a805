package udp

import "sync/atomic"

// Stats are plain numbers since the NAT was made; Sessions are those open now. Rx
// is from the guest to the host, Tx from the host to the guest; bytes are those of
// payloads.
type Stats struct {
	Sessions          uint64
	SessionsTotal     uint64
	SessionsEvicted   uint64 // given up for a new one, least recently used first
	SessionsExpired   uint64
	RxDatagrams       uint64
	RxBytes           uint64
	TxDatagrams       uint64
	TxBytes           uint64
	Local             uint64 // datagrams taken by Config.Local
	Fragments         uint64 // of datagrams
	Reassembled       uint64 // datagrams that were put together of them
	Dropped           Dropped
	Published         Published
	ICMPErrors        uint64 // errors sent to the guest
	ICMPErrorsLimited uint64 // errors that the rate limit held back
}

// Dropped counts datagrams by the reason for which they went nowhere.
type Dropped struct {
	Malformed   uint64
	Checksum    uint64
	Multicast   uint64 // broadcast and multicast destinations
	Denied      uint64 // refused by Config.Route
	Unreachable uint64 // no route: Config.Route's EHOSTUNREACH and ENETUNREACH, or the host's
	TTL         uint64 // used up: traceroute asks who we are
	Socket      uint64 // no host socket to be had
	Buffer      uint64 // the host socket's send buffer was full
	Send        uint64 // the host refused the datagram for another reason
	Filtered    uint64 // from an address that the guest did not send to
	Write       uint64 // the device refused the frame
	Closed      uint64 // after Close
	Paced       uint64 // would have begun a session, faster than the guest may
	Clients     uint64 // of a published port: no address left under which to show the client
	Overflow    uint64 // a host socket's receive buffer was full; of a published port also before the NAT was made
	Refused     uint64 // fragments that were there already, or contradicted others of their datagram
	Incomplete  uint64 // fragments were missing for too long, or others needed the room
}

// Published counts what goes over published ports. Rx is from the guest to its
// clients, Tx from clients to the guest. Its datagrams are not counted in Stats.
type Published struct {
	Sessions        uint64
	SessionsTotal   uint64
	SessionsEvicted uint64
	SessionsExpired uint64
	RxDatagrams     uint64
	RxBytes         uint64
	TxDatagrams     uint64
	TxBytes         uint64
}

// traffic counts what a table of sessions does, for itself and for the sum that it is part of.
type traffic struct {
	sum *traffic

	open, total, evicted, expired atomic.Uint64
	rx, rxBytes, tx, txBytes      atomic.Uint64
}

func (t *traffic) opened() {
	for ; t != nil; t = t.sum {
		t.open.Add(1)
		t.total.Add(1)
	}
}

func (t *traffic) closed(why reason) {
	for ; t != nil; t = t.sum {
		t.open.Add(^uint64(0))
		switch why {
		case evicted:
			t.evicted.Add(1)
		case expired:
			t.expired.Add(1)
		}
	}
}

func (t *traffic) sent(datagrams, bytes int) {
	for ; t != nil; t = t.sum {
		t.rxBytes.Add(uint64(bytes))
		t.rx.Add(uint64(datagrams))
	}
}

func (t *traffic) delivered(datagrams, bytes int) {
	for ; t != nil; t = t.sum {
		t.txBytes.Add(uint64(bytes))
		t.tx.Add(uint64(datagrams))
	}
}

func (t *traffic) published() Published {
	return Published{
		Sessions:        t.open.Load(),
		SessionsTotal:   t.total.Load(),
		SessionsEvicted: t.evicted.Load(),
		SessionsExpired: t.expired.Load(),
		RxDatagrams:     t.rx.Load(),
		RxBytes:         t.rxBytes.Load(),
		TxDatagrams:     t.tx.Load(),
		TxBytes:         t.txBytes.Load(),
	}
}

// reason is why a session ends.
type reason int

const (
	closing reason = iota
	evicted
	expired
)

// counters are the NAT's; what each counts is said at Stats.
type counters struct {
	nat, pub traffic
	local    atomic.Uint64

	fragments, reassembled, fragmentsRefused, incomplete, overflow atomic.Uint64

	malformed, checksum, multicast, denied, unreachable, ttl, socket,
	buffer, send, filtered, write, closed, paced, clients atomic.Uint64

	icmp, icmpLimited atomic.Uint64
}

// Stats reads the counters. It may be called at any time, also after Close.
func (n *NAT) Stats() Stats {
	c := &n.count
	p := c.nat.published()
	return Stats{
		Sessions:        p.Sessions,
		SessionsTotal:   p.SessionsTotal,
		SessionsEvicted: p.SessionsEvicted,
		SessionsExpired: p.SessionsExpired,
		RxDatagrams:     p.RxDatagrams,
		RxBytes:         p.RxBytes,
		TxDatagrams:     p.TxDatagrams,
		TxBytes:         p.TxBytes,
		Local:           c.local.Load(),
		Fragments:       c.fragments.Load(),
		Reassembled:     c.reassembled.Load(),
		Dropped: Dropped{
			Malformed:   c.malformed.Load(),
			Checksum:    c.checksum.Load(),
			Multicast:   c.multicast.Load(),
			Denied:      c.denied.Load(),
			Unreachable: c.unreachable.Load(),
			TTL:         c.ttl.Load(),
			Socket:      c.socket.Load(),
			Buffer:      c.buffer.Load(),
			Send:        c.send.Load(),
			Filtered:    c.filtered.Load(),
			Write:       c.write.Load(),
			Closed:      c.closed.Load(),
			Paced:       c.paced.Load(),
			Clients:     c.clients.Load(),
			Overflow:    c.overflow.Load(),
			Refused:     c.fragmentsRefused.Load(),
			Incomplete:  c.incomplete.Load(),
		},
		Published:         c.pub.published(),
		ICMPErrors:        c.icmp.Load(),
		ICMPErrorsLimited: c.icmpLimited.Load(),
	}
}
