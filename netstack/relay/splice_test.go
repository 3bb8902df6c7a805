package relay

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 20 * time.Second

// loopbackPair returns the two ends of a TCP connection.
func loopbackPair(t testing.TB) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.AcceptTCP()
	if err != nil {
		dialled.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dialled.Close()
		accepted.Close()
	})
	deadline := time.Now().Add(patience)
	dialled.SetDeadline(deadline)
	return dialled, accepted
}

type outcome struct {
	counts Counts
	err    error
}

// record is a Port that admits whom ways lead to, and keeps how pairs ended.
type record struct {
	ways      Ways
	bytes     *Bytes
	connected atomic.Int32
	accepts   atomic.Int32 // that failed
	ended     chan outcome // of relayed pairs
	failed    chan error   // of the others
	waiters   chan Waiter  // not nil: clients wait
	left      chan error   // those that did in vain
	full      atomic.Bool
	held      atomic.Int32 // how often Full said so
}

func newRecord(live *Bytes) *record {
	if live == nil {
		live = new(Bytes)
	}
	return &record{bytes: live, ended: make(chan outcome, 64), failed: make(chan error, 64), left: make(chan error, 64)}
}

func (r *record) Admit(_ netip.AddrPort, w Waiter) (Ways, Admission) {
	switch {
	case r.ways.N == 0:
		return Ways{}, Refused
	case r.waiters != nil:
		r.waiters <- w
		return r.ways, Waiting
	}
	return r.ways, Admitted
}

func (r *record) Full() bool {
	if r.full.Load() {
		r.held.Add(1)
		return true
	}
	return false
}

func (r *record) Leave(_ netip.AddrPort, _ Waiter, err error) bool {
	r.left <- err
	return true
}

func (r *record) Connected()         { r.connected.Add(1) }
func (r *record) AcceptFailed(error) { r.accepts.Add(1) }
func (r *record) Moved() *Bytes      { return r.bytes }

func (r *record) Ended(_ netip.AddrPort, connected *Counts, err error) {
	if connected == nil {
		r.failed <- err
		return
	}
	r.ended <- outcome{*connected, err}
}

// fresh are sockets of the test's own namespace.
type fresh struct{ none atomic.Bool }

func (f *fresh) Take(family int) (int, bool) {
	if f.none.Load() {
		return -1, false
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil || Prepare(fd) != nil {
		panic(err)
	}
	return fd, true
}

func newSplicer(t testing.TB, sockets Sockets, connect time.Duration) *Splicer {
	t.Helper()
	s, err := NewSplicer(SplicerConfig{Loops: 2, Sockets: sockets, Connect: connect})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if n := pipesMade.Load(); n != 0 {
			t.Errorf("%d pipes are left", n)
		}
	})
	return s
}

// own takes the descriptor out of a connection.
func own(t testing.TB, c *net.TCPConn) (fd int) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err == nil {
		err = rc.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	}
	if err := errors.Join(err, c.Close(), prepare(fd)); err != nil {
		t.Fatal(err)
	}
	return fd
}

// relayed joins two connections in the first loop of s.
func relayed(t testing.TB, s *Splicer, a, b *net.TCPConn, r *record) {
	t.Helper()
	l := s.loops[0]
	p := &pair{loop: l, port: r, fd: [2]int{own(t, a), own(t, b)}, slot: noSlot}
	if !l.post(p.join) {
		t.Fatal("the loop has ended")
	}
}

// spliced returns the far ends of a relay that runs, and how it ends.
func spliced(t *testing.T, live *Bytes) (client, guest *net.TCPConn, ended <-chan outcome) {
	t.Helper()
	client, a := loopbackPair(t)
	guest, b := loopbackPair(t)
	r := newRecord(live)
	relayed(t, newSplicer(t, &fresh{}, patience), a, b, r)
	return client, guest, r.ended
}

func wait(t *testing.T, ended <-chan outcome) outcome {
	t.Helper()
	select {
	case o := <-ended:
		return o
	case <-time.After(patience):
		t.Fatal("the pair has not ended")
		return outcome{}
	}
}

// eventually polls what no event tells.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func mustWrite(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, c *net.TCPConn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v, want %q", got, err, want)
	}
}

func mustEnd(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d, %v, want the end of the stream", n, err)
	}
}

