package link

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// reason is why the guard dropped a frame.
type reason int

const (
	pass reason = iota
	badLength
	badChecksum
	badMAC
	badSource
	notOurs
	noMemory
	reasons
)

var reasonNames = [reasons]string{"", "bad_length", "bad_checksum", "foreign_mac", "foreign_source", "not_answered", "buffer_full"}

type counters struct {
	rxPackets, rxBytes    atomic.Uint64
	txPackets, txBytes    atomic.Uint64
	rxBadHeader, rxErrors atomic.Uint64
	rxDropped             [reasons]atomic.Uint64
	rxFragments           atomic.Uint64
	txDown, txFull, txBad atomic.Uint64
}

// txError counts a frame that the kernel refused.
func (c *counters) txError(err error) {
	switch {
	case errors.Is(err, unix.EIO):
		c.txDown.Add(1)
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EAGAIN):
		c.txFull.Add(1)
	default:
		c.txBad.Add(1)
	}
}

// Stats are totals since the endpoint was made. Rx is from the guest, Tx to it.
type Stats struct {
	RxPackets, RxBytes uint64
	TxPackets, TxBytes uint64
	// Dropped counts frames by reason. The reasons are a fixed set.
	Dropped map[string]uint64
	// RxFragments counts the fragments of IP packets that gVisor got to put together: those that no
	// handler took.
	RxFragments uint64
	// Neighbours are addresses of the guest that were seen elsewhere than at its expected
	// Ethernet address, NeighboursForgotten those that made room for others.
	Neighbours, NeighboursForgotten uint64
	// NeighboursDoubted counts frames whose Ethernet address was not believed: their IP
	// address was heard of elsewhere a moment ago.
	NeighboursDoubted uint64
}

// Stats returns the totals.
func (e *Endpoint) Stats() Stats {
	c := &e.stats
	s := Stats{
		RxPackets: c.rxPackets.Load(),
		RxBytes:   c.rxBytes.Load(),
		TxPackets: c.txPackets.Load(),
		TxBytes:   c.txBytes.Load(),

		RxFragments:         c.rxFragments.Load(),
		Neighbours:          e.cfg.Neighbours.Known(),
		NeighboursForgotten: e.cfg.Neighbours.Forgotten(),
		NeighboursDoubted:   e.cfg.Neighbours.Doubted(),
		Dropped: map[string]uint64{
			"bad_header":    c.rxBadHeader.Load(),
			"read_error":    c.rxErrors.Load(),
			"link_down":     c.txDown.Load(),
			"no_memory":     c.txFull.Load(),
			"refused_frame": c.txBad.Load(),
		},
	}
	for r := pass + 1; r < reasons; r++ {
		s.Dropped[reasonNames[r]] = c.rxDropped[r].Load()
	}
	return s
}
