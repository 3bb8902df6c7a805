package monitor_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/netns/nstest"
)

// TestForwards: what an engine asked for is bound once, outlives the engine with its id
// and its port, and is free again when it was given back.
func TestForwards(t *testing.T) {
	tun := nstest.TUN(t)
	cfg := config(nstest.New(t).Target(t), tun, engineConfig{Mode: "locked"}, tcp(loopback))
	cfg.Forwards = true
	r := start(t, cfg)
	control := func() *session {
		s, err := talk("tcp", r.ready.Bound[0][0].String(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	s := control()
	listen := func(network, at, spec string) (id int, bound string) {
		got := s.ask(t, fmt.Sprintf("listen %s %s %s", network, at, spec))
		if _, err := fmt.Sscan(got, &id, &bound); err != nil {
			t.Fatalf("listen: %s", got)
		}
		return id, bound
	}
	id1, at1 := listen("tcp", "127.0.0.1:0", `"one"`)
	id2, _ := listen("udp", "127.0.0.1:0", `"two"`)
	id3, at3 := listen("tcp", "127.0.0.1:0", `"three"`)
	if id1 != 1 || id2 != 2 || id3 != 3 {
		t.Errorf("ids %d, %d, %d; want 1, 2, 3", id1, id2, id3)
	}
	if got := s.ask(t, "listen tcp "+at1+` "again"`); !strings.Contains(got, "already in use") {
		t.Errorf("a port that is taken: %s", got)
	}
	if got := s.ask(t, fmt.Sprint("unlisten ", id2)); got != "<nil>" {
		t.Errorf("unlisten: %s", got)
	}
	if got := s.ask(t, fmt.Sprint("unlisten ", id2)); !strings.Contains(got, "no such file") {
		t.Errorf("unlisten again: %s", got)
	}
	if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{at1, at3} {
		again, err := talk("tcp", at, 5*time.Second)
		if err != nil {
			t.Fatalf("forward at %s after the engine's death: %v", at, err)
		}
		again.Close()
	}
	killed := s.pid
	if s = control(); s.pid == killed || s.restarts != 1 {
		t.Errorf("engine %d after %d, %d restarts", s.pid, killed, s.restarts)
	}
	if got, want := s.ask(t, "forwards"), fmt.Sprintf(`1="one"@%s 3="three"@%s`, at1, at3); got != want {
		t.Errorf("the next engine got %s, want %s", got, want)
	}
	if id4, _ := listen("tcp", "127.0.0.1:0", `"four"`); id4 != 4 {
		t.Errorf("id %d, want 4: ids are not used again", id4)
	}
}

// TestForwardsUnasked: an engine that may not ask is ended, and so is one that asks for
// a file.
func TestForwardsUnasked(t *testing.T) {
	tun := nstest.TUN(t)
	for _, tt := range []struct {
		name, line string
		forwards   bool
	}{
		{"not allowed", `listen tcp 127.0.0.1:0 "x"`, false},
		{"a unix socket", `listen unix 127.0.0.1:0 "x"`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(nstest.New(t).Target(t), tun, engineConfig{Mode: "serve"}, tcp(loopback))
			cfg.Forwards = tt.forwards
			r := start(t, cfg)
			s, err := talk("tcp", r.ready.Bound[0][0].String(), 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := fmt.Fprintln(s, tt.line); err != nil {
				t.Fatal(err)
			}
			eventually(t, 5*time.Second, "the engine to end", func() bool { return !alive(s.pid) })
		})
	}
}
