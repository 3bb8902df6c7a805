package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/pipe"
	"gvisor.dev/gvisor/pkg/tcpip/link/qdisc/fifo"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

var (
	guestAddr = netip.MustParseAddr("192.0.2.100")
	hostAddr  = netip.MustParseAddr("192.0.2.2")
)

// stackPair is a guest's stack and ours, back to back.
type stackPair struct {
	guest, ours *stack.Stack
}

func newStack(t testing.TB, ep stack.LinkEndpoint, addr netip.Addr) *stack.Stack {
	t.Helper()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	if err := s.CreateNICWithOptions(1, ep, stack.NICOptions{QDisc: fifo.New(ep, 1, 1000)}); err != nil {
		t.Fatalf("create NIC: %s", err)
	}
	err := s.AddProtocolAddress(1, tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddrFromSlice(addr.AsSlice()).WithPrefix(),
	}, stack.AddressProperties{})
	if err != nil {
		t.Fatalf("add address: %s", err)
	}
	// As package netstack does.
	for _, o := range []tcpip.SettableTransportProtocolOption{
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: StartBuffer, Max: MaxBuffer},
		&tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: StartWindow, Max: MaxWindow},
	} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			t.Fatal(err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}})
	return s
}

func newPair(t testing.TB) *stackPair {
	t.Helper()
	a, b := pipe.New("\x02\x00\x00\x00\x00\x01", "\x02\x00\x00\x00\x00\x02", 1500)
	p := &stackPair{guest: newStack(t, a, guestAddr), ours: newStack(t, b, hostAddr)}
	t.Cleanup(func() {
		for _, s := range []*stack.Stack{p.guest, p.ours} {
			s.Close()
			s.RemoveNIC(1)
			s.Wait()
		}
	})
	return p
}

// flowTest is one flow: guest ⇄ relay ⇄ host.
type flowTest struct {
	guest *gonet.TCPConn
	host  *net.TCPConn
	bytes Bytes
	all   *Guest
	ep    chan tcpip.Endpoint // of ours
	ours  chan Socket         // towards the host
	done  chan error
	gone  chan struct{}
}

// newBudget is one that a single flow does not use up.
func newBudget() *Budget { return NewBudget(BudgetConfig{Bytes: 256 << 20, Flows: 8}) }

// newFlow connects a guest through Run to a socket of the host. ctx ends the
// relay.
func newFlow(ctx context.Context, t testing.TB) *flowTest {
	t.Helper()
	return newFlowOf(ctx, t, &Guest{Budget: newBudget()})
}

func newFlowOf(ctx context.Context, t testing.TB, all *Guest) *flowTest {
	t.Helper()
	p := newPair(t)
	f := &flowTest{all: all, ep: make(chan tcpip.Endpoint, 1), ours: make(chan Socket, 1), done: make(chan error, 1), gone: make(chan struct{})}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	fwd := tcp.NewForwarder(p.ours, StartWindow, 16, func(r *tcp.ForwarderRequest) {
		conn, err := net.Dial("tcp4", listener.Addr().String())
		if err != nil {
			r.Complete(true)
			return
		}
		var queue waiter.Queue
		ep, terr := r.CreateEndpoint(&queue)
		r.Complete(false)
		if terr != nil {
			conn.Close()
			f.done <- errors.New(terr.String())
			return
		}
		f.ep <- ep
		f.ours <- conn.(*net.TCPConn)
		f.done <- Run(ctx, ep, &queue, conn.(*net.TCPConn), f.all, func() { close(f.gone) }, &f.bytes)
	})
	p.ours.SetTransportProtocolHandler(tcp.ProtocolNumber, fwd.HandlePacket)
	dst := tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(hostAddr.AsSlice()), Port: 80}
	if f.guest, err = gonet.DialTCP(p.guest, dst, ipv4.ProtocolNumber); err != nil {
		t.Fatalf("dial from guest: %v", err)
	}
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f.host = conn.(*net.TCPConn)
	deadline := time.Now().Add(30 * time.Second)
	f.guest.SetDeadline(deadline)
	f.host.SetDeadline(deadline)
	t.Cleanup(func() { f.guest.Close(); f.host.Close() })
	return f
}

func (f *flowTest) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-f.done:
		return err
	case <-time.After(10 * time.Second):
		buf := make([]byte, 1<<16)
		t.Fatalf("the relay did not end:\n%s", buf[:runtime.Stack(buf, true)])
		return nil
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

// endless is an endpoint whose receive queue is never empty.
type endless struct{ tcpip.Endpoint }

func (endless) Read(w io.Writer, _ tcpip.ReadOptions) (tcpip.ReadResult, tcpip.Error) {
	n, _ := w.Write(make([]byte, 1000))
	return tcpip.ReadResult{Count: n, Total: n}, nil
}

func (endless) SocketOptions() *tcpip.SocketOptions {
	o := new(tcpip.SocketOptions)
	o.SetReceiveBufferSize(MaxBuffer, false)
	return o
}

