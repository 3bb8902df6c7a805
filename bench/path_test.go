package bench

import (
	"encoding/binary"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// packetPair is a device's two ends, that of the path and that of the kernel.
func packetPair(t *testing.T) (path, kernel *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	path, kernel = os.NewFile(uintptr(fds[0]), "path"), os.NewFile(uintptr(fds[1]), "kernel")
	t.Cleanup(func() { path.Close(); kernel.Close() })
	return path, kernel
}

// TestPath: packets of any size pass in their order, none earlier than half a round trip
// after it was sent, but for those that get lost, at equal distances.
func TestPath(t *testing.T) {
	const packets, lost = 900, 10
	p := &Path{RoundTrip: 20 * time.Millisecond, Rate: farRate, LostPerThousand: lost}
	var near, far *os.File
	p.devices[0], near = packetPair(t)
	p.devices[1], far = packetPair(t)
	ended := make(chan error, 1)
	go func() { ended <- p.Run() }()
	sizes := []int{64, 1500, 40, 9000}
	var want []uint32
	for i := range packets {
		if (i+1)%(1000/lost) != 0 {
			want = append(want, uint32(i))
		}
	}
	begin := time.Now()
	go func() {
		for i := range packets {
			packet := make([]byte, sizes[i%len(sizes)])
			binary.BigEndian.PutUint32(packet, uint32(i))
			if _, err := near.Write(packet); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	if err := far.SetReadDeadline(begin.Add(patience)); err != nil {
		t.Fatal(err)
	}
	var got []uint32
	packet := make([]byte, pathPacketMost)
	for len(got) < len(want) {
		n, err := far.Read(packet)
		if err != nil {
			t.Fatalf("after %d packets of %d: %v", len(got), len(want), err)
		}
		if took := time.Since(begin); len(got) == 0 && took < p.RoundTrip/2 {
			t.Errorf("the first packet came after %s, want at least %s", took, p.RoundTrip/2)
		}
		i := binary.BigEndian.Uint32(packet)
		if n != sizes[i%uint32(len(sizes))] {
			t.Errorf("packet %d has %d bytes, want %d", i, n, sizes[i%uint32(len(sizes))])
		}
		got = append(got, i)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
	if got, want := p.Dropped(), int64(packets*lost/1000); got != want {
		t.Errorf("%d packets dropped, want %d", got, want)
	}
	near.Close()
	if err := <-ended; err == nil {
		t.Error("a path whose device is gone goes on")
	}
}

func TestTiming(t *testing.T) {
	ordinary := timing{seconds: time.Second}
	tests := []struct {
		name string
		cell Cell
		want timing
	}{
		{"near", Cell{}, ordinary},
		{"10 ms", Cell{DelayMillis: 10}, timing{time.Second, time.Second}},
		{"100 ms", Cell{DelayMillis: 100}, timing{3 * time.Second, 2 * time.Second}},
		{"loss", Cell{DelayMillis: 50, LostPerThousand: 1}, timing{3 * time.Second, 2 * time.Second}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.cell.timing(ordinary); got != tt.want {
				t.Errorf("timing %v, want %v", got, tt.want)
			}
		})
	}
}
