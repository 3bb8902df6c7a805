package bench

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseIperf3(t *testing.T) {
	tests := []struct {
		file string
		want Sample
	}{
		// Bytes are those of all intervals, the omitted one too; the speed is the receiver's.
		{"iperf3-forward.json", Sample{
			Value: 19158078973.610847, Seconds: 1.00079, Bytes: 2078670848 + 2394685440, Retransmits: 0,
			SenderCongestion: "reno", ReceiverCongestion: "reno",
		}},
		{"iperf3-reverse.json", Sample{
			Value: 19946052564.105125, Seconds: 0.999998, Bytes: 2010120086 + 2493251584, Retransmits: 5,
			SenderCongestion: "reno", ReceiverCongestion: "reno",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			output, err := os.ReadFile("testdata/" + tt.file)
			if err != nil {
				t.Fatal(err)
			}
			got, err := parseIperf3(output, Cell{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("parseIperf3(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseIperf3Errors(t *testing.T) {
	refused, err := os.ReadFile("testdata/iperf3-refused.json")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, output, want string }{
		{"refused", string(refused), "unable to connect to server: Connection refused"},
		{"nothing", " \n", "printed nothing"},
		{"no JSON", "iperf3: parameter error - bad option", `printed no JSON but "iperf3: parameter error`},
		{"not a number", `{"end":{"sum_received":{"bits_per_second":-nan}}}`, "printed no JSON"},
		{"nothing received", `{"end":{"sum_received":{"seconds":1,"bytes":0,"bits_per_second":0}}}`, "got 0 bytes in 1 seconds"},
		{"no time", `{"end":{"sum_received":{"seconds":0,"bytes":7,"bits_per_second":1}}}`, "got 7 bytes in 0 seconds"},
		{"no end", `{"start":{},"intervals":[]}`, "got 0 bytes"},
		{"interrupted", `{"end":{"sum_received":{"seconds":1,"bytes":7,"bits_per_second":56}},"error":"interrupt - the client has terminated"}`, "the client has terminated"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseIperf3([]byte(tt.output), Cell{})
			if !errors.Is(err, errIperf3) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("parseIperf3: %v, want an errIperf3 with %q", err, tt.want)
			}
		})
	}
}

func TestClientArgs(t *testing.T) {
	b := &bed{iperf3: "iperf3", far: map[distance]far{{50, 0}: {address: netip.MustParseAddr("198.18.0.2")}}}
	host, toHost := lane{}, lane{}
	if err := hostStart(t.Context(), b, &host); err != nil {
		t.Fatal(err)
	}
	toHost.toHost([]string{"nsenter"}, gateway)
	published := lane{ports: []port{{5301, 5201}, {5302, 5202}}}
	published.toContainer(nil)
	counted := timing{4 * time.Second, time.Second}
	tests := []struct {
		name string
		lane lane
		cell Cell
		t    timing
		want string
	}{
		{"loopback", host, Cell{Direction: DirectionLoopback}, counted, "iperf3 --json --client 127.0.0.1 --port 5201 --time 4 --connect-timeout 5000 --omit 1"},
		{"up", toHost, Cell{Direction: DirectionUp}, counted, "nsenter iperf3 --json --client 10.0.2.2 --port 5201 --time 4 --connect-timeout 5000 --omit 1"},
		{"down", toHost, Cell{Direction: DirectionDown}, counted, "nsenter iperf3 --json --client 10.0.2.2 --port 5201 --time 4 --connect-timeout 5000 --omit 1 --reverse"},
		{"both", toHost, Cell{Direction: DirectionBoth, Streams: 4}, counted, "nsenter iperf3 --json --client 10.0.2.2 --port 5201 --time 4 --connect-timeout 5000 --omit 1 --parallel 4 --bidir"},
		{"far away", toHost, Cell{Direction: DirectionUp, DelayMillis: 50}, counted, "nsenter iperf3 --json --client 198.18.0.2 --port 5201 --time 4 --connect-timeout 5000 --omit 1"},
		{"published down", published, Cell{Direction: DirectionDown}, warmupTiming, "iperf3 --json --client 127.0.0.1 --port 5301 --time 1 --connect-timeout 5000"},
		{"published up", published, Cell{Direction: DirectionUp}, warmupTiming, "iperf3 --json --client 127.0.0.1 --port 5301 --time 1 --connect-timeout 5000 --reverse"},
		{"datagrams", toHost, Cell{Workload: WorkloadUDP, Direction: DirectionDown, Size: 1400}, counted, "nsenter iperf3 --json --client 10.0.2.2 --port 5201 --time 4 --connect-timeout 5000 --udp --bandwidth 0 --length 1400 --reverse"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(workOf(tt.cell.Workload).ask(b, tt.lane.ends(b, tt.cell), tt.cell, tt.t), " ")
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("the client's arguments (-want +got):\n%s", diff)
			}
		})
	}
}
