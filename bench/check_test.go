package bench

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// TestSockets: a connection of this process is found with its ports, the congestion
// control that it was given and an inode that is ours, and nobody else's.
func TestSockets(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	own, there := netip.MustParseAddrPort(conn.LocalAddr().String()).Port(), netip.MustParseAddrPort(l.Addr().String()).Port()

	found, err := sockets(0)
	if err != nil {
		t.Fatal(err)
	}
	owned, err := inodes(procfs, []int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	var connected, listens bool
	for _, s := range found {
		if s.local == own && s.remote == there && !s.listens {
			connected = true
			if !owned[s.inode] || s.congestion == "" {
				t.Errorf("the connection is %+v, want a congestion control and one of our inodes", s)
			}
		}
		listens = listens || s.listens && s.local == there && owned[s.inode]
	}
	if !connected || !listens {
		t.Errorf("connection found: %t, listener found: %t in %d sockets", connected, listens, len(found))
	}
}

// TestCheck: a driver that does not hold the connection fails, as does a connection with
// another congestion control.
func TestCheck(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	bystander, err := launch([]string{"sleep", "600"}, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer bystander.stop()
	dest := netip.MustParseAddrPort(l.Addr().String())
	text, err := os.ReadFile(congestionSysctl)
	if err != nil {
		t.Fatal(err)
	}
	around := &lane{program: "/usr/bin/sleep", drivers: []*process{bystander}}
	same := &bed{congestion: strings.TrimSpace(string(text))}
	err = around.check(same, ends{dest: dest}, workOf(WorkloadStream))
	// Others on this machine may have connections of another kind.
	if !errors.Is(err, errElsewhere) && (err == nil || !strings.Contains(err.Error(), "uses congestion control")) {
		t.Errorf("check of a driver that does not hold the connection: %v, want %v", err, errElsewhere)
	}
	err = (&lane{}).check(&bed{congestion: "none"}, ends{dest: dest}, workOf(WorkloadStream))
	if err == nil || !strings.Contains(err.Error(), "want none") {
		t.Errorf("check with another congestion control: %v", err)
	}
}

// TestIdentify: a driver whose processes do not run the program that was started fails.
func TestIdentify(t *testing.T) {
	p, err := launch([]string{"sleep", "600"}, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	b := &bed{programs: map[string]string{}, versions: map[string]Program{}}
	path, err := os.Readlink(procfs + "/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.identify(context.Background(), &lane{program: path, drivers: []*process{p}})
	if err == nil || !strings.Contains(err.Error(), "was started, but") {
		t.Errorf("identify: %v, want that something else runs", err)
	}
}

func TestParseMachine(t *testing.T) {
	m, err := parseMachine("cpu  100 10 200 4000 30 4 6 50 7 0\ncpu0 1 2 3\n")
	if err != nil || m.busy.Seconds() != 3.2 || m.stolen.Seconds() != 0.5 {
		t.Errorf("parseMachine: %+v, %v; want 3.2 s busy and 0.5 s stolen", m, err)
	}
	for _, text := range []string{"", "cpu 1 2\n", "intr 1 2 3 4 5 6 7 8 9\n", "cpu 1 2 3 4 5 6 7 x 9\n"} {
		if _, err := parseMachine(text); err == nil {
			t.Errorf("parseMachine(%q): no error", text)
		}
	}
}

func TestParseLinkBytes(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000 1 0 0 0 0 0 0 1000 1 0 0 0 0 0 0
  tap0: 11 2 0 0 0 0 0 0 22 3 0 0 0 0 0 0
`
	if n, err := parseLinkBytes(text); err != nil || n != 33 {
		t.Errorf("parseLinkBytes: %d, %v; want 33", n, err)
	}
	if _, err := parseLinkBytes("tap0: 1 2\n"); err == nil {
		t.Error("parseLinkBytes of half a line: no error")
	}
}
