package wire

import (
	"encoding/binary"
	"net/netip"
)

// ICMP types and codes that are written here: RFC 792, RFC 1812 section 5.2.7.1,
// RFC 4443.
const (
	Unreachable4    = 3
	CodeHost4       = 1
	CodeProhibited4 = 13
	Unreachable6    = 1
	CodeProhibited6 = 1
	CodeAddress6    = 3
	TimeExceeded4   = 11
	TimeExceeded6   = 3
	CodeReassembly  = 1 // of both

	maxQuote4 = 576 - IPv4Len - ICMPLen     // RFC 1812 section 4.3.2.3
	maxQuote6 = MinMTU6 - IPv6Len - ICMPLen // RFC 4443 section 2.4(c)
	errorTTL  = 64
)

// Error is an ICMP or ICMPv6 error message.
type Error struct {
	From       netip.Addr // who says so
	Type, Code uint8
	Info       uint32 // the second word: the MTU of "fragmentation needed" and "packet too big"
	Quote      []byte // the IP packet that the error is about, or its beginning; its sender gets the error
}

// Prohibited is the error about a packet that policy refuses.
func Prohibited(from netip.Addr, quote []byte) Error {
	if from.Is4() {
		return Error{From: from, Type: Unreachable4, Code: CodeProhibited4, Quote: quote}
	}
	return Error{From: from, Type: Unreachable6, Code: CodeProhibited6, Quote: quote}
}

// HostUnreachable is the error about a packet that no route leads onward.
func HostUnreachable(from netip.Addr, quote []byte) Error {
	if from.Is4() {
		return Error{From: from, Type: Unreachable4, Code: CodeHost4, Quote: quote}
	}
	return Error{From: from, Type: Unreachable6, Code: CodeAddress6, Quote: quote}
}

// TimeExceeded is the error about a packet whose TTL ends here.
func TimeExceeded(from netip.Addr, quote []byte) Error {
	if from.Is4() {
		return Error{From: from, Type: TimeExceeded4, Quote: quote}
	}
	return Error{From: from, Type: TimeExceeded6, Quote: quote}
}

// ReassemblyTimeExceeded is the error about a packet of which fragments have not come.
func ReassemblyTimeExceeded(from netip.Addr, quote []byte) Error {
	e := TimeExceeded(from, quote)
	e.Code = CodeReassembly
	return e
}

// Error sends an error message to the sender of the packet that it quotes. It does
// nothing for a quote that is no IP packet of From's family.
func (l *Link) Error(s *Scratch, e Error) error {
	var to netip.Addr
	proto, quote := uint8(ProtoICMP), e.Quote
	switch {
	case e.From.Is4() && len(quote) >= IPv4Len && quote[0]>>4 == 4:
		to = netip.AddrFrom4([4]byte(quote[12:16]))
		quote = quote[:min(len(quote), maxQuote4)]
	case e.From.Is6() && len(quote) >= IPv6Len && quote[0]>>4 == 6:
		to = netip.AddrFrom16([16]byte(quote[8:24]))
		quote = quote[:min(len(quote), maxQuote6)]
		proto = ProtoICMPv6
	default:
		return nil
	}
	head := s.transport[:]
	head[0], head[1], head[2], head[3] = e.Type, e.Code, 0, 0
	binary.BigEndian.PutUint32(head[4:], e.Info)
	start := uint16(0)
	if proto == ProtoICMPv6 {
		start = PseudoSum(e.From, to, proto, ICMPLen+len(quote))
	}
	binary.BigEndian.PutUint16(head[2:], ^Sum(quote, Sum(head, start)))
	return l.Packet(s, e.From, to, proto, errorTTL, head, quote)
}
