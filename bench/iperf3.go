package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// warmup is how long each row runs in the round that is not counted.
	warmup = time.Second
	// listening is what iperf3's server prints once it can be connected to.
	listening = "Server listening on"
)

// errIperf3 is wrapped by every error that iperf3 itself reported.
var errIperf3 = errors.New("iperf3")

// iperf3Sum is what one direction of a measurement did.
type iperf3Sum struct {
	Seconds       float64 `json:"seconds"`
	Bytes         uint64  `json:"bytes"`
	BitsPerSecond float64 `json:"bits_per_second"`
	Retransmits   uint64  `json:"retransmits"`
	LostPackets   int64   `json:"lost_packets"`
	Packets       int64   `json:"packets"`
}

// iperf3Document is what is read of the output of iperf3 --json.
type iperf3Document struct {
	Intervals []struct {
		Sum  iperf3Sum `json:"sum"`
		Back iperf3Sum `json:"sum_bidir_reverse"`
	} `json:"intervals"`
	End struct {
		Sum                iperf3Sum  `json:"sum"` // of UDP
		SumSent            iperf3Sum  `json:"sum_sent"`
		SumReceived        iperf3Sum  `json:"sum_received"`
		BackSent           *iperf3Sum `json:"sum_sent_bidir_reverse"`
		BackReceived       *iperf3Sum `json:"sum_received_bidir_reverse"`
		SenderCongestion   string     `json:"sender_tcp_congestion"`
		ReceiverCongestion string     `json:"receiver_tcp_congestion"`
	} `json:"end"`
	Error string `json:"error"`
}

// readIperf3 reads the output of an iperf3 client. iperf3 exits 0 with --json even when it
// failed, so the document decides, not the exit status.
func readIperf3(output []byte) (*iperf3Document, error) {
	if len(strings.TrimSpace(string(output))) == 0 {
		return nil, fmt.Errorf("%w printed nothing", errIperf3)
	}
	doc := &iperf3Document{}
	if err := json.Unmarshal(output, doc); err != nil {
		return nil, fmt.Errorf("%w printed no JSON but %.120q: %w", errIperf3, output, err)
	}
	if doc.Error != "" {
		return nil, fmt.Errorf("%w: %s", errIperf3, doc.Error)
	}
	return doc, nil
}

// parseIperf3 reads what TCP did; in both directions at once, it is the sum of them.
func parseIperf3(output []byte, c Cell) (Sample, error) {
	doc, err := readIperf3(output)
	if err != nil {
		return Sample{}, err
	}
	received := []iperf3Sum{doc.End.SumReceived}
	s := Sample{
		Retransmits:        doc.End.SumSent.Retransmits,
		SenderCongestion:   doc.End.SenderCongestion,
		ReceiverCongestion: doc.End.ReceiverCongestion,
	}
	if c.Direction == DirectionBoth {
		if doc.End.BackReceived == nil || doc.End.BackSent == nil {
			return Sample{}, fmt.Errorf("%w says nothing of the other direction (is it older than 3.7?)", errIperf3)
		}
		received = append(received, *doc.End.BackReceived)
		s.Retransmits += doc.End.BackSent.Retransmits
	}
	for _, r := range received {
		if r.Bytes == 0 || r.Seconds <= 0 {
			return Sample{}, fmt.Errorf("%w: the receiver got %d bytes in %g seconds", errIperf3, r.Bytes, r.Seconds)
		}
		s.Value += r.BitsPerSecond
		s.Seconds = r.Seconds
	}
	// The intervals hold the omitted second too, as does the CPU time.
	for _, i := range doc.Intervals {
		s.Bytes += i.Sum.Bytes + i.Back.Bytes
	}
	return s, nil
}

// parseIperf3UDP reads what datagrams did: what has arrived is what counts.
func parseIperf3UDP(output []byte, c Cell) (Sample, error) {
	doc, err := readIperf3(output)
	if err != nil {
		return Sample{}, err
	}
	sum := doc.End.Sum
	if sum.Packets <= 0 || sum.Seconds <= 0 {
		return Sample{}, fmt.Errorf("%w: %d datagrams in %g seconds", errIperf3, sum.Packets, sum.Seconds)
	}
	// Datagrams that overtook others make the count of the lost negative.
	lost := min(max(sum.LostPackets, 0), sum.Packets)
	arrived := uint64(sum.Packets-lost) * uint64(c.Size)
	// The lost are the gaps that the receiver saw. What is lost after the last that arrived is
	// none of them, all that was sent for instance: what it got is counted apart.
	if got := doc.End.SumReceived.Bytes; got < arrived {
		arrived = got
	}
	if arrived == 0 {
		return Sample{}, fmt.Errorf("%w: none of %d datagrams of %d bytes arrived", errIperf3, sum.Packets, c.Size)
	}
	return Sample{
		Value: 8 * float64(arrived) / sum.Seconds, Seconds: sum.Seconds, Bytes: arrived,
		Loss: 1 - float64(arrived)/(float64(sum.Packets)*float64(c.Size)),
	}, nil
}

