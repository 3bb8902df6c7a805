package relay

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// endlessly writes to c until that fails.
func endlessly(c io.Writer) {
	piece := make([]byte, 64<<10)
	for {
		if _, err := c.Write(piece); err != nil {
			return
		}
	}
}

// settled waits until a number has stayed the same for a while, and returns it.
func settled(t *testing.T, what string, number func() int) int {
	t.Helper()
	last, since := -1, time.Now()
	eventually(t, what, func() bool {
		if n := number(); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
	return last
}

// unsent is how many bytes of a socket's send queue were not sent, SIOCOUTQNSD in
// linux/sockios.h.
func unsent(t *testing.T, c Socket) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int32
	err = raw.Control(func(fd uintptr) {
		const siocOutQNSD = 0x894b
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, siocOutQNSD, uintptr(unsafe.Pointer(&n))); errno != 0 {
			t.Error(errno)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// TestStalledGuestHoldsLittle: a guest that reads nothing has little wait for it, though its
// kernel has taken some.
func TestStalledGuestHoldsLittle(t *testing.T) {
	f := newFlow(t.Context(), t)
	ep := (<-f.ep).(*tcp.Endpoint)
	go endlessly(f.host)
	queued := settled(t, "the guest's kernel is full", func() int { return int(f.bytes.ToGuest.Load()) })
	if most := max(StartWindow, queued-unreadBytes); sendBufferUsed(ep) == 0 || sendBufferUsed(ep) > most {
		t.Errorf("%d bytes wait for the guest, want %d at most", sendBufferUsed(ep), most)
	}
	if got := f.all.Budget.Stats().Queued; got < int64(sendBufferUsed(ep)) || got > int64(2*sendBufferUsed(ep)) {
		t.Errorf("the budget counts %d bytes, %d are queued", got, sendBufferUsed(ep))
	}
}

// TestStalledHostHoldsLittle: a host that reads nothing has little wait for it, in gVisor and
// in the socket.
func TestStalledHostHoldsLittle(t *testing.T) {
	f := newFlow(t.Context(), t)
	ep := (<-f.ep).(*tcp.Endpoint)
	f.host.SetReadBuffer(64 << 10)
	go endlessly(f.guest)
	passed := settled(t, "the host's kernel is full", func() int { return int(f.bytes.FromGuest.Load()) })
	if n := unsent(t, <-f.ours); n > 2*unsentBytes {
		t.Errorf("%d bytes wait unsent in the socket, want %d at most", n, 2*unsentBytes)
	}
	used := settled(t, "the guest sends no more", func() int { return receiveMemUsed(ep) })
	if most := max(StartBuffer, 2*bufferOfWindow*passed/earnedPart); used > most {
		t.Errorf("%d bytes wait for the host, want %d at most", used, most)
	}
}

// TestWindowsAreEarned: a stream gets its large windows, and keeps them.
func TestWindowsAreEarned(t *testing.T) {
	f := newFlow(t.Context(), t)
	ep := <-f.ep
	size := int64(earnedPart * MaxWindow * 2)
	for _, way := range []struct {
		name     string
		from, to net.Conn
		window   func() int64
	}{
		{"to the guest", f.host, f.guest, ep.SocketOptions().GetSendBufferSize},
		{"to the host", f.guest, f.host, ep.SocketOptions().GetReceiveBufferSize},
	} {
		if got := way.window(); got > StartBuffer {
			t.Errorf("%s: the window begins with %d bytes", way.name, got)
		}
		go endlessly(way.from)
		if _, err := io.CopyN(io.Discard, way.to, size); err != nil {
			t.Fatal(err)
		}
		if got := way.window(); got < 8*StartBuffer {
			t.Errorf("%s: after %d bytes the window is %d bytes", way.name, size, got)
		}
	}
}

// TestBudget: flows that have earned large windows and then stall share the budget, another
// one goes on beside them, and when memory stays tight one of them is reset.
func TestBudget(t *testing.T) {
	before := patienceWithStalled
	patienceWithStalled = 500 * time.Millisecond
	defer func() { patienceWithStalled = before }()
	const bytes, stalled = 8 << 20, 6
	told := make(chan int, stalled)
	all := &Guest{Budget: NewBudget(BudgetConfig{Bytes: bytes, Flows: 8, Reset: func(queued int) { told <- queued }})}
	go all.Budget.Watch(t.Context())
	within := func() {
		t.Helper()
		if s := all.Budget.Stats(); s.Queued > bytes+bytes/8 {
			t.Fatalf("%d bytes are queued, the budget is %d", s.Queued, bytes)
		}
	}
	beside := newFlowOf(t.Context(), t, all)
	go endlessly(beside.host)
	go io.Copy(io.Discard, beside.guest)
	ended := make(chan error, stalled)
	for range stalled {
		f := newFlowOf(t.Context(), t, all)
		go endlessly(f.host)
		if _, err := io.CopyN(io.Discard, f.guest, 16<<20); err != nil {
			t.Fatal(err)
		}
		go func() { ended <- <-f.done }()
		within()
	}
	eventually(t, "memory is tight", func() bool {
		within()
		return all.Budget.Stats().Bound > 0
	})
	var err error
	eventually(t, "a flow is reset", func() bool {
		within()
		select {
		case err = <-ended:
			return true
		default:
			return false
		}
	})
	if !errors.Is(err, ErrMemory) {
		t.Errorf("the first flow ended with %v, want %v", err, ErrMemory)
	}
	if queued := <-told; queued <= StartWindow {
		t.Errorf("the first flow that was reset had %d bytes queued", queued)
	}
	passed := beside.bytes.ToGuest.Load()
	eventually(t, "the flow beside them goes on", func() bool {
		within()
		return beside.bytes.ToGuest.Load() > passed+16<<20
	})
}

// TestBudgetOfOneWhoPushes: who sends beyond its windows is refused, and with a look at what
// is there others are not.
func TestBudgetOfOneWhoPushes(t *testing.T) {
	b := NewBudget(BudgetConfig{Bytes: 1 << 20, Flows: 8})
	// Nothing is queued: each look finds that out.
	for range 1000 {
		b.mu.Lock()
		b.notBefore = time.Time{}
		b.mu.Unlock()
		if n := rand.IntN(64 << 10); !b.Take(n) {
			t.Fatalf("%d bytes are refused with nothing queued", n)
		}
	}
	b.mu.Lock() // somebody looks already
	defer b.mu.Unlock()
	for n := 0; b.Take(64 << 10); n++ {
		if n > 100 {
			t.Fatal("a hundred frames of 64 KiB are taken with a budget of 1 MiB")
		}
	}
}

// TestMemoryIsReturned: once, when much less is needed than before.
func TestMemoryIsReturned(t *testing.T) {
	returned := 0
	b := NewBudget(BudgetConfig{Bytes: 64 << 20, Flows: 8, Return: func() { returned++ }})
	b.most = 64 << 20
	now := time.Now()
	for range 3 * returnAfter / watchTick {
		b.tend(now)
		now = now.Add(watchTick)
	}
	if returned != 1 {
		t.Errorf("memory was returned %d times, want once", returned)
	}
	if b.tend(now) {
		t.Error("an idle budget wants to be looked at")
	}
}