func mustBeReset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read: %v, want ECONNRESET", err)
	}
}

func TestSpliceHalfClose(t *testing.T) {
	for _, first := range []string{"client", "guest"} {
		t.Run(first+" first", func(t *testing.T) {
			client, guest, ended := spliced(t, nil)
			x, y := client, guest
			if first == "guest" {
				x, y = guest, client
			}
			mustWrite(t, x, "question")
			if err := x.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			mustRead(t, y, "question")
			mustEnd(t, y)
			mustWrite(t, y, "a longer answer")
			mustRead(t, x, "a longer answer")
			if err := y.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, x)
			o := wait(t, ended)
			want := Counts{ToGuest: 8, FromGuest: 15}
			if first == "guest" {
				want = Counts{ToGuest: 15, FromGuest: 8}
			}
			if o.err != nil || o.counts != want {
				t.Errorf("ended with %+v, %v, want %+v", o.counts, o.err, want)
			}
		})
	}
}

func TestSpliceReset(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, x, y *net.TCPConn){
		"at once": func(*testing.T, *net.TCPConn, *net.TCPConn) {},
		"after data": func(t *testing.T, x, y *net.TCPConn) {
			mustWrite(t, x, "data")
			mustRead(t, y, "data")
		},
		// The direction from x is over: only the watch after its end can see the reset.
		"after half close": func(t *testing.T, x, y *net.TCPConn) {
			if err := x.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, y)
		},
	} {
		for _, who := range []string{"client", "guest"} {
			t.Run(who+" "+name, func(t *testing.T) {
				client, guest, ended := spliced(t, nil)
				x, y := client, guest
				if who == "guest" {
					x, y = guest, client
				}
				prepare(t, x, y)
				if name == "after half close" {
					// close(2) with unread data resets a socket that has sent its FIN (RFC 2525 §2.17).
					mustWrite(t, y, "unread")
					eventually(t, "the answer arrives", func() bool { return queued(t, x) == 6 })
					x.Close()
				} else {
					Reset(x)
				}
				if name == "after half close" {
					// A FIN came before the reset, so y reads an end; it is writing that fails.
					eventually(t, "writing fails", func() bool {
						_, err := y.Write([]byte("x"))
						return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
					})
				} else {
					mustBeReset(t, y)
				}
				if o := wait(t, ended); !errors.Is(o.err, syscall.ECONNRESET) && !errors.Is(o.err, syscall.EPIPE) {
					t.Errorf("ended with %v, want a reset", o.err)
				}
			})
		}
	}
}

// queued is how many bytes lie unread in c.
func queued(t *testing.T, c *net.TCPConn) (n int) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	rc.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSpliceResetWhileStalled: the guest does not read, so the relay reads no
// more from the client either, and yet has to notice that the client is gone.
func TestSpliceResetWhileStalled(t *testing.T) {
	live := new(Bytes)
	client, guest, ended := spliced(t, live)
	client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := io.Copy(client, rand.New(rand.NewSource(1))); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("write to a guest that does not read: %v, want a timeout", err)
	}
	Reset(client)
	if o := wait(t, ended); !errors.Is(o.err, syscall.ECONNRESET) {
		t.Errorf("ended with %v, want ECONNRESET", o.err)
	}
	mustBeReset(t, guest)
}

// TestSpliceEarlyAnswer: a server that answers and closes without reading all
// resets the way in; its answer still has to arrive.
func TestSpliceEarlyAnswer(t *testing.T) {
	client, guest, ended := spliced(t, nil)
	go io.Copy(client, rand.New(rand.NewSource(1))) // fails by the reset in the end
	first := make([]byte, 1)
	if _, err := io.ReadFull(guest, first); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, guest, "413")
	guest.Close()
	mustRead(t, client, "413")
	if o := wait(t, ended); o.err == nil {
		t.Error("no error after a reset")
	}
}

