package icmp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"slipway/netstack/internal/wire"
)

// pinger is a ping socket in the runtime's poller.
type pinger struct {
	file *os.File
	raw  syscall.RawConn
	v6   bool

	closing atomic.Bool
}

// buffer is what a message is received in. Idle sessions have none.
type buffer struct {
	space   [65536]byte
	control [512]byte
	scratch wire.Scratch

	data []byte     // the ICMP message, in space
	from netip.Addr // whose
	ttl  uint8
}

// openPinger makes a socket for the family of to, bound to from where that is valid.
func openPinger(to, from netip.Addr) (*pinger, error) {
	p := &pinger{v6: to.Is6()}
	family, proto, level := unix.AF_INET, unix.IPPROTO_ICMP, unix.SOL_IP
	ttl, recverr := unix.IP_RECVTTL, unix.IP_RECVERR
	if p.v6 {
		family, proto, level = unix.AF_INET6, unix.IPPROTO_ICMPV6, unix.SOL_IPV6
		ttl, recverr = unix.IPV6_RECVHOPLIMIT, unix.IPV6_RECVERR
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("open ping socket: %w", err)
	}
	for _, option := range []int{ttl, recverr} {
		if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("set option %d of ping socket: %w", option, err)
		}
	}
	if from.IsValid() {
		if err := wire.Bind(fd, from); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("bind ping socket to %v: %w", from, err)
		}
	}
	p.file = os.NewFile(uintptr(fd), "ping socket")
	if p.raw, err = p.file.SyscallConn(); err != nil {
		p.file.Close()
		return nil, fmt.Errorf("poll ping socket: %w", err)
	}
	return p, nil
}

// close waits until receive has let the socket go.
func (p *pinger) close() {
	p.closing.Store(true)
	_ = p.file.Close()
}

// wakeAt makes receive return os.ErrDeadlineExceeded then.
func (p *pinger) wakeAt(t time.Time) { _ = p.file.SetReadDeadline(t) }

// send sends an ICMP message. It never blocks.
func (p *pinger) send(m []byte, to netip.Addr, ttl int) error {
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: v4(to)}
	level, kind := unix.SOL_IP, unix.IP_TTL
	if p.v6 {
		sa = &unix.SockaddrInet6{Addr: to.As16()}
		level, kind = unix.SOL_IPV6, unix.IPV6_HOPLIMIT
	}
	control := make([]byte, unix.CmsgSpace(4))
	binary.NativeEndian.PutUint64(control, uint64(unix.CmsgLen(4)))
	binary.NativeEndian.PutUint32(control[8:], uint32(level))
	binary.NativeEndian.PutUint32(control[12:], uint32(kind))
	binary.NativeEndian.PutUint32(control[unix.SizeofCmsghdr:], uint32(ttl))
	var err error
	if cerr := p.raw.Write(func(fd uintptr) bool {
		// With IP_RECVERR a socket reports the error of an earlier message to whoever calls next.
		for range 2 {
			if _, err = unix.SendmsgN(int(fd), m, control, sa, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err == nil {
				break
			}
		}
		return true // also on EAGAIN: a ping more or less
	}); cerr != nil {
		return cerr
	}
	return err
}

func v4(a netip.Addr) [4]byte {
	if !a.Is4() {
		return [4]byte{}
	}
	return a.As4()
}

// receive hands messages and errors over until the deadline or Close, and says
// which of them it was.
func (p *pinger) receive(pool *sync.Pool, reply func(*buffer), failed func(*buffer, wire.ExtendedError)) error {
	return p.raw.Read(func(fd uintptr) bool {
		b := pool.Get().(*buffer)
		defer pool.Put(b)
		// Messages may come for as long as there is somebody who sends them.
		for failures := 0; failures < maxFailures && !p.closing.Load(); {
			for {
				ok, e, isError := p.read(int(fd), b, unix.MSG_ERRQUEUE)
				if !ok {
					break
				}
				if isError {
					failed(b, e)
				}
			}
			ok, _, _ := p.read(int(fd), b, 0)
			if !ok {
				return false // wait for more
			}
			if b.data == nil {
				failures++
				continue
			}
			failures = 0
			reply(b)
		}
		return false
	})
}

// maxFailures bounds how many errors in a row a socket may report before it is left
// alone until the next event.
const maxFailures = 16

// read receives one message; ok is false when there is none. Data is nil when the
// socket told of an earlier error instead.
func (p *pinger) read(fd int, b *buffer, flags int) (ok bool, e wire.ExtendedError, isError bool) {
	n, c, _, from, err := unix.Recvmsg(fd, b.space[:], b.control[:], flags|unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EAGAIN) {
		return false, e, false
	}
	b.data, b.from, b.ttl = nil, netip.Addr{}, 0
	if err != nil {
		return flags == 0, e, false
	}
	b.data = b.space[:n]
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		b.from = netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		b.from = netip.AddrFrom16(a.Addr)
	}
	messages, err := unix.ParseSocketControlMessage(b.control[:c])
	if err != nil {
		return true, e, false
	}
	for _, m := range messages {
		h := m.Header
		switch {
		case len(m.Data) >= 4 && (h.Level == unix.SOL_IP && h.Type == unix.IP_TTL || h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_HOPLIMIT):
			b.ttl = uint8(binary.NativeEndian.Uint32(m.Data))
		default:
			if x, found := wire.ParseExtendedError(h.Level, h.Type, m.Data); found {
				e, isError = x, true
			}
		}
	}
	return true, e, isError
}
