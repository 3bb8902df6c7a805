package relay

import (
	"encoding/binary"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// admit asks the pair's port for admission.
func (p *pair) admit() {
	ways, answer := p.port.Admit(p.address, p)
	p.ways = ways
	switch answer {
	case Admitted:
		p.dial()
	case Waiting:
		p.waiting = true
		p.enlist()
	default:
		reset(p.fd[client])
	}
}

// Admitted implements Waiter.
func (p *pair) Admitted() { p.loop.post(p.admitted) }

// admitted begins to dial for a client that has waited, unless that was too long.
func (p *pair) admitted() {
	if p.closed {
		return
	}
	p.waiting = false
	p.delist()
	p.deadline = time.Now().Add(p.loop.s.cfg.Connect)
	p.dial()
}

// dial tries to connect the pair's client to the container, by one way after the other.
// Inside one machine the handshake is over when connect(2) returns; when it is not, or
// when there is no socket, the pair goes to the loop's list and dial is called again.
func (p *pair) dial() {
	for {
		w := &p.ways.Way[p.way]
		if p.fd[guest] < 0 {
			if !p.takeSocket(w.To.Addr()) {
				return
			}
			from := w.From
			if p.anyPort {
				from = netip.AddrPortFrom(from.Addr(), 0)
			}
			if errno := begin(p.fd[guest], from, w.To); errno != 0 && errno != unix.EINPROGRESS {
				if !p.again(errno) {
					p.dialFailed(errno)
					return
				}
				continue
			}
		}
		// The second call says how the first one ended, connect(2).
		switch errno := connectTo(p.fd[guest], w.To); errno {
		case 0, unix.EISCONN:
			p.join()
			return
		case unix.EALREADY, unix.EINPROGRESS:
			p.enlist()
			if p.watched[guest] == 0 {
				if errno := p.watch(guest, unix.EPOLLOUT|unix.EPOLLET); errno != 0 {
					p.dialFailed(errno)
				}
			}
			return
		default:
			if !p.again(errno) {
				p.dialFailed(errno)
				return
			}
		}
	}
}

// takeSocket fetches a socket to connect with. Without one the pair waits for
// Refilled.
func (p *pair) takeSocket(to netip.Addr) bool {
	s := p.loop.s
	family := unix.AF_INET
	if to.Is6() {
		family = unix.AF_INET6
	}
	fd, ok := s.cfg.Sockets.Take(family)
	if !ok && !p.socketless {
		p.enlist()
		p.socketless = true
		s.waiting.Add(1)
		// Once more: who filled up before the line above did not see the pair.
		fd, ok = s.cfg.Sockets.Take(family)
	}
	if !ok {
		return false
	}
	if p.socketless {
		p.socketless = false
		s.waiting.Add(-1)
	}
	p.fd[guest] = fd
	return true
}

// enlist has the loop watch over the pair's deadline.
func (p *pair) enlist() {
	if !p.listed {
		p.listed = true
		p.loop.dialing.push(p)
	}
}

// delist ends the time of dialling.
func (p *pair) delist() {
	if p.listed {
		p.listed = false
		p.loop.dialing.remove(p)
	}
	if p.socketless {
		p.socketless = false
		p.loop.s.waiting.Add(-1)
	}
}

// dialFailed ends a pair that no way led to the container for, or that was not admitted.
func (p *pair) dialFailed(err error) {
	p.delist()
	p.err = err
	p.dispose()
	if p.waiting && p.port.Leave(p.address, p, err) {
		return
	}
	p.port.Ended(p.address, nil, err)
}

// again reports whether there is another way after one that failed with errno, and
// goes on to it.
func (p *pair) again(errno unix.Errno) bool {
	unix.Close(p.fd[guest])
	p.fd[guest], p.watched[guest] = -1, 0
	switch errno {
	case unix.EADDRINUSE, unix.EADDRNOTAVAIL, unix.EACCES:
		// The client's port cannot be had: a connection of the same addresses exists or lies
		// in TIME_WAIT, or the port is privileged (EACCES in bind(2)).
		if !p.anyPort {
			p.anyPort = true
			return true
		}
	}
	switch errno {
	case unix.ECONNREFUSED, unix.EADDRNOTAVAIL, unix.ENETUNREACH, unix.EHOSTUNREACH:
		// Nobody serves the address: no listener, or no such address.
		if p.way+1 < p.ways.N {
			p.way++
			p.anyPort = false
			return true
		}
	}
	return false
}

// redial lets pairs go on that had no socket.
func (l *loop) redial() {
	for p := l.dialing.first; p != nil; {
		next := p.next
		if p.socketless {
			p.dial()
		}
		p = next
	}
}

// begin binds and starts to connect; EINPROGRESS is the good answer.
func begin(fd int, from, to netip.AddrPort) unix.Errno {
	if errno := bindTo(fd, from); errno != 0 {
		return errno
	}
	return connectTo(fd, to)
}

func bindTo(fd int, from netip.AddrPort) unix.Errno {
	var a unix.RawSockaddrInet6
	size := writeAddress(&a, from)
	_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&a)), size)
	return errno
}

func connectTo(fd int, to netip.AddrPort) unix.Errno {
	var a unix.RawSockaddrInet6
	size := writeAddress(&a, to)
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a)), size)
	return errno
}

// writeAddress writes a as the kernel reads it, and returns its size.
func writeAddress(raw *unix.RawSockaddrInet6, a netip.AddrPort) uintptr {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&raw.Port))[:], a.Port())
	if a.Addr().Is4() {
		raw4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw))
		raw4.Family, raw4.Addr = unix.AF_INET, a.Addr().As4()
		return unix.SizeofSockaddrInet4
	}
	raw.Family, raw.Addr = unix.AF_INET6, a.Addr().As16()
	return unix.SizeofSockaddrInet6
}
