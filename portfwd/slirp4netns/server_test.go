package slirp4netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait: far above what anything takes on a slow machine.
const patience = 20 * time.Second

// table is Forwards without sockets: ports above 60000 cannot be had.
type table struct {
	mu       sync.Mutex
	last     int
	forwards []Forward
}

func (t *table) Add(_ context.Context, f Forward) (Forward, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.Host.Port() > 60000 {
		return Forward{}, syscall.EADDRINUSE
	}
	if f.Host.Port() == 0 {
		f.Host = netip.AddrPortFrom(f.Host.Addr(), 40123)
	}
	t.last++
	f.ID = t.last
	t.forwards = append(t.forwards, f)
	return f, nil
}

func (t *table) List() []Forward {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.forwards)
}

func (t *table) Remove(id int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, f := range t.forwards {
		if f.ID == id {
			if f.Host.Port() == 7 {
				return syscall.EBADF
			}
			t.forwards = slices.Delete(t.forwards, i, i+1)
			return nil
		}
	}
	return fmt.Errorf("id %d: %w", id, ErrNoForward)
}

// synced is a log that several goroutines write.
type synced struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *synced) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *synced) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// serve runs a Server until the test ends, and returns its socket's path.
func serve(t *testing.T, cfg Config) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Forwards == nil {
		cfg.Forwards = &table{}
	}
	cfg.Guest = netip.MustParseAddr("10.0.2.100")
	s := NewServer(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("Serve does not end")
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket's file after the end: %v, want none", err)
		}
	})
	return s, path
}

func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// ask sends a request as Podman does, a line and a half-close, and returns the reply.
func ask(t *testing.T, path, request string) string {
	t.Helper()
	c := dial(t, path)
	if _, err := io.WriteString(c, request+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return answer(t, c)
}

func answer(t *testing.T, c net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("read the reply: %v", err)
	}
	return string(b)
}

func refused(desc string) string { return `{"error":{"desc":"bad request: ` + desc + `"}}` }

