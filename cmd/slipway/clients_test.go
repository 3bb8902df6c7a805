//go:build e2e && clients

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests of the programs that call slirp4netns. make test-clients runs them: as an
// ordinary user with sub-ids, on a host that .make/clients.sh makes of a network, a
// mount and a PID namespace. SLIPWAY_BIN is the slirp4netns that the clients find;
// these tests ask nothing of it but what its clients ask.

// The addresses of that host: its network card wan0 has all of them.
const (
	clientsHost  = "192.0.2.1"
	clientsOther = "192.0.2.2"
	clientsHost6 = "2001:db8::1"
	clientsCard  = "wan0"
)

// portClients are clients of a published port, by the address of the host to which they
// connect, and who they are for a program behind slirp4netns' own port forwarding.
//
// The third is the first once more: upstream loses what is answered to a UDP client on
// loopback after one that is not.
var portClients = []struct{ host, seen string }{
	{"127.0.0.1", gateway4},
	{clientsHost, clientsHost},
	{"127.0.0.1", gateway4},
}

// ran is a line that make test-clients shows: what a test did with which client.
func ran(format string, args ...any) { fmt.Printf("ran: "+format+"\n", args...) }

// needs is where the programs are; without one of them the test is skipped.
func needs(t *testing.T, programs ...string) (first string) {
	t.Helper()
	for i, name := range programs {
		p, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("no %s on this machine: make deps-clients installs it where the distribution has it", name)
		}
		if i == 0 {
			first = p
		}
	}
	return first
}

// isUpstream tells whether the program under test is the original, of which some
// things are known to be broken.
func isUpstream(t *testing.T) bool {
	t.Helper()
	out, err := exec.Command(os.Getenv("SLIPWAY_BIN"), "--version").Output()
	if err != nil {
		t.Fatalf("--version: %v", err)
	}
	return !bytes.Contains(bytes.ToLower(out), []byte("slipway"))
}

// A shim stands in a client's way to slirp4netns: it notes each call and then becomes
// the program, in the process that the client started.
type shim struct {
	t    *testing.T
	path string // of the shim, whose base name is slirp4netns
	log  string
}

// call is one start of slirp4netns.
type call struct {
	pid  int
	args []string
}

func newShim(t *testing.T, program string) *shim {
	t.Helper()
	dir := t.TempDir()
	s := &shim{t: t, path: filepath.Join(dir, "slirp4netns"), log: filepath.Join(dir, "calls")}
	script := fmt.Sprintf(`#!/bin/sh
line=$$
for a; do line="$line	$a"; done
printf '%%s\n' "$line" >>%s
exec %s "$@"
`, s.log, program)
	if err := os.WriteFile(s.path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

// calls are the calls up to now that were to make a network: not those for --help or
// --version.
func (s *shim) calls() []call {
	s.t.Helper()
	b, err := os.ReadFile(s.log)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Fatal(err)
	}
	var out []call
	for line := range strings.Lines(string(b)) {
		words := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		pid, err := strconv.Atoi(words[0])
		if err != nil {
			s.t.Fatalf("the shim notes %q", line)
		}
		if len(words) == 2 && (words[1] == "--help" || words[1] == "--version") {
			continue
		}
		out = append(out, call{pid: pid, args: words[1:]})
	}
	return out
}

// last is the latest call, and the process must be the one that serves: it is still
// there, and holds each of the words somewhere in its arguments, in this order.
func (s *shim) last(words ...string) call {
	s.t.Helper()
	calls := s.calls()
	if len(calls) == 0 {
		s.t.Fatal("nobody called slirp4netns")
	}
	c := calls[len(calls)-1]
	line := " " + strings.Join(c.args, " ") + " "
	rest := line
	for _, w := range words {
		_, after, ok := strings.Cut(rest, " "+w)
		if !ok {
			s.t.Errorf("slirp4netns was called with%s: no %q where it was expected", line, w)
			break
		}
		rest = after
	}
	if !running(c.pid) {
		s.t.Errorf("process %d, slirp4netns%s, is gone while it is needed", c.pid, line)
	}
	return c
}

// confined checks that every thread of the started process has given up what the
// options --enable-sandbox and --enable-seccomp name.
func (s *shim) confined(c call) {
	s.t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", c.pid))
	if err != nil {
		s.t.Error(err)
		return
	}
	for _, task := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", c.pid, task.Name()))
		if err != nil {
			continue // ended meanwhile
		}
		status := statusFields(string(b))
		ok := status["NoNewPrivs"] == "1" && status["Seccomp"] == "2"
		// CAP_NET_BIND_SERVICE is number 10: linux/capability.h.
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			caps, err := strconv.ParseUint(status[set], 16, 64)
			ok = ok && err == nil && caps&^(1<<10) == 0
		}
		if !ok {
			s.t.Errorf("slirp4netns is not confined in thread %s: NoNewPrivs %s, Seccomp %s, CapInh %s, CapPrm %s, CapEff %s, CapBnd %s, CapAmb %s",
				task.Name(), status["NoNewPrivs"], status["Seccomp"], status["CapInh"], status["CapPrm"], status["CapEff"], status["CapBnd"], status["CapAmb"])
			return
		}
	}
}

