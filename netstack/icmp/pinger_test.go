package icmp

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/internal/wire"
)

// TestCloseWhileMessagesCome: a socket that always has another message can be closed.
func TestCloseWhileMessagesCome(t *testing.T) {
	namespace(t, everybody)
	lo := netip.MustParseAddr("127.0.0.1")
	p, err := openPinger(lo, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	again := -1 // to which the close says nothing
	if cerr := p.raw.Control(func(fd uintptr) { again, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	defer unix.Close(again)
	ping := func() {
		if err := unix.Sendto(again, []byte{8, 0, 0, 0, 0, 0, 0, 0}, 0, &unix.SockaddrInet4{Addr: lo.As4()}); err != nil {
			t.Error(err)
		}
	}
	busy := make(chan struct{})
	var once sync.Once
	pool := sync.Pool{New: func() any { return new(buffer) }}
	ended := make(chan error, 1)
	go func() {
		ended <- p.receive(&pool, func(*buffer) {
			ping() // whose answer is there before this returns
			once.Do(func() { close(busy) })
		}, func(*buffer, wire.ExtendedError) {})
	}()
	ping()
	<-busy
	closed := make(chan struct{})
	go func() {
		p.close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("it is not closed")
	}
	if err := <-ended; err == nil {
		t.Error("receive did not tell of the end")
	}
}
