//go:build e2e

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// burst is n connections, with parallel of them open at a time.
type burst struct{ n, parallel int }

// bursts of TestBurst. The largest is the last: what it leaves behind counts for the next.
var bursts = []burst{{3000, 3000}, {4000, 2000}, {8000, 2000}, {5000, 5000}}

func (b burst) String() string {
	if b.n == b.parallel {
		return fmt.Sprintf("%d at once", b.n)
	}
	return fmt.Sprintf("%d, %d in parallel", b.n, b.parallel)
}

// burstPatience bounds the life of each connection of a burst. On a machine that has other
// things to do, a burst takes its time.
const burstPatience = 90 * time.Second

// open makes the connections to an echo server, and returns how many were lost, and of
// which error. Those that are made at once are open at once: none is closed before all have
// had their echo.
func (b burst) open(addr string) (lost int, why string) {
	turn := make(chan struct{}, b.parallel)
	errs := make(chan error, b.n)
	var echoed sync.WaitGroup // what was begun together
	for i := range b.n {
		if i%b.parallel == 0 && b.n == b.parallel {
			echoed.Add(b.parallel)
		}
		turn <- struct{}{}
		go func() {
			errs <- oneOfBurst(addr, uint64(i), func() {
				if b.n == b.parallel {
					echoed.Done()
					echoed.Wait()
				}
			})
			<-turn
		}()
	}
	reasons := make(map[string]int)
	for range b.n {
		if err := <-errs; err != nil {
			lost++
			var errno syscall.Errno
			if text := err.Error(); errors.As(err, &errno) {
				reasons[errno.Error()]++
			} else {
				reasons[text[strings.LastIndexByte(text, ':')+1:]]++
			}
		}
	}
	for _, text := range slices.Sorted(maps.Keys(reasons)) {
		why += fmt.Sprintf(" %d %s,", reasons[text], strings.TrimSpace(text))
	}
	return lost, strings.Trim(why, " ,")
}

// oneOfBurst has its bytes, which are those of no other connection, back from an echo
// server. It calls done once, whatever has come of it.
func oneOfBurst(addr string, seed uint64, done func()) error {
	once := sync.OnceFunc(done)
	defer once()
	c, err := net.DialTimeout("tcp", addr, burstPatience)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(burstPatience)); err != nil {
		return err
	}
	want := make([]byte, 100)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for i := range want {
		want[i] = byte(rnd.Uint32())
	}
	if _, err := c.Write(want); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	once()
	if !bytes.Equal(got, want) {
		return errors.New("other bytes came back")
	}
	return nil
}

// agentBurst: burst ADDR N PARALLEL is how many connections were lost, and why.
func agentBurst(args []string) (string, error) {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	parallel, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	lost, why := burst{n, parallel}.open(args[0])
	return fmt.Sprintf("%d %s", lost, why), nil
}

// from is open in a guest.
func (b burst) from(guest *agent, addr string) (lost int, why string) {
	guest.t.Helper()
	text := guest.do("burst", addr, b.n, b.parallel)
	number, why, _ := strings.Cut(text, " ")
	lost, err := strconv.Atoi(number)
	if err != nil {
		guest.t.Fatalf("the agent says %q", text)
	}
	return lost, why
}

// burstFiles is how many descriptors a process has at the most that serves a burst.
const burstFiles = 18_000

// raiseFiles lets this process and those that it starts open as many files as they may.
func raiseFiles(t *testing.T) {
	t.Helper()
	needsFiles(t, burstFiles)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = limit.Max
	// Of syscall, which knows then that it is not to be lowered again for children.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, (*syscall.Rlimit)(&limit)); err != nil {
		t.Fatal(err)
	}
}

// TestBurst opens thousands of connections at once, out of a namespace and into it, and each
// connection carries its bytes. The table of what was lost is on standard output.
func TestBurst(t *testing.T) {
	if !onPrivateHostWithin(t, 9*time.Minute) {
		return
	}
	raiseFiles(t)
	t.Run("attach", func(t *testing.T) {
		// A network of its own for each: published ports leave fewer descriptors to the rest.
		guest, kernel, tap := newTarget(t), freeTCP(t), freeTCP(t)
		attachTo(t, "--pid", strconv.Itoa(guest.Process.Pid), "--host-access", "loopback")
		published := newTarget(t)
		attachTo(t, "--pid", strconv.Itoa(published.Process.Pid), "-p", at("127.0.0.1", kernel)+":80")
		other := newTarget(t)
		attachTo(t, "--pid", strconv.Itoa(other.Process.Pid), "--publish-path", "tap", "-p", at("127.0.0.1", tap)+":80")
		burstOut(t, guest, "slipway attach", none)
		burstIn(t, published, "slipway attach -p", kernel, none)
		burstIn(t, other, "slipway attach -p, by the TAP", tap, none)
	})
	for _, d := range drivers(t) {
		out, in := none, none
		if d.excused {
			if os.Getenv(burstPeerEnv) == "" {
				continue
			}
			out, in = anything, anything
		}
		t.Run(d.name, func(t *testing.T) {
			guest, s := d.guestOf(t)
			port := freeTCP(t)
			if a := s.add(forward{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: port, GuestPort: 80}); a.Error != nil {
				t.Fatal(a)
			}
			burstOut(t, guest, d.name+" as slirp4netns", out)
			burstIn(t, guest, d.name+" as slirp4netns, add_hostfwd", port, in)
		})
	}
}

// burstPeerEnv has TestBurst try slirp4netns, too, which takes five minutes.
const burstPeerEnv = "SLIPWAY_E2E_BURST_PEER"

// allowance is how many connections of a burst may be lost.
type allowance func(b burst) int

func none(burst) int       { return 0 }
func anything(b burst) int { return b.n }

// burstOut has a guest connect to an echo server of the host.
func burstOut(t *testing.T, guest *agent, name string, may allowance) {
	t.Helper()
	port := hostEcho(t, "tcp4", "127.0.0.1:0")
	guest.t = t
	for _, b := range bursts {
		begin := time.Now()
		lost, why := b.from(guest, at(gateway4, port))
		burstRow(t, name+", out", b, lost, why, time.Since(begin), may)
	}
}

// burstIn connects to an echo server of a guest, which is published at a port of the host.
func burstIn(t *testing.T, guest *agent, name string, port int, may allowance) {
	t.Helper()
	guest.t = t
	guest.do("echo", "tcp", ":80")
	for _, b := range bursts {
		begin := time.Now()
		lost, why := b.open(at("127.0.0.1", port))
		burstRow(t, name+", in", b, lost, why, time.Since(begin), may)
	}
}

func burstRow(t *testing.T, name string, b burst, lost int, why string, took time.Duration, may allowance) {
	t.Helper()
	fmt.Printf("| %s | %v | %d lost | %s | %.1f s |\n", name, b, lost, why, took.Seconds())
	if lost > may(b) {
		t.Errorf("%s, %v: %d lost, want %d at the most: %s", name, b, lost, may(b), why)
	}
}