func TestRequests(t *testing.T) {
	add := func(arguments string) string { return `{"execute":"add_hostfwd","arguments":` + arguments + `}` }
	badAdd := func(key string) string { return refused("add_hostfwd: bad arguments." + key) }
	const empty = `{"return":{"entries":[]},"entries":[]}`

	for _, tt := range []struct{ name, request, want string }{
		{"nothing", ``, refused("cannot parse JSON")},
		{"blanks", ` `, refused("cannot parse JSON")},
		{"half an object", `{"execute":`, refused("cannot parse JSON")},
		{"no JSON", `execute`, refused("cannot parse JSON")},
		{"single quotes", `{'execute':'list_hostfwd'}`, refused("cannot parse JSON")},
		{"array", `[]`, refused("json_object() failed")},
		{"number", `1`, refused("json_object() failed")},
		{"text", `"list_hostfwd"`, refused("json_object() failed")},
		{"null", `null`, refused("json_object() failed")},
		{"empty object", `{}`, refused("no execute found")},
		{"execute is null", `{"execute":null}`, refused("no execute found")},
		{"execute is a number", `{"execute":1}`, refused("no execute found")},
		{"key in capitals", `{"EXECUTE":"list_hostfwd"}`, refused("no execute found")},
		{"unknown", `{"execute":"foo"}`, refused("unknown execute")},
		{"empty execute", `{"execute":""}`, refused("unknown execute")},
		{"trailing bytes", `{"execute":"list_hostfwd"}}}`, empty},
		{"second value", `{"execute":"list_hostfwd"} {"execute":"foo"}`, empty},
		{"unknown key", `{"id":1,"execute":"list_hostfwd","arguments":[1]}`, empty},
		{"not UTF-8", "{\"execute\":\"list_hostfwd\",\"x\":\"\xff\"}", empty},

		{"no arguments", `{"execute":"add_hostfwd"}`, badAdd("proto")},
		{"arguments are an array", add(`[]`), badAdd("proto")},
		{"no proto", add(`{"host_port":8080,"guest_port":80}`), badAdd("proto")},
		{"proto is a number", add(`{"proto":6,"host_port":8080,"guest_port":80}`), badAdd("proto")},
		{"tcp4", add(`{"proto":"tcp4","host_port":8080,"guest_port":80}`), badAdd("proto")},
		{"sctp", add(`{"proto":"sctp","host_port":8080,"guest_port":80}`), badAdd("proto")},
		{"capitals", add(`{"proto":"TCP","host_port":8080,"guest_port":80}`), badAdd("proto")},
		{"all bad: proto first", add(`{"proto":"x","host_addr":"x","host_port":0.5,"guest_addr":"x","guest_port":0}`), badAdd("proto")},
		{"then host_addr", add(`{"proto":"tcp","host_addr":"x","host_port":0.5,"guest_addr":"x","guest_port":0}`), badAdd("host_addr")},
		{"then host_port", add(`{"proto":"tcp","host_port":0.5,"guest_addr":"x","guest_port":0}`), badAdd("host_port")},
		{"then guest_addr", add(`{"proto":"tcp","host_port":8080,"guest_addr":"x","guest_port":0}`), badAdd("guest_addr")},
		{"then guest_port", add(`{"proto":"tcp","host_port":8080,"guest_port":0}`), badAdd("guest_port")},
		{"host name", add(`{"proto":"tcp","host_addr":"localhost","host_port":8080,"guest_port":80}`), badAdd("host_addr")},
		{"IPv6 for tcp", add(`{"proto":"tcp","host_addr":"::1","host_port":8080,"guest_port":80}`), badAdd("host_addr")},
		{"mapped address", add(`{"proto":"tcp6","host_addr":"::ffff:127.0.0.1","host_port":8080,"guest_addr":"fd00::64","guest_port":80}`), badAdd("host_addr")},
		{"address with a zone", add(`{"proto":"tcp6","host_addr":"fe80::1%lo","host_port":8080,"guest_addr":"fd00::64","guest_port":80}`), badAdd("host_addr")},
		{"IPv4 for tcp6", add(`{"proto":"tcp6","host_addr":"127.0.0.1","host_port":8080,"guest_addr":"fd00::64","guest_port":80}`), badAdd("host_addr")},
		{"host_addr is a number", add(`{"proto":"tcp","host_addr":1,"host_port":8080,"guest_port":80}`), badAdd("host_addr")},
		{"no host_port", add(`{"proto":"tcp","guest_port":80}`), badAdd("host_port")},
		{"host_port is a text", add(`{"proto":"tcp","host_port":"8080","guest_port":80}`), badAdd("host_port")},
		{"host_port too large", add(`{"proto":"tcp","host_port":65536,"guest_port":80}`), badAdd("host_port")},
		{"host_port far too large", add(`{"proto":"tcp","host_port":1e300,"guest_port":80}`), badAdd("host_port")},
		{"host_port beyond a float", add(`{"proto":"tcp","host_port":1e999,"guest_port":80}`), badAdd("host_port")},
		{"host_port negative", add(`{"proto":"tcp","host_port":-1,"guest_port":80}`), badAdd("host_port")},
		{"host_port in between", add(`{"proto":"tcp","host_port":18083.9,"guest_port":80}`), badAdd("host_port")},
		{"IPv6 guest for udp", add(`{"proto":"udp","host_port":8080,"guest_addr":"fd00::64","guest_port":80}`), badAdd("guest_addr")},
		{"no guest for tcp6", add(`{"proto":"tcp6","host_port":8080,"guest_port":80}`), badAdd("guest_addr")},
		{"no guest_port", add(`{"proto":"tcp","host_port":8080}`), badAdd("guest_port")},
		{"guest_port is a text", add(`{"proto":"tcp","host_port":8080,"guest_port":"80"}`), badAdd("guest_port")},
		{"guest_port too large", add(`{"proto":"tcp","host_port":8080,"guest_port":70000}`), badAdd("guest_port")},
		{"port that is taken", add(`{"proto":"tcp","host_port":60001,"guest_port":80}`), refused("add_hostfwd: slirp_add_hostfwd failed")},

		{"remove without arguments", `{"execute":"remove_hostfwd"}`, refused("remove_hostfwd: bad arguments.id")},
		{"remove without id", `{"execute":"remove_hostfwd","arguments":{}}`, refused("remove_hostfwd: bad arguments.id")},
		{"remove a text", `{"execute":"remove_hostfwd","arguments":{"id":"1"}}`, refused("remove_hostfwd: bad arguments.id")},
		{"remove half", `{"execute":"remove_hostfwd","arguments":{"id":1.5}}`, refused("remove_hostfwd: bad arguments.id")},
		{"remove what is not there", `{"execute":"remove_hostfwd","arguments":{"id":77}}`, refused("remove_hostfwd: bad arguments.id")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forwards := &table{}
			s, path := serve(t, Config{Forwards: forwards})
			if got := ask(t, path, tt.request); got != tt.want {
				t.Errorf("%s: got %s, want %s", tt.request, got, tt.want)
			}
			if len(forwards.List()) != 0 {
				t.Errorf("%s: added %v", tt.request, forwards.List())
			}
			failed := uint64(0)
			if strings.Contains(tt.want, "error") {
				failed = 1
			}
			if got := s.Stats(); got != (Stats{Requests: 1, Failed: failed}) {
				t.Errorf("counted %+v", got)
			}
		})
	}
}