// handshake is for a client that cannot run its containers on this machine, for a
// reason that is the last line of what it says: it must still have called slirp4netns
// with these words, in any order, and ended it. The test is skipped.
func (s *shim) handshake(reason string, words ...string) {
	s.t.Helper()
	calls := s.calls()
	if len(calls) == 0 {
		s.t.Fatalf("nobody called slirp4netns; but this machine cannot run the client's containers: %s", reason)
	}
	for _, c := range calls {
		line := " " + strings.Join(c.args, " ")
		for _, w := range words {
			if !strings.Contains(line, " "+w) {
				s.t.Errorf("slirp4netns was called with%s, without %q", line, w)
			}
		}
	}
	s.over()
	lines := strings.Split(strings.TrimSpace(reason), "\n")
	s.t.Skipf("slirp4netns is called as it should be; more cannot be tested, for this machine does not run the client: %s", lines[len(lines)-1])
}

// over checks that no slirp4netns that a client started is left.
func (s *shim) over() {
	s.t.Helper()
	for _, c := range s.calls() {
		eventually(s.t, patience, fmt.Sprintf("the end of process %d, slirp4netns %s", c.pid, strings.Join(c.args, " ")),
			func() bool { return !running(c.pid) })
	}
}

// nothingLeft checks that no descendant of the test is left whose command line has one
// of the words.
func nothingLeft(t *testing.T, words ...string) {
	t.Helper()
	var left string
	eventually(t, patience, "the end of every process", func() bool {
		left = ""
		for pid, line := range descendants(t, 1) {
			for _, w := range words {
				if pid != os.Getpid() && strings.Contains(line, w) {
					left += fmt.Sprintf("%d %s\n", pid, line)
				}
			}
		}
		return left == ""
	})
}

// running tells whether there is a process pid; one that nobody has waited for yet is
// none.
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	rest := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return len(rest) > 0 && rest[0] != "Z" && rest[0] != "X"
}

var shortDirs atomic.Int32

// shortDir is a directory of the test's whose path leaves room for the 80 bytes that
// Podman adds to one for the API socket, which can have 107.
func shortDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(os.TempDir(), strconv.Itoa(int(shortDirs.Add(1))))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// hostAnswer tells every client that comes to a port of the host who it seems to be;
// it is the same port for TCP and UDP, and of addr alone.
func hostAnswer(t *testing.T, addr string) int {
	t.Helper()
	for range 50 {
		l := hostListen(t, "tcp", at(addr, 0))
		port := portOf(t, l.Addr())
		c, err := net.ListenPacket("udp", at(addr, port))
		if errors.Is(err, unix.EADDRINUSE) {
			continue // a client's, which may have any
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go answerStreams(l)
		go func() { _ = answerPackets(c, strconv.Itoa(port)) }()
		return port
	}
	t.Fatalf("no port that is free for TCP and UDP at %s", addr)
	return 0
}

// from is the address that an answer heard.
func from(said string) string {
	addr, _, _ := strings.Cut(said, " ")
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return said
	}
	return host
}

// reachesOut checks what every client's container needs: TCP, large and small UDP
// datagrams, and DNS, by UDP and TCP and by the container's own resolv.conf.
func reachesOut(t *testing.T, a *agent, dns string) {
	t.Helper()
	port := hostAnswer(t, clientsHost)
	for _, network := range []string{"tcp", "udp"} {
		if said := a.do("hear", network, at(clientsHost, port)); from(said) != clientsHost {
			t.Errorf("%s outwards: the host sees %q, not %s", network, said, clientsHost)
		}
	}
	a.do("talk", at(clientsHost, hostEcho(t, "tcp4", at(clientsHost, 0))), 0, 1<<20)
	udp := hostEcho(t, "udp4", at(clientsHost, 0))
	for _, size := range []int{1, 1472, 8192} {
		a.do("packet", "udp", at(clientsHost, udp), size)
	}
	for _, network := range []string{"udp", "tcp"} {
		if got := a.do("query", network, at(dns, 53)); got != clientsHost {
			t.Errorf("the resolver answers %q by %s, not %s", got, network, clientsHost)
		}
	}
}

// hasResolver checks that the client has led the container's resolv.conf to the network.
func hasResolver(t *testing.T, a *agent) {
	t.Helper()
	if got := a.do("resolve", "www.example.com."); got != clientsHost {
		t.Errorf("www.example.com is %q, not %s", got, clientsHost)
	}
}

