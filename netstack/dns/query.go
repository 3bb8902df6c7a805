package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"
)

const (
	maxMessage = 65535
	headerLen  = 12 // RFC 1035 section 4.1.1
	flagQR     = 0x80
)

// Query relays a message of the guest and calls reply with the answer, from another
// goroutine and at most once. It does not block and copies payload. What gets no answer is
// counted and left to the guest's own retry. Who asks makes no difference.
func (r *Relay) Query(_ netip.AddrPort, payload []byte, reply func(answer []byte)) {
	r.count.queries.Add(1)
	if len(payload) < headerLen || payload[2]&flagQR != 0 {
		r.count.malformed.Add(1)
		return
	}
	if !r.pace.Take() {
		r.count.paced.Add(1)
		return
	}
	if !r.start() {
		r.count.refused.Add(1)
		return
	}
	query, begin := bytes.Clone(payload), time.Now()
	go func() {
		defer r.done()
		ctx, cancel := context.WithTimeout(r.ctx, r.cfg.Timeout)
		defer cancel()
		answer, err := r.exchange(ctx, query)
		if err != nil {
			r.count.failures.Add(1)
			return
		}
		r.count.answers.Add(1)
		r.count.latency.Observe(time.Since(begin))
		reply(answer)
	}()
}

// result is what became of asking one resolver.
type result struct {
	answer []byte
	err    error
}

// exchange asks one resolver after the other, without giving up on those that were
// asked before, until one answers.
func (r *Relay) exchange(ctx context.Context, query []byte) ([]byte, error) {
	all, err := r.resolvers(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan result, len(all))
	asked, ended := 0, 0
	defer func() {
		cancel()
		for ; ended < asked; ended++ {
			<-results // no goroutine outlives its query's slot
		}
	}()
	patience := time.NewTimer(0)
	defer patience.Stop()
	var errs []error
	for {
		select {
		case <-patience.C:
			if asked == len(all) {
				continue // the timer does not run any more
			}
			if asked > 0 {
				r.note(all[asked-1], errSilent)
				r.count.failovers.Add(1)
			}
			a := all[asked]
			asked++
			go func() {
				answer, err := r.ask(ctx, a, query)
				if ctx.Err() == nil {
					r.note(a, err)
				}
				results <- result{answer, err}
			}()
			if asked < len(all) {
				patience.Reset(r.cfg.Patience)
			}
		case res := <-results:
			ended++
			if res.err == nil {
				return res.answer, nil
			}
			errs = append(errs, res.err)
			if ended == len(all) || ctx.Err() != nil {
				return nil, errors.Join(errs...)
			}
			if ended == asked {
				patience.Reset(0) // nobody is left to wait for
			}
		case <-ctx.Done():
			for _, a := range all[:asked] {
				if r.ctx.Err() == nil {
					r.note(a, errSilent)
				}
			}
			return nil, ctx.Err()
		}
	}
}

var errSilent = errors.New("no answer in time")

// ask asks one resolver and waits for its answer until ctx ends. The query leaves with an id of its own:
// those of the guest may be known, and one that had the port before may still be answered.
func (r *Relay) ask(ctx context.Context, resolver netip.AddrPort, query []byte) ([]byte, error) {
	c, err := r.ports.take(ctx, resolver)
	if err != nil {
		return nil, err
	}
	again := false
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		// Where it is too late to stop it, the deadline is in the past.
		if stop() && again {
			r.ports.give(c)
			return
		}
		_ = c.Close()
	}()
	b := r.buffer.Get().(*[maxMessage]byte)
	defer r.buffer.Put(b)
	q := b[:copy(b[:], query)]
	id := uint16(rand.Uint32())
	binary.BigEndian.PutUint16(q, id)
	if _, err := c.Write(q); err != nil {
		return nil, err
	}
	for {
		n, err := c.Read(b[:])
		if err != nil {
			return nil, err
		}
		// The socket is connected, so the source is right. What has another id, or is a query, is
		// somebody's guess, and the true answer may still come.
		if n >= headerLen && binary.BigEndian.Uint16(b[:]) == id && b[2]&flagQR != 0 {
			again = true
			answer := bytes.Clone(b[:n])
			copy(answer, query[:2])
			return answer, nil
		}
		r.count.mismatches.Add(1)
	}
}