// iperf3Server ends after one client.
func iperf3Server(b *bed, e ends, _ Cell) command {
	return command{in(e.server, b.iperf3, "--server", "--one-off", "--port", strconv.Itoa(serverPort), "--forceflush"), listening}
}

func iperf3Client(b *bed, e ends, t timing) []string {
	args := in(e.client,
		b.iperf3, "--json", "--client", e.dest.Addr().String(), "--port", strconv.Itoa(int(e.dest.Port())),
		"--time", strconv.Itoa(int(t.seconds.Seconds())), "--connect-timeout", "5000")
	if t.omitted > 0 {
		args = append(args, "--omit", strconv.Itoa(int(t.omitted.Seconds())))
	}
	return args
}

// iperf3Stream is the client of TCP streams.
func iperf3Stream(b *bed, e ends, c Cell, t timing) []string {
	args := iperf3Client(b, e, t)
	if c.Streams > 1 {
		args = append(args, "--parallel", strconv.Itoa(c.Streams))
	}
	switch c.Direction {
	case DirectionBoth:
		args = append(args, "--bidir")
	case e.reverse: // the server sends
		args = append(args, "--reverse")
	}
	return args
}

// iperf3Datagrams is the client of UDP, as fast as it can. UDP has no slow start.
func iperf3Datagrams(b *bed, e ends, c Cell, t timing) []string {
	return datagramsAt(b, e, c, t, 0)
}

// datagramsAt sends so many bits of payload a second; 0: as many as it can.
func datagramsAt(b *bed, e ends, c Cell, t timing, bitsPerSecond uint64) []string {
	args := append(iperf3Client(b, e, timing{seconds: t.seconds}),
		"--udp", "--bandwidth", strconv.FormatUint(bitsPerSecond, 10), "--length", strconv.Itoa(c.Size))
	if c.Direction == e.reverse {
		args = append(args, "--reverse")
	}
	return args
}

const (
	searchSteps = 8
	searchTime  = time.Second
	// losslessShare of datagrams may be lost where a rate counts as one without loss.
	losslessShare = 0.001
)

// searchLossless finds the highest rate without loss: what arrives at full rate is the
// first guess, and then the distance between a rate that was kept and one that was not is
// halved. The sample is that of the best that was kept.
func searchLossless(ctx context.Context, b *bed, e ends, c Cell) (Sample, error) {
	try := func(rate uint64) (Sample, error) {
		w := workOf(WorkloadUDP)
		stop, err := w.prepare(ctx, b, e, c, timing{})
		defer stop()
		if err != nil {
			return Sample{}, err
		}
		out, err := b.client(ctx, datagramsAt(b, e, c, timing{seconds: searchTime}, rate))
		if err != nil {
			return Sample{}, err
		}
		return parseIperf3UDP(out, c)
	}
	full, err := try(0)
	if err != nil {
		return Sample{}, err
	}
	moved := full.Bytes
	if full.Loss <= losslessShare {
		return full, nil
	}
	var best Sample
	kept, lost := 0.0, full.Value/(1-full.Loss) // bits per second
	guess := full.Value
	for range searchSteps - 1 {
		s, err := try(max(1, uint64(guess)))
		if err != nil {
			return Sample{}, err
		}
		moved += s.Bytes
		if s.Loss <= losslessShare {
			kept, best = guess, s
		} else {
			lost = guess
		}
		guess = (kept + lost) / 2
	}
	if best.Value == 0 {
		return Sample{}, fmt.Errorf("%w: more than %g of the datagrams are lost at %.0f bit/s too", errIperf3, losslessShare, lost)
	}
	best.Bytes = moved // the CPU time is that of all
	return best, nil
}

// loadLead is how long the load runs before a measurement beside it begins.
const loadLead = time.Second

// iperf3Load is a TCP stream the way that the requests go, for as long as they are made.
func iperf3Load(b *bed, e ends, c Cell, t timing) (command, []string) {
	dest := e
	dest.dest = e.load
	var server command
	if !e.loadServing {
		server = iperf3Server(b, e, c)
	}
	return server, iperf3Client(b, dest, timing{seconds: t.seconds + 2*loadLead})
}
