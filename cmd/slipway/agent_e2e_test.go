//go:build e2e

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slipway/bench"
)

func init() { helpers["agent"] = serveAgent }

// An agent is a helper that does what a test tells it: one command a line on its
// standard input, one reply a line on its standard output.
type agent struct {
	*process
	in  io.WriteCloser
	out *bufio.Reader
}

// reply is what became of a command.
type reply struct {
	Err   string        `json:",omitempty"`
	Errno syscall.Errno `json:",omitempty"`
	Took  time.Duration // of the command
	Text  string        `json:",omitempty"`
}

// newAgent starts an agent in a container.
func newAgent(t *testing.T, options ...string) *agent {
	t.Helper()
	args := append([]string{"run", "--rm", "-i"}, withHelper(t, "agent")...)
	if sandboxOff() {
		args = append(args, "--sandbox", "off")
	}
	args = append(append(args, options...), "host", "/e2e")
	return startAgent(t, exec.Command(os.Getenv("SLIPWAY_BIN"), args...))
}

// startAgent starts cmd, which becomes an agent.
func startAgent(t *testing.T, cmd *exec.Cmd) *agent {
	t.Helper()
	var ends [4]*os.File
	for i := 0; i < len(ends); i += 2 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		ends[i], ends[i+1] = r, w
	}
	t.Cleanup(func() { ends[1].Close(); ends[2].Close() })
	cmd.Stdin, cmd.Stdout = ends[0], ends[3]
	a := &agent{process: start(t, cmd), in: ends[1], out: bufio.NewReader(ends[2])}
	ends[0].Close()
	ends[3].Close()
	if r := a.try("hello"); r.Text != "hello" {
		t.Fatalf("the agent says %+v", r)
	}
	return a
}

// try tells the agent to do something and returns what became of it.
func (a *agent) try(args ...any) reply {
	a.t.Helper()
	fmt.Fprintln(a.in, args...)
	line, err := a.out.ReadBytes('\n')
	if err != nil {
		a.t.Fatalf("agent: %v: %v\n%s", args, err, &a.stderr)
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		a.t.Fatalf("agent: %v: %q: %v", args, line, err)
	}
	return r
}

// do is try for what must succeed.
func (a *agent) do(args ...any) string {
	a.t.Helper()
	r := a.try(args...)
	if r.Err != "" {
		a.t.Fatalf("agent: %v: %s", args, r.Err)
	}
	return r.Text
}

// end ends the agent and waits until nothing of its container is left.
func (a *agent) end() {
	a.t.Helper()
	a.in.Close()
	if status := a.wait(); status != 0 {
		a.t.Errorf("the agent ended with status %d", status)
	}
}

// agentState is what an agent keeps from one command to the next.
type agentState struct {
	listeners map[string]net.Listener
	held      sync.WaitGroup
	sockets   []net.Conn // of spread and keep
	pings     net.PacketConn
	pages     pages
	mix       *mixServer

	path        *bench.Path
	pathDropped int64      // packets, until the last pathrest
	calmFlood   func() int // ends a flood
}

// serveAgent is the agent. It ends with its standard input.
func serveAgent([]string) error {
	s := &agentState{listeners: make(map[string]net.Listener)}
	commands := map[string]func(args []string) (string, error){
		"hello":      func([]string) (string, error) { return "hello", nil },
		"dial":       agentDial,
		"churn":      agentChurn,
		"talk":       agentTalk,
		"packet":     agentPacket,
		"ping":       agentPing,
		"query":      agentQuery,
		"send":       agentSend,
		"listen":     s.listen,
		"closefirst": s.closeFirst,
		"echo":       s.echo,
		"accept":     s.accept,
		"many":       agentMany,
		"spread":     s.spread,
		"swap":       s.swap,
		"mix":        agentMix,
		"servemix":   s.serveMix,
		"mixed":      s.mixed,
		"hold":       s.hold,
		"keep":       s.keep,
		"exec":       agentExec,
		"write":      agentWrite,
		"netif":      agentNetif,
		"arp":        agentARP,
		"dhcp":       agentDHCP,
		"dhcp6":      agentDHCP6,
		"solicit":    agentSolicit,
		"tell":       agentTell,
		"teller":     agentTeller,
		"probe":      agentProbe,
		"pmtu":       agentPMTU,
		"tcpoptions": agentTCPOptions,
		"watchpings": s.watchPings,
		"pinged":     s.pinged,
		"hear":       agentHear,
		"answer":     agentAnswer,
		"interface":  agentInterface,
		"resolve":    agentResolve,
		"path":       s.agentPath,
		"pathrest":   s.pathRest,
		"bulkserver": agentBulkServer,
		"bulk":       agentBulk,
		"pages":      s.servePages,
		"loads":      s.loadPages,
		"trouble":    s.pageTrouble,
		"flood":      s.flood,
		"calm":       s.calm,
		"steady":     s.steady,
		"burst":      agentBurst,
		"stalled":    s.stalled,
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		words := strings.Fields(in.Text())
		run, ok := commands[words[0]]
		if !ok {
			return fmt.Errorf("no command %q", words[0])
		}
		var r reply
		var err error
		begin := time.Now()
		r.Text, err = run(words[1:])
		r.Took = time.Since(begin)
		if err != nil {
			r.Err = err.Error()
			errors.As(err, &r.Errno)
		}
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	return in.Err()
}