func (endless) State() uint32 { return uint32(tcp.StateEstablished) }

// TestStoppedFlow: a flow that was stopped writes no more, whatever there is.
func TestStoppedFlow(t *testing.T) {
	far, host := loopbackPair(t)
	raw, err := host.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	f := &flow{ep: endless{}, host: host, raw: raw, guest: &Guest{Budget: newBudget()}, stopped: make(chan struct{})}
	o := newOutbound(f)
	f.stop(context.Canceled)
	if o.next() {
		t.Error("it would go on")
	}
	host.Close()
	if n, err := io.Copy(io.Discard, far); n != 0 || err != nil {
		t.Errorf("%d bytes were written, %v", n, err)
	}
}

// unpolled is a host's socket of which the poller never tells that there is room.
type unpolled struct {
	fd       int
	deadline time.Time
	waits    chan time.Time // their deadlines
	expired  chan struct{}  // the deadline has passed
	closed   chan struct{}
}

func (u *unpolled) SyscallConn() (syscall.RawConn, error) { return u, nil }
func (u *unpolled) SetDeadline(time.Time) error           { return nil }
func (u *unpolled) SetWriteDeadline(t time.Time) error    { u.deadline = t; return nil }
func (u *unpolled) Close() error                          { return nil }
func (u *unpolled) Control(f func(uintptr)) error         { f(uintptr(u.fd)); return nil }
func (u *unpolled) Read(func(uintptr) (done bool)) error  { return os.ErrInvalid }
func (u *unpolled) Write(f func(uintptr) (done bool)) error {
	if f(uintptr(u.fd)) {
		return nil
	}
	u.waits <- u.deadline
	if u.deadline.IsZero() {
		<-u.closed
		return os.ErrClosed
	}
	<-u.expired
	return os.ErrDeadlineExceeded
}

// TestRoomUntold: room that the poller does not tell of is used after a moment, but a host
// that took little then is left to the poller.
func TestRoomUntold(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	filled := 0
	for {
		n, err := unix.Write(fds[0], make([]byte, 1000))
		if err != nil {
			break
		}
		filled += n
	}
	u := &unpolled{fd: fds[0], waits: make(chan time.Time, 8), expired: make(chan struct{}), closed: make(chan struct{})}
	f := &flow{ep: endless{}, host: u, raw: u, guest: &Guest{Budget: newBudget()}, stopped: make(chan struct{})}
	o := newOutbound(f)
	ended := make(chan bool, 1)
	go func() { ended <- o.next() }()
	next := func() time.Time {
		t.Helper()
		select {
		case deadline := <-u.waits:
			return deadline
		case <-time.After(patience):
			t.Fatal("it does not wait")
			return time.Time{}
		}
	}
	if deadline := next(); deadline.IsZero() || time.Until(deadline) > again {
		t.Errorf("it waits until %v, want %v at the most", deadline, again)
	}
	for left := filled; left > 0; {
		n, err := unix.Read(fds[1], make([]byte, left))
		if err != nil {
			t.Fatal(err)
		}
		left -= n
	}
	close(u.expired)
	if deadline := next(); !deadline.IsZero() {
		t.Errorf("after little was taken it waits until %v", deadline)
	}
	if n, err := unix.Read(fds[1], make([]byte, 2000)); n < 1000 || err != nil {
		t.Errorf("%d bytes came, %v", n, err)
	}
	f.stop(context.Canceled)
	close(u.closed)
	if <-ended {
		t.Error("it would go on")
	}
}

func TestBothWaysAtOnce(t *testing.T) {
	f := newFlow(t.Context(), t)
	const size = 24 << 20
	data := randomBytes(size)
	want := sha256.Sum256(data)
	errs := make(chan error, 4)
	send := func(w io.Writer, closeWrite func() error) {
		_, err := w.Write(data)
		errs <- errors.Join(err, closeWrite())
	}
	receive := func(r io.Reader) {
		h := sha256.New()
		n, err := io.Copy(h, r)
		if err == nil && (n != size || [32]byte(h.Sum(nil)) != want) {
			err = errors.New("received other bytes than were sent")
		}
		errs <- err
	}
	go send(f.guest, f.guest.CloseWrite)
	go send(f.host, f.host.CloseWrite)
	go receive(f.guest)
	go receive(f.host)
	for range 4 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if err := f.end(t); err != nil {
		t.Errorf("Run returned %v, want nil", err)
	}
	if from, to := f.bytes.FromGuest.Load(), f.bytes.ToGuest.Load(); from != size || to != size {
		t.Errorf("counted %d from the guest and %d to it, want %d each", from, to, size)
	}
}

