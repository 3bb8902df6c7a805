package confine

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"unsafe"
)

// residentFile is the memory of this process in bytes that is mapped from files, RssFile of
// proc_pid_status(5).
func residentFile(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssFile:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("/proc/self/status has no RssFile")
	return 0
}

// touch reads a byte of each page of the program's code and constants, and returns how
// many bytes these are, and the sum.
func touch(t *testing.T) (size int, sum uint64) {
	t.Helper()
	segments, err := constantSegments()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range segments {
		b := unsafe.Slice(*(**byte)(unsafe.Pointer(&s.start)), s.length)
		for i := 0; i < len(b); i += os.Getpagesize() {
			sum = sum*31 + uint64(b[i])
		}
		size += len(b)
	}
	return size, sum
}

func TestReleaseImage(t *testing.T) {
	size, sum := touch(t)
	before := residentFile(t)
	if size < 1<<20 || before < size {
		t.Fatalf("%d bytes of code and constants, %d of files in memory: want a program that is there", size, before)
	}
	if err := ReleaseImage(); err != nil {
		t.Fatal(err)
	}
	// The kernel maps neighbours of each page that is needed (fault_around_bytes), which in a
	// small program comes to half of it.
	if after := residentFile(t); after > before-size/4 {
		t.Errorf("%d bytes of files in memory, %d before: want a quarter of the image's %d released at the least", after, before, size)
	}
	if _, again := touch(t); again != sum {
		t.Error("the program is not what it was")
	}
}
