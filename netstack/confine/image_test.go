package confine

import (
	"encoding/binary"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pagemap is read into memory that exists before: what looks at the program's pages shall
// bring few of them back.
type pagemap struct {
	fd      int
	segment segment
	entries []byte // 8 bytes a page, Documentation/admin-guide/mm/pagemap.rst
}

func newPagemap(t *testing.T, s segment) *pagemap {
	t.Helper()
	fd, err := unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &pagemap{fd, s, make([]byte, 8*int(s.length)/os.Getpagesize())}
}

func (p *pagemap) read(t *testing.T) {
	t.Helper()
	n, err := unix.Pread(p.fd, p.entries, int64(p.segment.start)/int64(os.Getpagesize())*8)
	if err != nil || n != len(p.entries) {
		t.Fatalf("pagemap: %d bytes, %v, want %d", n, err, len(p.entries))
	}
}

// present are the pages that are mapped.
func (p *pagemap) present() (pages int) {
	for i := 0; i < len(p.entries); i += 8 {
		pages += int(binary.NativeEndian.Uint64(p.entries[i:]) >> 63)
	}
	return pages
}

// touch reads a byte of each page of a segment, and returns their sum.
func touch(s segment) (sum uint64) {
	b := unsafe.Slice(*(**byte)(unsafe.Pointer(&s.start)), s.length)
	for i := 0; i < len(b); i += os.Getpagesize() {
		sum = sum*31 + uint64(b[i])
	}
	return sum
}

func TestReleaseImage(t *testing.T) {
	segments, err := constantSegments()
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for _, s := range segments {
		size += int(s.length)
		sum, pages := touch(s), newPagemap(t, s)
		pages.read(t)
		before := pages.present()
		if all := int(s.length) / os.Getpagesize(); before < all*9/10 {
			t.Fatalf("%d of %d pages are there that were read a moment ago", before, all)
		}
		if err := ReleaseImage(); err != nil {
			t.Fatal(err)
		}
		pages.read(t)
		// How many come back at once depends on how many of its neighbours the kernel maps with
		// each page that is needed: in a program as small as this one most do.
		if after := pages.present(); after >= before {
			t.Errorf("%d pages of %d are still there", after, before)
		}
		if again := touch(s); again != sum {
			t.Error("the program is not what it was")
		}
	}
	if size < 1<<20 {
		t.Errorf("%d bytes of code and constants, want a program", size)
	}
}
