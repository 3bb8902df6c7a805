package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A long path is two TUN devices with a process between them that holds every packet
// for half the round trip, after those before it were sent at the rate. The rate is low
// enough that the path is the limit, and what waits to be sent is dropped where it is
// more than a round trip's worth, as by a good router.
const (
	pathRate = 200_000_000 / 8 // bytes a second
	// pathPackets bounds the packets of one direction, of whatever size.
	pathPackets = 1 << 14
)

// far is a host at the other end of a long path.
type far struct {
	enter   []string // what a command line begins with that shall run there
	address netip.Addr
}

// farHost makes a host that is so many milliseconds away, there and back, from the
// run's own. The addresses are for documentation, RFC 5737.
func (b *bed) farHost(ctx context.Context, l *lane, millis int) (far, error) {
	pid, enter, err := b.container(ctx, l)
	if err != nil {
		return far{}, err
	}
	near, there := fmt.Sprintf("near%d", millis), fmt.Sprintf("far%d", millis)
	p, err := launch(b.generate(nil, "path", near, there, strconv.Itoa(millis)), nil, serving)
	if err != nil {
		return far{}, err
	}
	l.close = append(l.close, p.stop)
	if err := p.await(ctx, p.output.seen); err != nil {
		return far{}, fmt.Errorf("long path: %w", err)
	}
	// Which third byte does not matter, as long as every path has its own.
	subnet := len(b.far)
	here, address := netip.AddrFrom4([4]byte{198, 18, byte(subnet), 1}), netip.AddrFrom4([4]byte{198, 18, byte(subnet), 2})
	if err := b.moveLink(there, pid); err != nil {
		return far{}, err
	}
	if err := b.configureLink(0, near, here, 0); err != nil {
		return far{}, err
	}
	if err := b.configureLink(pid, there, address, 0); err != nil {
		return far{}, err
	}
	return far{enter, address}, nil
}

// servePath is the process between the devices, until it is killed: NAME NAME MILLISECONDS.
func servePath(args []string, out io.Writer) error {
	millis, err := strconv.Atoi(args[2])
	if err != nil || millis < 1 {
		return fmt.Errorf("%w: round trip of %q milliseconds", errGenerate, args[2])
	}
	trip := time.Duration(millis) * time.Millisecond
	var devices [2]*os.File
	for i, name := range args[:2] {
		if devices[i], err = openTUN(name); err != nil {
			return err
		}
		defer devices[i].Close()
	}
	ended := make(chan error, 4)
	for i, from := range devices {
		w := &pathWay{
			from: from, to: devices[1-i], delay: trip / 2, room: trip,
			queue: make(chan pathPacket, pathPackets), spare: make(chan []byte, pathPackets),
		}
		go func() { ended <- w.enter() }()
		go func() { ended <- w.leave() }()
	}
	if err := announce(out); err != nil {
		return err
	}
	return <-ended
}

func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("make TUN %s: %w", name, err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TUN %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// pathWay is one direction of a path.
type pathWay struct {
	from, to *os.File
	delay    time.Duration
	room     time.Duration // of what waits to be sent
	queue    chan pathPacket
	spare    chan []byte // buffers of packets that have arrived
}

type pathPacket struct {
	due  time.Time
	data []byte
}

// enter takes packets from the kernel. They leave in the order in which they came.
func (w *pathWay) enter() error {
	var sent time.Time // when the last byte of all before is sent
	packet := make([]byte, 1<<16)
	for {
		n, err := w.from.Read(packet)
		if err != nil {
			return fmt.Errorf("long path: %w", err)
		}
		now := time.Now()
		if sent.Before(now) {
			sent = now
		}
		if sent.Sub(now) > w.room {
			continue // dropped
		}
		sent = sent.Add(time.Duration(float64(n) / pathRate * float64(time.Second)))
		var data []byte
		select {
		case data = <-w.spare:
		default:
		}
		select {
		case w.queue <- pathPacket{sent.Add(w.delay), append(data[:0], packet[:n]...)}:
		default: // dropped
		}
	}
}

// leave hands packets to the other kernel when they are due.
func (w *pathWay) leave() error {
	for p := range w.queue {
		time.Sleep(time.Until(p.due))                                              // this is the path
		if _, err := w.to.Write(p.data); err != nil && !errors.Is(err, unix.EIO) { // EIO: the device is down
			return fmt.Errorf("long path: %w", err)
		}
		select {
		case w.spare <- p.data:
		default:
		}
	}
	return nil
}