// TestForwards adds, lists and removes, as clients do.
func TestForwards(t *testing.T) {
	forwards := &table{}
	_, path := serve(t, Config{Forwards: forwards})
	for _, tt := range []struct{ request, want string }{
		// As RootlessKit and Podman send it.
		{`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"127.0.0.1","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}}`, `{"return":{"id":1}}`},
		{`{"execute":"add_hostfwd","arguments":{"proto":"udp","host_addr":"","host_port":8080,"guest_addr":"","guest_port":53}}`, `{"return":{"id":2}}`},
		{`{"arguments":{"guest_port":1,"host_port":8.1e3,"host_addr":null,"guest_addr":"0.0.0.0","proto":"tcp"},"execute":"add_hostfwd"}`, `{"return":{"id":3}}`},
		{`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":0,"guest_port":80}}`, `{"return":{"id":4,"host_port":40123}}`},
		{`{"execute":"add_hostfwd","arguments":{"proto":"tcp6","host_addr":"::1","host_port":8080,"guest_addr":"fd00::64","guest_port":80}}`, `{"return":{"id":5}}`},
		{`{"execute":"add_hostfwd","arguments":{"proto":"udp6","host_port":8080,"guest_addr":"fd00::64","guest_port":65535}}`, `{"return":{"id":6}}`},
		{`{"execute":"remove_hostfwd","arguments":{"id":3}}`, `{"return":{}}`},
		{`{"execute":"remove_hostfwd","arguments":{"id":3}}`, refused("remove_hostfwd: bad arguments.id")},
		{`{"execute":"remove_hostfwd","arguments":{"id":4.0}}`, `{"return":{}}`},
	} {
		if got := ask(t, path, tt.request); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.request, got, tt.want)
		}
	}
	entries := `[{"id":1,"proto":"tcp","host_addr":"127.0.0.1","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80},` +
		`{"id":2,"proto":"udp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":53},` +
		`{"id":5,"proto":"tcp6","host_addr":"::1","host_port":8080,"guest_addr":"fd00::64","guest_port":80},` +
		`{"id":6,"proto":"udp6","host_addr":"::","host_port":8080,"guest_addr":"fd00::64","guest_port":65535}]`
	if got, want := ask(t, path, `{"execute":"list_hostfwd"}`), `{"return":{"entries":`+entries+`},"entries":`+entries+`}`; got != want {
		t.Errorf("list: got %s, want %s", got, want)
	}

	stuck := ask(t, path, `{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":7,"guest_port":7}}`)
	if got := ask(t, path, `{"execute":"remove_hostfwd","arguments":{"id":7}}`); got != refused("remove_hostfwd: slirp_remove_hostfwd failed") {
		t.Errorf("remove of %s that fails: %s", stuck, got)
	}
}

// TestLargeList has a reply that no socket buffer holds.
func TestLargeList(t *testing.T) {
	forwards := &table{}
	for range 4000 {
		_, err := forwards.Add(t.Context(), Forward{Proto: TCP, Host: netip.MustParseAddrPort("127.0.0.1:8080"), Guest: netip.MustParseAddrPort("10.0.2.100:80")})
		if err != nil {
			t.Fatal(err)
		}
	}
	_, path := serve(t, Config{Forwards: forwards})
	var reply struct {
		Return  entries
		Entries []entry
	}
	if err := json.Unmarshal([]byte(ask(t, path, `{"execute":"list_hostfwd"}`)), &reply); err != nil {
		t.Fatal(err)
	}
	if len(reply.Entries) != 4000 || len(reply.Return.Entries) != 4000 {
		t.Errorf("%d and %d entries, want 4000 each", len(reply.Entries), len(reply.Return.Entries))
	}
}

