package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// messageMax is the most that one message brings, a whole UDP_GRO run included.
	messageMax = 65536
	// inboxMax is how many messages one system call receives.
	inboxMax = 32
	// inboxBytes is how much of them it may be, by the last one's size: it should stay in the cache
	// until it is written to the guest.
	inboxBytes = 256 << 10
	// inboxStride lies between the messages in memory. At a power of two, small ones would share the
	// same few lines of the cache.
	inboxStride = messageMax + 23*64
)

// mmsghdr is struct mmsghdr of recvmmsg(2) on 64-bit machines.
type mmsghdr struct {
	msg unix.Msghdr
	n   uint32
	_   [4]byte
}

// inbox is where the poller receives.
type inbox struct {
	headers  [inboxMax]mmsghdr
	messages [inboxMax]message
	buf      []byte
	last     int // size of the last message
}

func newInbox() *inbox { return &inbox{buf: make([]byte, inboxMax*inboxStride)} }

// want is how many messages to ask for at a time.
func (in *inbox) want() int { return max(1, min(inboxMax, inboxBytes/max(in.last, 1))) }

// payload is the i-th message's.
func (in *inbox) payload(i int) []byte { return in.buf[i*inboxStride:][:in.messages[i].n] }

// receive reads up to want messages and returns how many there were; less than want: there are no
// more now. It returns EAGAIN when there is none at all.
func (in *inbox) receive(s *socket, want int) (int, error) {
	for i := range want {
		in.messages[i].aim(&in.headers[i].msg, in.buf[i*inboxStride:][:messageMax])
	}
	s.mu.RLock()
	if s.fd < 0 {
		s.mu.RUnlock()
		return 0, errClosed
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&in.headers[0])), uintptr(want), 0, 0, 0)
	s.mu.RUnlock()
	if errno != 0 {
		return 0, errno
	}
	for i := range int(n) {
		m := &in.messages[i]
		m.took(&in.headers[i].msg, int(in.headers[i].n))
		m.readControl()
		in.last = m.n
	}
	return int(n), nil
}
