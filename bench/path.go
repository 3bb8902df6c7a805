package bench

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Path is a long way between two TUN devices: this process holds every packet for half
// the round trip, after those before it were sent at the rate. What waits to be sent is
// dropped where it is more than a round trip's worth, as by a good router.
type Path struct {
	// RoundTrip that the path alone takes.
	RoundTrip time.Duration
	// Rate of each direction, in bytes a second.
	Rate float64
	// Large says that a segment of up to 64 KiB passes as one packet, and gets lost as one, so
	// that how fast the path is does not depend on how fast this process is. Otherwise
	// packets are those of the devices' MTU.
	Large bool
	// LostPerThousand packets of each direction are dropped on their way, at equal distances,
	// so that every flow meets the same path; 0: none are.
	LostPerThousand int

	devices         [2]*os.File
	passed, dropped atomic.Int64
}

const (
	// pathPackets bounds the packets of one direction, of whatever size.
	pathPackets = 1 << 14
	// pathPacketMost is the largest packet in bytes: IPv4's most, behind the header of
	// IFF_VNET_HDR.
	pathPacketMost = 1<<16 + 64
)

// Open makes the two devices. They last until Close.
func (p *Path) Open(near, far string) error {
	for i, name := range []string{near, far} {
		device, err := openTUN(name)
		if err != nil {
			p.Close()
			return err
		}
		p.devices[i] = device
		if !p.Large {
			continue
		}
		const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		if err := unix.IoctlSetInt(int(device.Fd()), unix.TUNSETOFFLOAD, offloads); err != nil {
			p.Close()
			return fmt.Errorf("let TUN %s have large segments: %w", name, err)
		}
	}
	return nil
}

// Run carries packets both ways until there is an error, which closing the path is too.
func (p *Path) Run() error {
	ended := make(chan error, 4)
	for i, from := range p.devices {
		w := &pathWay{
			path: p, from: from, to: p.devices[1-i], queue: make(chan pathPacket, pathPackets),
			ring: make([]byte, int(p.Rate*p.RoundTrip.Seconds()*3/2)+16*pathPacketMost),
		}
		go func() { ended <- w.enter() }()
		go func() { ended <- w.leave() }()
	}
	return <-ended
}

// Close ends the path.
func (p *Path) Close() {
	for _, device := range p.devices {
		if device != nil {
			device.Close()
		}
	}
}

// Passed is how many packets have arrived.
func (p *Path) Passed() int64 { return p.passed.Load() }

// Dropped is how many packets have not.
func (p *Path) Dropped() int64 { return p.dropped.Load() }

// openTUN makes a device whose packets have struct virtio_net_hdr before them.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TUN %s: %w", name, err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TUN %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// pathWay is one direction of a path.
type pathWay struct {
	path     *Path
	from, to *os.File
	queue    chan pathPacket
	// ring holds the packets of the queue one after the other, each in one piece.
	ring []byte
	used atomic.Int64 // of the ring, in bytes
}

// pathPacket is a part of the ring, of which so many bytes are free once it has left.
type pathPacket struct {
	due  time.Time
	data []byte
	held int
}

// enter takes packets from the kernel. They leave in the order in which they came.
func (w *pathWay) enter() error {
	var sent time.Time // when the last byte of all before is sent
	head, untilLoss := 0, 0
	if lost := w.path.LostPerThousand; lost > 0 {
		untilLoss = 1000 / lost
	}
	packet := make([]byte, pathPacketMost)
	for {
		n, err := w.from.Read(packet)
		if err != nil {
			return fmt.Errorf("long path: %w", err)
		}
		now := time.Now()
		if sent.Before(now) {
			sent = now
		}
		if sent.Sub(now) > w.path.RoundTrip {
			w.path.dropped.Add(1)
			continue
		}
		sent = sent.Add(time.Duration(float64(n) / w.path.Rate * float64(time.Second)))
		if lost := w.path.LostPerThousand; lost > 0 {
			if untilLoss--; untilLoss == 0 {
				untilLoss = 1000 / lost
				w.path.dropped.Add(1)
				continue
			}
		}
		at, held := head, n
		if at+n > len(w.ring) { // what is left at the end is too little
			at, held = 0, n+len(w.ring)-head
		}
		if int(w.used.Load())+held > len(w.ring) {
			w.path.dropped.Add(1)
			continue
		}
		data := w.ring[at : at+n]
		copy(data, packet)
		w.used.Add(int64(held)) // before the queue, where it may be given back at once
		select {
		case w.queue <- pathPacket{sent.Add(w.path.RoundTrip / 2), data, held}:
			head = at + n
		default:
			w.used.Add(int64(-held))
			w.path.dropped.Add(1)
		}
	}
}

// leave hands packets to the other kernel when they are due.
func (w *pathWay) leave() error {
	for p := range w.queue {
		time.Sleep(time.Until(p.due)) // this is the path
		switch _, err := w.to.Write(p.data); {
		case errors.Is(err, unix.EIO): // the device is down
			w.path.dropped.Add(1)
		case err != nil:
			return fmt.Errorf("long path: %w", err)
		default:
			w.path.passed.Add(1)
		}
		w.used.Add(int64(-p.held))
	}
	return nil
}
