package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// serving is what a server of the generator prints once it can be connected to.
const serving = "serving"

// errGenerate is wrapped by every error about what the generator was asked for or found.
var errGenerate = errors.New("bench generate")

// generated is what a client of the generator prints, in JSON.
type generated struct {
	Count   uint64   `json:"count"`  // requests that were answered
	Failed  uint64   `json:"failed"` // requests that were not
	Error   string   `json:"error"`  // of the first that failed
	Seconds float64  `json:"seconds"`
	Bytes   uint64   `json:"bytes"` // of payload, both ways
	Latency *Latency `json:"latency,omitempty"`
}

// Generate does what iperf3 cannot, in the namespace that it is started in (slipway bench
// generate): echo-server ADDR, latency ADDR SECONDS, connect ADDR SECONDS AT-ONCE,
// dns-server ADDR, dns ADDR SECONDS AT-ONCE, idle ADDR FLOWS, path NAME NAME MILLISECONDS LOST-PER-THOUSAND. A server ends
// when it is killed.
func Generate(args []string, out io.Writer) error {
	kinds := map[string]struct {
		words int
		run   func(args []string) (*generated, error)
	}{
		"echo-server": {1, func(args []string) (*generated, error) { return nil, serveEcho(args[0], out) }},
		"dns-server":  {1, func(args []string) (*generated, error) { return nil, serveDNS(args[0], out) }},
		"idle":        {2, func(args []string) (*generated, error) { return nil, holdFlows(args, out) }},
		"path":        {4, func(args []string) (*generated, error) { return nil, servePath(args, out) }},
		"latency":     {2, askEach(generateLatency)},
		"connect":     {3, askEach(generateConnects)},
		"dns":         {3, askEach(generateQueries)},
	}
	if len(args) == 0 {
		return fmt.Errorf("%w: no kind; it is started by slipway bench", errGenerate)
	}
	kind, ok := kinds[args[0]]
	if !ok || len(args)-1 != kind.words {
		return fmt.Errorf("%w %q: want a known kind and its arguments; it is started by slipway bench", errGenerate, args)
	}
	result, err := kind.run(args[1:])
	if err != nil || result == nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(result); err != nil {
		return fmt.Errorf("%w: write the result: %w", errGenerate, err)
	}
	return nil
}

// askEach reads the arguments of a client: ADDR SECONDS [AT-ONCE].
func askEach(client func(dest netip.AddrPort, duration time.Duration, atOnce int) (*generated, error)) func([]string) (*generated, error) {
	return func(args []string) (*generated, error) {
		dest, err := netip.ParseAddrPort(args[0])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errGenerate, err)
		}
		seconds, err := strconv.ParseFloat(args[1], 64)
		if err != nil || !(seconds > 0 && seconds <= maxDuration.Seconds()) {
			return nil, fmt.Errorf("%w: %q: want a positive number of seconds", errGenerate, args[1])
		}
		atOnce := 1
		if len(args) > 2 {
			if atOnce, err = strconv.Atoi(args[2]); err != nil || atOnce < 1 {
				return nil, fmt.Errorf("%w: %q: want a positive number", errGenerate, args[2])
			}
		}
		return client(dest, time.Duration(seconds*float64(time.Second)), atOnce)
	}
}

// parseGenerated reads the output of a client of the generator.
func parseGenerated(out []byte, c Cell) (Sample, error) {
	var g generated
	if err := json.Unmarshal(out, &g); err != nil {
		return Sample{}, fmt.Errorf("%w printed no JSON but %.120q: %w", errGenerate, out, err)
	}
	const most = 0.01 // of the requests may fail: UDP loses some
	if all := g.Count + g.Failed; g.Count == 0 || g.Seconds <= 0 || float64(g.Failed) > most*float64(all) {
		return Sample{}, fmt.Errorf("%w: %d of %d requests failed in %g seconds: %s", errGenerate, g.Failed, all, g.Seconds, g.Error)
	}
	s := Sample{
		Value: float64(g.Count) / g.Seconds, Seconds: g.Seconds, Bytes: g.Bytes, Latency: g.Latency,
		Loss: float64(g.Failed) / float64(g.Count+g.Failed),
	}
	if c.Unit == UnitSeconds {
		if g.Latency == nil {
			return Sample{}, fmt.Errorf("%w: no latencies", errGenerate)
		}
		s.Value = g.Latency.P50
	}
	return s, nil
}

// generate is the command line of the generator.
func (b *bed) generate(enter []string, args ...string) []string {
	return in(enter, append([]string{b.self, "bench", "generate"}, args...)...)
}

// anyAddress is where a server of the generator listens, in whatever namespace it is.
func anyAddress(port uint16) string {
	return netip.AddrPortFrom(netip.IPv4Unspecified(), port).String()
}

// askArgs are the arguments of a client of the generator.
func askArgs(e ends, t timing) []string {
	return []string{e.dest.String(), strconv.FormatFloat(t.seconds.Seconds(), 'g', -1, 64)}
}

// announce that a server serves.
func announce(out io.Writer) error {
	if _, err := fmt.Fprintln(out, serving); err != nil {
		return fmt.Errorf("%w: %w", errGenerate, err)
	}
	return nil
}

// selfPath is where this program is. Who enters another namespace before it starts the
// program cannot do that by /proc/self/exe.
func selfPath() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	return path, nil
}