func TestSpliceBulkBothWays(t *testing.T) {
	const size = 64 << 20
	live := new(Bytes)
	client, guest, ended := spliced(t, live)
	type sum struct {
		from string
		hash [sha256.Size]byte
		err  error
	}
	sums := make(chan sum, 4)
	for name, c := range map[string]*net.TCPConn{"client": client, "guest": guest} {
		go func() {
			h := sha256.New()
			_, err := io.Copy(c, io.TeeReader(io.LimitReader(rand.New(rand.NewSource(int64(len(name)))), size), h))
			sums <- sum{name, [sha256.Size]byte(h.Sum(nil)), errors.Join(err, c.CloseWrite())}
		}()
		go func() {
			h := sha256.New()
			n, err := io.Copy(h, c)
			if err == nil && n != size {
				err = fmt.Errorf("%d bytes", n)
			}
			peer := map[string]string{"client": "guest", "guest": "client"}[name]
			sums <- sum{peer, [sha256.Size]byte(h.Sum(nil)), err}
		}()
	}
	got := map[string][sha256.Size]byte{}
	moved := false
	for range 4 {
		s := <-sums
		if s.err != nil {
			t.Fatalf("%s: %v", s.from, s.err)
		}
		if other, ok := got[s.from]; ok && other != s.hash {
			t.Errorf("what %s sent is not what arrived", s.from)
		}
		got[s.from] = s.hash
		moved = moved || live.FromGuest.Load() > 0
	}
	o := wait(t, ended)
	if o.err != nil || o.counts.FromGuest != size || o.counts.ToGuest != size {
		t.Errorf("ended with %+v, %v", o.counts, o.err)
	}
	if live.FromGuest.Load() != size || live.ToGuest.Load() != size {
		t.Errorf("live: %d and %d", live.FromGuest.Load(), live.ToGuest.Load())
	}
	if o.counts.Spliced < size { // half of both ways together
		t.Errorf("only %d of %d bytes were spliced", o.counts.Spliced, 2*size)
	}
}

