package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var keep = net.KeepAliveConfig{Enable: true, Idle: 61 * time.Second, Interval: 31 * time.Second, Count: 3}

func TestDial(t *testing.T) {
	for _, tt := range []struct {
		listen string
		from   netip.Addr
		want   string // where the listener sees it come from
	}{
		{"127.0.0.1:0", netip.Addr{}, "127.0.0.1"},
		{"127.0.0.1:0", netip.MustParseAddr("127.0.0.2"), "127.0.0.2"},
		{"[::1]:0", netip.Addr{}, "::1"},
	} {
		t.Run(tt.listen+" from "+tt.want, func(t *testing.T) {
			l, err := net.Listen("tcp", tt.listen)
			if err != nil {
				t.Skipf("no such address here: %v", err)
			}
			defer l.Close()
			sock, err := Dial(t.Context(), tt.from, l.Addr().(*net.TCPAddr).AddrPort(), time.Minute, keep)
			if err != nil {
				t.Fatal(err)
			}
			defer sock.Close()
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().String(); from != tt.want {
				t.Errorf("the connection comes from %s, want %s", from, tt.want)
			}
			wantOption(t, sock, "TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
			wantOption(t, sock, "SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
			wantOption(t, sock, "TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 61)
			wantOption(t, sock, "TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 31)
			wantOption(t, sock, "TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3)
			if tt.want == "::1" {
				wantOption(t, sock, "IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
			}
		})
	}
}

func wantOption(t *testing.T, sock *os.File, name string, level, opt, want int) {
	t.Helper()
	raw, err := sock.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	var gerr error
	if err := raw.Control(func(fd uintptr) { got, gerr = unix.GetsockoptInt(int(fd), level, opt) }); err != nil || gerr != nil {
		t.Fatalf("%s: %v, %v", name, err, gerr)
	}
	if got != want {
		t.Errorf("%s is %d, want %d", name, got, want)
	}
}

func TestDialRefused(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	if sock, err := Dial(t.Context(), netip.Addr{}, to, time.Minute, keep); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, %v, want ECONNREFUSED", sock, err)
	}
}

// silent is an address that answers no SYN: its queue is full (listen(2)).
func silent(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
	for range 8 {
		sock, err := Dial(t.Context(), netip.Addr{}, to, 100*time.Millisecond, keep)
		if err != nil {
			return to
		}
		t.Cleanup(func() { sock.Close() })
	}
	t.Fatal("a queue of length 0 took 8 connections")
	return to
}

func TestDialIsNotAnswered(t *testing.T) {
	to := silent(t)
	if sock, err := Dial(t.Context(), netip.Addr{}, to, 10*time.Millisecond, keep); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, %v, want a timeout", sock, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
	if sock, err := Dial(ctx, netip.Addr{}, to, time.Minute, keep); !errors.Is(err, why) {
		t.Errorf("got %v, %v, want the context's cause", sock, err)
	}
}
