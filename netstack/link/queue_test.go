package link

import (
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"slipway/netstack/tap"
)

// newQueueTest returns a queue, and the other end of its device.
func newQueueTest(t *testing.T) (*Queue, int) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(ends[1]) })
	if err := unix.SetsockoptTimeval(ends[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	device, err := tap.Adopt(os.NewFile(uintptr(ends[0]), "device"), "tap0", tap.CSum|tap.TSO4|tap.TSO6)
	if err != nil {
		t.Fatal(err)
	}
	e := New(Config{Device: device, MTU: 1500, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}})
	q := e.Queue()
	t.Cleanup(func() {
		q.Close()
		e.Close()
	})
	return q, ends[1]
}

// send queues a segment with so many bytes of data.
func send(t *testing.T, q *Queue, flags header.TCPFlags, size int) {
	t.Helper()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.TCPMinimumSize, Payload: buffer.MakeWithData(make([]byte, size)),
	})
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize)).Encode(&header.TCPFields{DataOffset: header.TCPMinimumSize, Flags: flags})
	if err := q.WritePacket(pkt); err != nil {
		t.Fatalf("write a packet: %s", err)
	}
}

// comes reads a packet and returns the size of its data.
func comes(t *testing.T, fd int) int {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := unix.Read(fd, b)
	if err != nil {
		t.Fatalf("read a packet: %v", err)
	}
	return n - tap.HeaderLen - header.TCPMinimumSize
}

// TestQueueHoldsAcknowledgements: in a turn they go after all else, and no more of them
// wait than may.
func TestQueueHoldsAcknowledgements(t *testing.T) {
	q, fd := newQueueTest(t)
	q.begin()
	send(t, q, header.TCPFlagAck, 0)
	send(t, q, header.TCPFlagAck|header.TCPFlagPsh, 100)
	if got := comes(t, fd); got != 100 {
		t.Errorf("%d bytes of data came first, want the 100", got)
	}
	for range maxHeld {
		send(t, q, header.TCPFlagAck, 0)
	}
	if got := comes(t, fd); got != 0 { // the one that there was no room for
		t.Errorf("%d bytes of data came, want an acknowledgement", got)
	}
	q.release()
	for range maxHeld {
		if got := comes(t, fd); got != 0 {
			t.Errorf("%d bytes of data came, want an acknowledgement", got)
		}
	}
	send(t, q, header.TCPFlagAck, 0)
	if got := comes(t, fd); got != 0 {
		t.Errorf("%d bytes of data came, want the acknowledgement after the turn", got)
	}
}

// TestQueueKeepsTheOrder: what is small does not overtake what is queued.
func TestQueueKeepsTheOrder(t *testing.T) {
	q, fd := newQueueTest(t)
	for i := range 200 {
		send(t, q, header.TCPFlagAck, 20000+i)
		send(t, q, header.TCPFlagAck, 1+i)
		if large, small := comes(t, fd), comes(t, fd); large != 20000+i || small != 1+i {
			t.Fatalf("round %d: %d and %d bytes came", i, large, small)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for q.waiting.Load() != 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d packets are taken for waiting", q.waiting.Load())
		}
	}
}
