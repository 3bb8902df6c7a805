package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// sealedBinary gives a path to execute this binary by, through which nobody
// can ever write to the binary's file. Container root often owns that file,
// and could keep a handle on /proc/PID/exe of a stage (CVE-2019-5736).
// The descriptor behind the path closes on exec.
func sealedBinary() (string, error) {
	fd, err := readOnlyClone()
	if err != nil {
		if fd, err = sealedCopy(); err != nil {
			return "", err
		}
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), nil
}

// readOnlyClone clones the mount that holds the binary, read-only. It must go
// by path: the descriptor behind /proc/self/exe belongs to the launcher's mount
// namespace, of which nothing can be cloned here.
func readOnlyClone() (int, error) {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	// The path may be another file by now.
	var there, exe unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &there), unix.Stat("/proc/self/exe", &exe)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if there.Dev != exe.Dev || there.Ino != exe.Ino {
		unix.Close(fd)
		return -1, fmt.Errorf("%s is no longer this program", path)
	}
	return fd, nil
}

// sealedCopy copies the binary to memory that can never be written again, for
// where its path cannot be walked from inside.
func sealedCopy() (int, error) {
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return -1, fmt.Errorf("open slipway's own binary from inside the user namespace: %w; others need the right to read it: chmod o+rx", err)
	}
	defer in.Close()
	fd, err := unix.MemfdCreate("slipway", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC is Linux 6.3
		fd, err = unix.MemfdCreate("slipway", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd for slipway's own binary: %w", err)
	}
	out := os.NewFile(uintptr(fd), "slipway")
	_, err = io.Copy(out, in)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		out.Close()
		return -1, fmt.Errorf("copy slipway's own binary: %w", err)
	}
	// A memfd that is open for writing cannot be executed (ETXTBSY).
	ro, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	out.Close()
	if err != nil {
		return -1, fmt.Errorf("open the copy of slipway's own binary: %w", err)
	}
	return ro, nil
}
