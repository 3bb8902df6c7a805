package relay

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func freshSocket(t *testing.T, family, kind int) *os.File {
	t.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { f.Close() })
	return f
}

func TestCheckSocket(t *testing.T) {
	pipe, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer other.Close()
	for _, tc := range []struct {
		name   string
		sock   *os.File
		family int
		want   error
	}{
		{"IPv4", freshSocket(t, unix.AF_INET, unix.SOCK_STREAM), unix.AF_INET, nil},
		{"IPv6", freshSocket(t, unix.AF_INET6, unix.SOCK_STREAM), unix.AF_INET6, nil},
		{"other family", freshSocket(t, unix.AF_INET, unix.SOCK_STREAM), unix.AF_INET6, syscall.EPROTOTYPE},
		{"UDP", freshSocket(t, unix.AF_INET, unix.SOCK_DGRAM), unix.AF_INET, syscall.EPROTOTYPE},
		{"unix", freshSocket(t, unix.AF_UNIX, unix.SOCK_STREAM), unix.AF_INET, syscall.EPROTOTYPE},
		{"pipe", pipe, unix.AF_INET, syscall.ENOTSOCK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := CheckSocket(int(tc.sock.Fd()), tc.family); !errors.Is(err, tc.want) {
				t.Errorf("CheckSocket: %v, want %v", err, tc.want)
			}
		})
	}
}