// TestManners is how clients send: in pieces, without a half-close, too much.
func TestManners(t *testing.T) {
	_, path := serve(t, Config{})
	const request, want = `{"execute":"list_hostfwd"}`, `{"return":{"entries":[]},"entries":[]}`

	t.Run("open end", func(t *testing.T) {
		c := dial(t, path)
		io.WriteString(c, request)
		if got := answer(t, c); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
	t.Run("byte by byte", func(t *testing.T) {
		c := dial(t, path)
		for i := range request {
			if _, err := io.WriteString(c, request[i:i+1]); err != nil {
				t.Fatal(err)
			}
		}
		if got := answer(t, c); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
	t.Run("largest", func(t *testing.T) {
		if got := ask(t, path, request+strings.Repeat(" ", maxRequest-2-len(request))); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
	t.Run("one more", func(t *testing.T) {
		if got := ask(t, path, request+strings.Repeat(" ", maxRequest-1-len(request))); got != refused("too large message") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("unfinished and too large", func(t *testing.T) {
		c := dial(t, path)
		io.WriteString(c, `{"execute":"`+strings.Repeat("x", maxRequest))
		if got := answer(t, c); got != refused("too large message") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("half a megabyte", func(t *testing.T) { // sent before anything is read
		if got := ask(t, path, strings.Repeat(" ", drainBytes/2)); got != refused("too large message") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("leaves at once", func(t *testing.T) {
		dial(t, path).Close()
		c := dial(t, path)
		io.WriteString(c, request)
		c.Close()
		if got := ask(t, path, request); got != want {
			t.Errorf("the next client got %s, want %s", got, want)
		}
	})
}

// TestSilence: clients that say nothing cost others nothing, and not for ever.
func TestSilence(t *testing.T) {
	s, path := serve(t, Config{Limits: Limits{Conns: 2, Request: 1500 * time.Millisecond}})
	const request, want = `{"execute":"list_hostfwd"}`, `{"return":{"entries":[]},"entries":[]}`
	start := time.Now()
	silent := []*net.UnixConn{dial(t, path)}
	if got := ask(t, path, request); got != want {
		t.Errorf("beside a silent client: got %s, want %s", got, want)
	}
	if waited := time.Since(start); waited >= 1500*time.Millisecond {
		t.Errorf("beside a silent client: answered after %s", waited)
	}
	silent = append(silent, dial(t, path))
	io.WriteString(silent[1], `{"execute":`)
	if got := ask(t, path, request); got != want { // waits until one has had its time
		t.Errorf("behind two silent clients: got %s, want %s", got, want)
	}
	for _, c := range silent {
		if got := answer(t, c); got != refused("cannot parse JSON") {
			t.Errorf("a silent client got %s", got)
		}
	}
	if got := s.Stats(); got.TimedOut != 2 || got.Waited == 0 {
		t.Errorf("counted %+v, want 2 timed out and some that waited", got)
	}
}

// TestCrowd: every one of many clients at once is served.
func TestCrowd(t *testing.T) {
	forwards := &table{}
	_, path := serve(t, Config{Forwards: forwards, Limits: Limits{Conns: 4}})
	const clients = 200
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			fmt.Fprintf(c, `{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":%d,"guest_port":80}}`, 1000+i)
			if got := answer(t, c); !strings.HasPrefix(got, `{"return":{"id":`) {
				t.Errorf("client %d got %s", i, got)
			}
		})
	}
	all.Wait()
	if got := len(forwards.List()); got != clients {
		t.Errorf("%d forwards, want %d", got, clients)
	}
}

// TestEnd: Serve does not wait for those who say nothing.
func TestEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Config{Forwards: &table{}, Limits: Limits{Conns: 1}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	dial(t, path) // has the slot
	dial(t, path) // waits for it
	start := time.Now()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Serve does not end")
	}
	if took := time.Since(start); took > DefaultLimits.Request/2 {
		t.Errorf("Serve ended after %s", took)
	}
}

func TestPeer(t *testing.T) {
	s, path := serve(t, Config{Peer: func(*net.UnixConn) error { return errors.New("not you") }})
	if got := ask(t, path, `{"execute":"list_hostfwd"}`); got != refused("permission denied") {
		t.Errorf("got %s", got)
	}
	if got := s.Stats(); got.Denied != 1 {
		t.Errorf("counted %+v", got)
	}
}

// TestOtherUser connects as another user, which takes root: as one thread of this
// process, whose effective uid is what SO_PEERCRED shows.
func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	_, path := serve(t, Config{})
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode()&0o001 == 0 {
			t.Skipf("%s is closed to others", dir)
		}
	}
	got := make(chan string)
	go func() {
		defer close(got)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)); errno != 0 {
			t.Errorf("setresuid: %v", errno)
			return
		}
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, `{"execute":"list_hostfwd"}`)
		got <- answer(t, c)
	}()
	if got := <-got; got != refused("permission denied") {
		t.Errorf("another user got %s", got)
	}
}

// TestLog: what a client sends is one line, and the reason of a failure another.
func TestLog(t *testing.T) {
	var log synced
	_, path := serve(t, Config{Log: &log})
	ask(t, path, "{\"execute\":\n\"add_hostfwd\",\"arguments\":{\"proto\":\"tcp\",\"host_port\":60001,\"guest_port\":80}}\n")
	want := "apifd event\n" +
		`api_handler: got request: {"execute": "add_hostfwd","arguments":{"proto":"tcp","host_port":60001,"guest_port":80}}` + "\n" +
		"api_handler: add_hostfwd: slirp_add_hostfwd failed: address already in use\n"
	if got := log.String(); got != want {
		t.Errorf("logged %q, want %q", got, want)
	}
}

// FuzzRequest: whatever is sent, the reply is one JSON object, only sound forwards are
// added, and what follows the first value changes nothing.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		``, `{`, `{}`, `[]`, `1`, `null`, `"x"`, ` {"execute":"list_hostfwd"} x`,
		`{"execute":1}`, `{"execute":"foo"}`, `{"execute":"list_hostfwd"}`,
		`{"execute":"add_hostfwd"}`, `{"execute":"add_hostfwd","arguments":null}`, `{"execute":"add_hostfwd","arguments":[]}`,
		`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}}`,
		`{"execute":"add_hostfwd","arguments":{"proto":"udp","host_port":0,"guest_port":65535}}`,
		`{"execute":"add_hostfwd","arguments":{"proto":"udp6","host_addr":"::1","host_port":1e3,"guest_addr":"fd00::64","guest_port":53}}`,
		`{"execute":"add_hostfwd","arguments":{"proto":"tcp6","host_addr":"::ffff:127.0.0.1","host_port":1,"guest_port":8}}`,
		`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":-1,"guest_port":8.5}}`,
		`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"fe80::1%lo","host_port":65536,"guest_port":1e999}}`,
		`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":1,"guest_addr":"::","guest_port":0}}`,
		`{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":1,"guest_addr":"0.0.0.0","guest_port":0}}`,
		`{"execute":"remove_hostfwd","arguments":{"id":1}}`, `{"execute":"remove_hostfwd","arguments":{"id":-1}}`,
		`{"execute":"remove_hostfwd","arguments":{"id":9223372036854775807}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) >= maxRequest {
			return
		}
		forwards := &table{}
		s := NewServer(Config{Forwards: forwards, Guest: netip.MustParseAddr("10.0.2.100"), Guest6: netip.MustParseAddr("fd00::64")})
		req, err := parse(data)
		if errors.Is(err, errIncomplete) {
			return
		}
		var reply any
		if err == nil {
			more, moreErr := parse(append(slices.Clone(data), "}x"...))
			if moreErr != nil || !maps.EqualFunc(req, more, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) }) {
				t.Errorf("%q: read as %q, with more behind it as %q, %v", data, req, more, moreErr)
			}
			reply, err = s.handle(t.Context(), req)
		}
		if err != nil {
			reply = refusal(err)
		}
		b, err := json.Marshal(reply)
		if err != nil {
			t.Fatalf("%q: reply: %v", data, err)
		}
		if got := string(b); !strings.HasPrefix(got, `{"return":{`) && !strings.HasPrefix(got, `{"error":{"desc":"bad request: `) {
			t.Errorf("%q: reply %s", data, got)
		}
		for _, f := range forwards.List() {
			want := ipv4
			if strings.HasSuffix(string(f.Proto), "6") {
				want = ipv6
			}
			if f.Proto.family() != want || f.Host.Port() == 0 || f.Guest.Port() == 0 || f.Guest.Addr().IsUnspecified() {
				t.Errorf("%q added %+v", data, f)
			}
			for _, a := range []netip.Addr{f.Host.Addr(), f.Guest.Addr()} {
				if !want.has(a) || a.Is4In6() || a.Zone() != "" {
					t.Errorf("%q added %+v", data, f)
				}
			}
		}
	})
}