// published checks that what comes to addr of the host reaches an agent's answer, and
// returns whom it sees as its client.
func published(t *testing.T, network, addr string) (client string) {
	t.Helper()
	var said string
	var err error
	// A client may listen before the way behind is complete, and a datagram may be lost.
	for begin := time.Now(); time.Since(begin) < patience/2; {
		if said, err = heard(network, addr); err == nil && said != "" {
			return from(said)
		}
	}
	t.Errorf("no answer by %s from %s: %q, %v", network, addr, said, err)
	return ""
}

// heard is hear for those who ask again.
func heard(network, addr string) (string, error) {
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if network != "udp" {
		b, err := io.ReadAll(c)
		return string(b), err
	}
	if _, err := io.WriteString(c, "?"); err != nil {
		return "", err
	}
	b := make([]byte, 1500)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// page serves a page over HTTP on the host and returns its URL and what it says.
func page(t *testing.T) (url, text string) {
	t.Helper()
	text = "a page of the host\n"
	l := hostListen(t, "tcp", at(clientsHost, 0))
	s := &http.Server{
		ReadHeaderTimeout: patience,
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }),
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return "http://" + l.Addr().String() + "/", text
}

// clientSays runs a command of a client, which must succeed, and returns what it says
// on its standard output.
func clientSays(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := clientTries(t, env, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// clientTries is clientSays for what may fail.
func clientTries(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	// Also for the cleanup, when the test's own context is over.
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	// What it leaves in the background may keep the pipes open.
	cmd.WaitDelay = 2 * time.Second
	var stdout, stderr output
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return "", fmt.Errorf("%s: %w\n%s%s", cmd, err, &stdout, &stderr)
	}
	return stdout.String(), nil
}

// clientEnv is the environment of a client that finds the shim first, with a home and a
// runtime directory of its own.
func clientEnv(t *testing.T, s *shim, more ...string) []string {
	t.Helper()
	dir := shortDir(t)
	for _, d := range []string{"h", "r"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	env := append(os.Environ(), "PATH="+filepath.Dir(s.path)+":"+os.Getenv("PATH"),
		"HOME="+filepath.Join(dir, "h"), "XDG_RUNTIME_DIR="+filepath.Join(dir, "r"), "TMPDIR="+dir)
	return append(env, more...)
}

// value is what env says of name: the last word counts.
func value(env []string, name string) string {
	out := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			out = v
		}
	}
	return out
}

// rootfs writes a root filesystem as a tar archive, of programs of this machine:
// busybox, and iperf3 with the libraries that it is linked to.
func rootfs(t *testing.T) string {
	t.Helper()
	busybox := needs(t, "busybox", "iperf3", "ldd")
	iperf3, err := exec.LookPath("iperf3")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(shortDir(t), "rootfs.tar")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name, source string) {
		b, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		add(tar.Header{Name: name, Mode: 0o755}, b)
	}
	for _, d := range []string{"bin", "dev", "etc", "lib64", "proc", "root", "sys", "tmp", "usr", "usr/bin", "var", "www"} {
		mode := int64(0o755)
		if d == "tmp" {
			mode = 0o1777
		}
		add(tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: mode}, nil)
	}
	file("bin/busybox", busybox)
	for _, applet := range []string{"cat", "httpd", "ip", "ls", "nc", "nslookup", "ping", "sh", "sleep", "wget"} {
		add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	file("usr/bin/iperf3", iperf3)
	libraries, err := exec.Command("ldd", iperf3).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", iperf3, err)
	}
	for _, word := range strings.Fields(string(libraries)) {
		if path.IsAbs(word) {
			file(word[1:], word)
		}
	}
	add(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/root:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\n"))
	add(tar.Header{Name: "www/index.html", Mode: 0o644}, []byte("a page of the container\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

// fetched gets a page of a published port.
func fetched(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	var text string
	eventually(t, patience, "a page from "+url, func() bool {
		r, err := client.Get(url)
		if err != nil {
			return false
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		text = string(b)
		return err == nil && r.StatusCode == http.StatusOK
	})
	return text
}

// gbits is what an iperf3 client says of the throughput that the receiver saw.
func gbits(t *testing.T, report string) float64 {
	t.Helper()
	var r struct {
		End struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
		Error string `json:"error"`
	}
	if err := json.Unmarshal([]byte(report), &r); err != nil || r.Error != "" {
		t.Fatalf("iperf3 says %q: %v", report, err)
	}
	return r.End.Received.BitsPerSecond / 1e9
}

// iperf3Server runs an iperf3 server on the host and returns its port.
func iperf3Server(t *testing.T) int {
	t.Helper()
	needs(t, "iperf3")
	port := freeTCP(t)
	p := start(t, exec.Command("iperf3", "--server", "--bind", clientsHost, "--port", strconv.Itoa(port), "--forceflush"))
	p.says("listening")
	return port
}