// TestSpliceCountsLive: the counters of a transfer that is not over have to move.
func TestSpliceCountsLive(t *testing.T) {
	live := new(Bytes)
	client, guest, ended := spliced(t, live)
	for _, size := range []int{1, 100, 1 << 20} {
		before := live.ToGuest.Load()
		go client.Write(make([]byte, size))
		if _, err := io.ReadFull(guest, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		eventually(t, fmt.Sprintf("%d bytes are counted", size), func() bool { return live.ToGuest.Load() == before+uint64(size) })
	}
	select {
	case o := <-ended:
		t.Fatalf("the pair has ended: %+v", o)
	default:
	}
}

// TestSpliceUrgent: splice(2) stops before an urgent byte, the relay must not.
func TestSpliceUrgent(t *testing.T) {
	client, guest, _ := spliced(t, nil)
	rc, err := client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	received := make([]byte, 1<<20+1)
	read := func(n int) {
		if _, err := io.ReadFull(guest, received[:n]); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		// A burst, so that the relay is splicing when the urgent byte comes.
		go client.Write(make([]byte, 1<<20))
		read(1 << 20)
		rc.Write(func(fd uintptr) bool {
			err = unix.Send(int(fd), []byte("!"), unix.MSG_OOB)
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		read(1)
		if received[0] != '!' {
			t.Fatalf("read %q in place of the urgent byte", received[0])
		}
	}
}

// BenchmarkSplice moves bytes from a client through the relay; loopback is the bound.
func BenchmarkSplice(b *testing.B) {
	client, x := loopbackPair(b)
	guest, y := loopbackPair(b)
	client.SetDeadline(time.Time{})
	guest.SetDeadline(time.Time{})
	relayed(b, newSplicer(b, &fresh{}, patience), x, y, newRecord(nil))
	piece := make([]byte, 128<<10)
	b.SetBytes(int64(len(piece)))
	b.ReportAllocs()
	go func() {
		for range b.N {
			if _, err := client.Write(piece); err != nil {
				return
			}
		}
	}()
	sink := make([]byte, len(piece))
	for range b.N {
		if _, err := io.ReadFull(guest, sink); err != nil {
			b.Fatal(err)
		}
	}
}

// TestSpliceSpreads: pairs with much to move do not stay in one loop.
func TestSpliceSpreads(t *testing.T) {
	s := newSplicer(t, &fresh{}, patience)
	const pairs, size = 4, 256 << 20
	sums := make(chan error, 2*pairs)
	for i := range pairs {
		client, a := loopbackPair(t)
		guest, b := loopbackPair(t)
		client.SetDeadline(time.Time{})
		relayed(t, s, a, b, newRecord(nil))
		piece := make([]byte, 128<<10)
		rand.New(rand.NewSource(int64(i))).Read(piece)
		go func() {
			for range size / len(piece) {
				if _, err := client.Write(piece); err != nil {
					sums <- err
					return
				}
			}
			sums <- client.CloseWrite()
		}()
		go func() {
			got := make([]byte, len(piece))
			for n := range size / len(piece) {
				if _, err := io.ReadFull(guest, got); err != nil {
					sums <- err
					return
				}
				if !bytes.Equal(got, piece) {
					sums <- fmt.Errorf("pair %d: piece %d is not what was sent", i, n)
					return
				}
			}
			_, err := guest.Read(got)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			sums <- err
		}()
	}
	eventually(t, "another loop has a pair", func() bool {
		seen := make(chan int)
		if !s.loops[1].post(func() {
			n := 0
			for _, slot := range s.loops[1].slots {
				if slot.pair != nil {
					n++
				}
			}
			seen <- n
		}) {
			t.Fatal("the loop has ended")
		}
		return <-seen > 0
	})
	for range 2 * pairs {
		if err := <-sums; err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkSpliceMessage sends a message through the relay and has it answered.
func BenchmarkSpliceMessage(b *testing.B) {
	client, x := loopbackPair(b)
	guest, y := loopbackPair(b)
	client.SetDeadline(time.Time{})
	guest.SetDeadline(time.Time{})
	relayed(b, newSplicer(b, &fresh{}, patience), x, y, newRecord(nil))
	go io.Copy(struct{ io.Writer }{guest}, struct{ io.Reader }{guest})
	message := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Write(message); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(client, message); err != nil {
			b.Fatal(err)
		}
	}
}

// TestSpliceAllocates nothing while bytes move, neither by copies nor by pipes.
func TestSpliceAllocates(t *testing.T) {
	client, guest, _ := spliced(t, nil)
	for _, size := range []int{64, 512 << 10} {
		piece, sink := make([]byte, size), make([]byte, size)
		write := make(chan struct{})
		go func() {
			for range write {
				client.Write(piece)
			}
		}()
		move := func() {
			write <- struct{}{}
			if _, err := io.ReadFull(guest, sink); err != nil {
				t.Fatal(err)
			}
		}
		move() // a pipe and a buffer are made once
		if n := testing.AllocsPerRun(200, move); n != 0 {
			t.Errorf("%d bytes: %v allocations", size, n)
		}
		close(write)
	}
}

func TestSplicerClose(t *testing.T) {
	client, a := loopbackPair(t)
	guest, b := loopbackPair(t)
	s, r := newSplicer(t, &fresh{}, patience), newRecord(nil)
	relayed(t, s, a, b, r)
	mustWrite(t, client, "x")
	mustRead(t, guest, "x")
	s.Close()
	s.Close()
	if o := wait(t, r.ended); !errors.Is(o.err, ErrStopped) {
		t.Errorf("ended with %v, want ErrStopped", o.err)
	}
	mustBeReset(t, guest)
	mustBeReset(t, client)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Refilled()
	if v, err := s.Serve(fd, r); !errors.Is(err, ErrStopped) {
		t.Errorf("Serve after Close: %v, %v", v, err)
	}
}

// TestSpliceIdleHoldsNothing: idle connections must keep neither pipes nor buffers.
func TestSpliceIdleHoldsNothing(t *testing.T) {
	s := newSplicer(t, &fresh{}, patience)
	for range 2 * sparePipes {
		client, a := loopbackPair(t)
		guest, b := loopbackPair(t)
		relayed(t, s, a, b, newRecord(nil))
		go client.Write(make([]byte, 1<<20))
		if _, err := io.ReadFull(guest, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	held := make(chan int)
	if !s.loops[0].post(func() {
		n := 0
		for _, slot := range s.loops[0].slots {
			if p := slot.pair; p != nil && (p.dir[0].pipe != nil || p.dir[0].buf != nil || p.dir[1].pipe != nil || p.dir[1].buf != nil) {
				n++
			}
		}
		held <- n
	}) {
		t.Fatal("the loop has ended")
	}
	if n := <-held; n != 0 {
		t.Errorf("%d idle pairs hold a pipe or a buffer", n)
	}
	if n := pipesMade.Load(); n > sparePipes {
		t.Errorf("%d pipes are kept, want at most %d", n, sparePipes)
	}
}