func TestHalfClose(t *testing.T) {
	for _, first := range []string{"guest", "host"} {
		t.Run(first+" first", func(t *testing.T) {
			f := newFlow(t.Context(), t)
			type end interface {
				io.ReadWriter
				CloseWrite() error
			}
			var a, b end = f.guest, f.host
			if first == "host" {
				a, b = b, a
			}
			if _, err := a.Write([]byte("request")); err != nil {
				t.Fatal(err)
			}
			if err := a.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(b); err != nil || string(got) != "request" {
				t.Fatalf("read %q, %v", got, err)
			}
			answer := randomBytes(1 << 20)
			go func() {
				b.Write(answer)
				b.CloseWrite()
			}()
			if got, err := io.ReadAll(a); err != nil || !bytes.Equal(got, answer) {
				t.Fatalf("read %d bytes after the own FIN, %v; want %d", len(got), err, len(answer))
			}
			if err := f.end(t); err != nil {
				t.Errorf("Run returned %v, want nil", err)
			}
		})
	}
}

// resetGuest makes the guest's stack send RST: unread data at Close.
func (f *flowTest) resetGuest(t *testing.T) {
	t.Helper()
	if _, err := f.host.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(f.guest, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	f.guest.Close()
}

func TestReset(t *testing.T) {
	exchange := func(t *testing.T, f *flowTest) {
		t.Helper()
		if _, err := f.guest.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(f.host, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("by the host", func(t *testing.T) {
		f := newFlow(t.Context(), t)
		exchange(t, f)
		f.host.SetLinger(0)
		f.host.Close()
		if _, err := f.guest.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the guest read %v, want a reset", err)
		}
		if err := f.end(t); !errors.Is(err, ErrReset) {
			t.Errorf("Run returned %v, want ErrReset", err)
		}
	})
	t.Run("by the guest", func(t *testing.T) {
		f := newFlow(t.Context(), t)
		exchange(t, f)
		f.resetGuest(t)
		if _, err := f.host.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the host read %v, want ECONNRESET", err)
		}
		if err := f.end(t); !errors.Is(err, ErrReset) {
			t.Errorf("Run returned %v, want ErrReset", err)
		}
	})
	t.Run("by the guest after its FIN", func(t *testing.T) {
		f := newFlow(t.Context(), t)
		exchange(t, f)
		if err := f.guest.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := f.host.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("the host read %v, want EOF", err)
		}
		f.resetGuest(t)
		if err := f.end(t); !errors.Is(err, ErrReset) {
			t.Errorf("Run returned %v, want ErrReset", err)
		}
	})
}

// TestTurn: what comes in a turn is written when it ends, by who ends it.
func TestTurn(t *testing.T) {
	f := newFlow(t.Context(), t)
	b := make([]byte, 16)
	for _, word := range []string{"first", "second"} {
		if _, err := f.guest.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
		if n, err := f.host.Read(b); err != nil || string(b[:n]) != word {
			t.Fatalf("read %q, %v, want %q", b[:n], err, word)
		}
	}
	ep := <-f.ep
	before := runtime.NumGoroutine()
	soon := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !done(); runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatalf("not within 10 s: %s", what)
			}
		}
	}
	for i := range uint64(100) {
		want := uint64(len("firstsecond")) + i*uint64(len("request"))
		soon("the bytes are counted", func() bool { return f.bytes.FromGuest.Load() == want })
		f.all.Turn.Begin(ep)
		if _, err := f.guest.Write([]byte("request")); err != nil {
			t.Fatal(err)
		}
		soon("the flow is notified", f.all.Turn.noted)
		if got := f.bytes.FromGuest.Load(); got != want {
			t.Fatalf("%d bytes were written, %d before the turn", got, want)
		}
		f.all.Turn.End()
		if n, err := f.host.Read(b); err != nil || string(b[:n]) != "request" {
			t.Fatalf("read %q, %v", b[:n], err)
		}
	}
	if n := f.all.Turn.Requests.Load(); n < 100 {
		t.Errorf("%d requests were counted, want 100 at least", n)
	}
	if now := runtime.NumGoroutine(); now > before {
		t.Errorf("%d goroutines, %d before", now, before)
	}
}

// noted reports whether the end of the turn will pump a flow.
func (t *Turn) noted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flow != nil
}

// TestBackPressure: what nobody reads stays with the sender.
func TestBackPressure(t *testing.T) {
	f := newFlow(t.Context(), t)
	f.host.SetWriteDeadline(time.Now().Add(2 * time.Second))
	var sent int
	chunk := make([]byte, 1<<20)
	for sent < 256<<20 {
		n, err := f.host.Write(chunk)
		sent += n
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			break
		}
	}
	// Both buffers of gVisor's, and the kernel's of two sockets.
	if sent >= 128<<20 {
		t.Errorf("the host could send %d bytes that nobody read", sent)
	}
}

func TestContextEndsFlow(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	f := newFlow(ctx, t)
	why := errors.New("why")
	cancel(why)
	if err := f.end(t); !errors.Is(err, why) {
		t.Errorf("Run returned %v, want the context's cause", err)
	}
	if _, err := f.host.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the host read %v, want ECONNRESET", err)
	}
}
