package confine

import (
	"debug/elf"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Entries of the auxiliary vector, include/uapi/linux/auxvec.h.
const (
	atPHDR  = 3
	atPHNUM = 5
)

// ReleaseImage takes the program's code and constants out of the memory of this process.
// What is needed of them comes back piece by piece, from the page cache: the greater part
// ran once, to initialise packages, and would be counted as the process's for ever. It can
// be called in a process that is locked down.
func ReleaseImage() error {
	segments, err := constantSegments()
	if err != nil {
		return fmt.Errorf("release the program's image: %w", err)
	}
	for _, s := range segments {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, s.start, s.length, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("release the program's image: %w", os.NewSyscallError("madvise", errno))
		}
	}
	return nil
}

// segment is a part of the program in memory: whole pages, in bytes.
type segment struct{ start, length uintptr }

// constantSegments are those that nothing is ever written to, as the program headers say
// that the kernel has loaded (elf(5)).
func constantSegments() ([]segment, error) {
	auxv, err := unix.Auxv()
	if err != nil {
		return nil, err
	}
	var headers, n uintptr
	for _, a := range auxv {
		switch a[0] {
		case atPHDR:
			headers = a[1]
		case atPHNUM:
			n = a[1]
		}
	}
	if headers == 0 {
		return nil, fmt.Errorf("auxiliary vector of %d entries has no AT_PHDR", len(auxv))
	}
	programs := unsafe.Slice(*(**elf.Prog64)(unsafe.Pointer(&headers)), n)
	var base uintptr // of a program that is loaded anywhere
	for _, p := range programs {
		if elf.ProgType(p.Type) == elf.PT_PHDR {
			base = headers - uintptr(p.Vaddr)
		}
	}
	page := uintptr(os.Getpagesize())
	var out []segment
	for _, p := range programs {
		if elf.ProgType(p.Type) != elf.PT_LOAD || elf.ProgFlag(p.Flags)&elf.PF_W != 0 {
			continue
		}
		start, end := base+uintptr(p.Vaddr), base+uintptr(p.Vaddr+p.Filesz)
		start, end = start&^(page-1), (end+page-1)&^(page-1)
		out = append(out, segment{start, end - start})
	}
	return out, nil
}
