package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// nginxServer serves pages of a fixed size from memory. It says that it is ready by its
// log of notices, which it writes to the terminal.
func nginxServer(b *bed, e ends, c Cell) command {
	return command{in(e.server, b.programs["nginx"], "-p", b.dir, "-e", "/dev/stderr", "-c", filepath.Join(b.dir, "nginx.conf")), "start worker process"}
}

// pageSizes in bytes.
var pageSizes = []int{100, 100_000}

// writePages makes what nginx needs in the run's own directory.
func (b *bed) writePages() error {
	for _, size := range pageSizes {
		name := filepath.Join(b.dir, strconv.Itoa(size))
		if err := os.WriteFile(name, []byte(strings.Repeat("x", size)), 0o644); err != nil {
			return fmt.Errorf("write a page of %d bytes: %w", size, err)
		}
	}
	text := fmt.Sprintf(`daemon off;
user root root;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 1024; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000;
	open_file_cache max=10;
	client_body_temp_path %[1]s/nginx-body;
	proxy_temp_path %[1]s/nginx-proxy;
	fastcgi_temp_path %[1]s/nginx-fastcgi;
	uwsgi_temp_path %[1]s/nginx-uwsgi;
	scgi_temp_path %[1]s/nginx-scgi;
	server { listen %[2]d; root %[1]s; }
}
`, b.dir, otherPort)
	if err := os.WriteFile(filepath.Join(b.dir, "nginx.conf"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write nginx' configuration: %w", err)
	}
	return nil
}

func wrkClient(b *bed, e ends, c Cell, t timing) []string {
	return in(e.client, b.programs["wrk"], "--threads", "1", "--connections", strconv.Itoa(c.Streams),
		"--duration", strconv.Itoa(int(t.seconds.Seconds()))+"s", "--latency", fmt.Sprintf("http://%s/%d", e.dest, c.Size))
}

var (
	wrkTotal   = regexp.MustCompile(`(\d+) requests in ([\d.]+)(m?s),`)
	wrkErrors  = regexp.MustCompile(`(?m)Non-2xx or 3xx responses: \d+|Socket errors: .*`)
	wrkLatency = regexp.MustCompile(`(?m)^\s+(50|99)%\s+([\d.]+)(us|ms|s)$`)
)

// parseWrk reads what wrk prints for people; it has no other format.
func parseWrk(out []byte, c Cell) (Sample, error) {
	total := wrkTotal.FindSubmatch(out)
	if total == nil {
		return Sample{}, fmt.Errorf("wrk printed no result but %.200q", out)
	}
	if complaint := wrkErrors.Find(out); complaint != nil {
		return Sample{}, fmt.Errorf("wrk: %s", complaint)
	}
	requests, err := strconv.ParseUint(string(total[1]), 10, 64)
	if err != nil {
		return Sample{}, fmt.Errorf("wrk: %w", err)
	}
	seconds, err := secondsOf(total[2], total[3])
	if err != nil {
		return Sample{}, err
	}
	if requests == 0 || seconds <= 0 {
		return Sample{}, fmt.Errorf("wrk: %d requests in %g seconds", requests, seconds)
	}
	s := Sample{Value: float64(requests) / seconds, Seconds: seconds, Bytes: requests * uint64(c.Size)}
	for _, m := range wrkLatency.FindAllSubmatch(out, -1) {
		value, err := secondsOf(m[2], m[3])
		if err != nil {
			return Sample{}, err
		}
		if s.Latency == nil {
			s.Latency = &Latency{}
		}
		if string(m[1]) == "50" {
			s.Latency.P50 = value
		} else {
			s.Latency.P99 = value
		}
	}
	return s, nil
}

// secondsOf a number with a unit.
func secondsOf(number, unit []byte) (float64, error) {
	value, err := strconv.ParseFloat(string(number), 64)
	if err != nil {
		return 0, fmt.Errorf("wrk: %w", err)
	}
	switch string(unit) {
	case "us":
		return value / 1e6, nil
	case "ms":
		return value / 1e3, nil
	}
	return value, nil
}
