package bench

import (
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/netip"
	"time"
)

func latencyClient(b *bed, e ends, _ Cell, t timing) []string {
	return b.generate(e.client, append([]string{"latency"}, askArgs(e, t)...)...)
}

// generateLatency asks on one connection, one request after the other.
func generateLatency(dest netip.AddrPort, duration time.Duration, _ int) (*generated, error) {
	conn, err := net.DialTimeout("tcp4", dest.String(), patience)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errGenerate, err)
	}
	defer conn.Close()
	var h histogram
	request, answer := make([]byte, echoSize), make([]byte, echoSize)
	request[0] = echoKeep
	begin := time.Now()
	// The deadline is set once: to set it for each request would be in every latency.
	if err := conn.SetDeadline(begin.Add(duration + patience)); err != nil {
		return nil, fmt.Errorf("%w: %w", errGenerate, err)
	}
	sent := begin
	for sent.Sub(begin) < duration {
		if _, err := conn.Write(request); err != nil {
			return nil, fmt.Errorf("%w: %w", errGenerate, err)
		}
		if _, err := io.ReadFull(conn, answer); err != nil {
			return nil, fmt.Errorf("%w: after %d answers: %w", errGenerate, h.count, err)
		}
		got := time.Now()
		h.add(got.Sub(sent))
		sent = got
	}
	return &generated{
		Count: h.count, Seconds: sent.Sub(begin).Seconds(), Bytes: 2 * echoSize * h.count,
		Latency: &Latency{P50: h.quantile(0.5), P99: h.quantile(0.99), P999: h.quantile(0.999)},
	}, nil
}

// histogram of durations with 1 % of precision, in little room however many there are:
// for each power of two of nanoseconds, as many buckets as precisionBits can number.
type histogram struct {
	count   uint64
	buckets [(64 - precisionBits + 1) << precisionBits]uint64
}

const precisionBits = 7

func (h *histogram) add(d time.Duration) {
	h.count++
	h.buckets[bucketOf(uint64(max(d, 0)))]++
}

// bucketOf numbers values below 1<<precisionBits by themselves, and others by their
// exponent and their first bits.
func bucketOf(n uint64) int {
	shift := max(0, bits.Len64(n)-precisionBits-1)
	return shift<<precisionBits + int(n>>shift)
}

// bucketStart is the least value of a bucket.
func bucketStart(bucket int) uint64 {
	shift := max(0, bucket>>precisionBits-1)
	return uint64(bucket-shift<<precisionBits) << shift
}

// quantile in seconds: the least that so many of all were not above, the nearest rank.
func (h *histogram) quantile(q float64) float64 {
	rank := uint64(q * float64(h.count))
	var seen uint64
	for i, n := range h.buckets {
		if seen += n; seen > rank {
			return float64(bucketStart(i)) / 1e9
		}
	}
	return 0
}
