package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// omit is the time at the start of each measurement that is not counted.
	omit = time.Second
	// warmup is how long each row runs in the round that is not counted.
	warmup = time.Second
	// listening is what iperf3's server prints once it can be connected to.
	listening = "Server listening on"
)

// errIperf3 is wrapped by every error that iperf3 itself reported.
var errIperf3 = errors.New("iperf3")

// iperf3Document is what is read of the output of iperf3 --json.
type iperf3Document struct {
	Intervals []struct {
		Sum struct {
			Bytes uint64 `json:"bytes"`
		} `json:"sum"`
	} `json:"intervals"`
	End struct {
		SumSent struct {
			Retransmits uint64 `json:"retransmits"`
		} `json:"sum_sent"`
		SumReceived struct {
			Seconds       float64 `json:"seconds"`
			Bytes         uint64  `json:"bytes"`
			BitsPerSecond float64 `json:"bits_per_second"`
		} `json:"sum_received"`
		SenderCongestion   string `json:"sender_tcp_congestion"`
		ReceiverCongestion string `json:"receiver_tcp_congestion"`
	} `json:"end"`
	Error string `json:"error"`
}

// parseIperf3 reads the output of an iperf3 client. iperf3 exits 0 with --json even
// when it failed, so the document decides, not the exit status.
func parseIperf3(output []byte) (Sample, error) {
	if len(strings.TrimSpace(string(output))) == 0 {
		return Sample{}, fmt.Errorf("%w printed nothing", errIperf3)
	}
	var doc iperf3Document
	if err := json.Unmarshal(output, &doc); err != nil {
		return Sample{}, fmt.Errorf("%w printed no JSON but %.120q: %w", errIperf3, output, err)
	}
	if doc.Error != "" {
		return Sample{}, fmt.Errorf("%w: %s", errIperf3, doc.Error)
	}
	received := doc.End.SumReceived
	if received.Bytes == 0 || received.Seconds <= 0 {
		return Sample{}, fmt.Errorf("%w: the receiver got %d bytes in %g seconds", errIperf3, received.Bytes, received.Seconds)
	}
	s := Sample{
		Value:              received.BitsPerSecond,
		Seconds:            received.Seconds,
		Retransmits:        doc.End.SumSent.Retransmits,
		SenderCongestion:   doc.End.SenderCongestion,
		ReceiverCongestion: doc.End.ReceiverCongestion,
	}
	// The intervals hold the omitted second too, as does the CPU time.
	for _, i := range doc.Intervals {
		s.Bytes += i.Sum.Bytes
	}
	return s, nil
}

// serverArgs is the command line of a server that ends after one client.
func serverArgs(iperf3 string, port uint16) []string {
	return []string{iperf3, "--server", "--one-off", "--port", strconv.Itoa(int(port)), "--forceflush"}
}

// clientArgs is the command line of a client. Reverse: the server sends.
func clientArgs(iperf3 string, l lane, d Direction, seconds, omitted time.Duration) []string {
	args := []string{
		iperf3, "--json", "--client", l.dest.Addr().String(), "--port", strconv.Itoa(int(l.dest.Port())),
		"--time", strconv.Itoa(int(seconds.Seconds())), "--connect-timeout", "5000",
	}
	if omitted > 0 {
		args = append(args, "--omit", strconv.Itoa(int(omitted.Seconds())))
	}
	if d == l.reverse {
		args = append(args, "--reverse")
	}
	return args
}
