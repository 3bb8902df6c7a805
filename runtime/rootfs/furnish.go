package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// furnish mounts what every container has. "/" is the container's already: no
// symbolic link of the image leads out of it.
func (r *Root) furnish() error {
	dev, err := newFS("tmpfs", nosuid|noexec, option{"mode", "0755"}, option{"size", "64k"}, option{"nr_inodes", "4k"})
	if err != nil {
		return err
	}
	shm, err := newFS("tmpfs", nosuid|nodev|noexec, option{"mode", "1777"}, option{"size", "64m"})
	if err != nil {
		return err
	}
	for _, m := range []struct {
		fd   int
		path string
	}{
		{r.proc, "/proc"}, {r.sysfs, "/sys"}, {r.cgroup, "/sys/fs/cgroup"},
		{dev, "/dev"}, {r.devpts, "/dev/pts"}, {shm, "/dev/shm"}, {r.mqueue, "/dev/mqueue"},
	} {
		if m.fd < 0 {
			continue
		}
		if err := mountDir(m.fd, m.path); err != nil {
			return err
		}
	}
	if err := r.populateDev(); err != nil {
		return err
	}
	for i, v := range r.cfg.Volumes {
		if err := mountVolume(r.volumes[i], v); err != nil {
			return fmt.Errorf("volume %s: %w", v.Target, err)
		}
	}
	return nil
}

// mountDir attaches a detached mount at a directory, which is made when it is
// missing, and closes the descriptor.
func mountDir(fd int, path string) error {
	defer unix.Close(fd)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("mount point %s: %w", path, err)
	}
	return attach(fd, path)
}

// populateDev fills /dev as the runtime specification's "Default Devices" has
// it (opencontainers runtime-spec, config-linux.md).
func (r *Root) populateDev() error {
	for name, fd := range r.devs {
		if err := mountFile(fd, "/dev/"+name); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2", "/dev/ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, link); err != nil {
			return err
		}
	}
	return nil
}

// mountFile is mountDir for a single file.
func mountFile(fd int, path string) error {
	defer unix.Close(fd)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return fmt.Errorf("mount point %s: %w", path, err)
	}
	f.Close()
	return attach(fd, path)
}

// Console shows the terminal as /dev/console, as Docker does.
func Console(tty string) error {
	fd, err := clone(tty, single)
	if err != nil {
		return err
	}
	return mountFile(fd, "/dev/console")
}

// mountVolume attaches a volume. The kernel's own file systems are no place
// for one: a link of the image must not turn a volume into a way to replace
// what masks them.
func mountVolume(fd int, v Volume) error {
	defer unix.Close(fd)
	target, err := resolve(v.Target)
	if err != nil {
		return err
	}
	for _, reserved := range []string{"/proc", "/sys"} {
		if target == reserved || strings.HasPrefix(target, reserved+"/") {
			return fmt.Errorf("the target is inside %s", reserved)
		}
	}
	if target == "/" {
		return errors.New("the target is the root directory")
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return fmt.Errorf("make the target: %w", err)
		}
	} else {
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return fmt.Errorf("make the target: %w", err)
		}
		if _, err := os.Lstat(target); err != nil {
			f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL, 0o644)
			if err != nil {
				return fmt.Errorf("make the target: %w", err)
			}
			f.Close()
		}
	}
	return attach(fd, target)
}

// resolve follows the symbolic links of as much of path as exists.
func resolve(path string) (string, error) {
	path = filepath.Clean(path)
	var missing []string
	for p := path; ; p = filepath.Dir(p) {
		real, err := filepath.EvalSymlinks(p)
		if err == nil {
			return filepath.Join(append([]string{real}, missing...)...), nil
		}
		if !errors.Is(err, os.ErrNotExist) || p == "/" {
			return "", err
		}
		if _, err := os.Lstat(p); err == nil {
			return "", fmt.Errorf("%s is a symbolic link to nothing", p)
		}
		missing = append([]string{filepath.Base(p)}, missing...)
	}
}

// Docker's lists (moby oci/defaults.go).
var (
	masked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	maskedPattern = "/sys/devices/system/cpu/cpu*/thermal_throttle"
	protected     = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// Restrict masks and write-protects what the workload must not see or change.
// After it sysctls can no longer be written.
func (r *Root) Restrict() error {
	throttle, err := filepath.Glob(maskedPattern)
	if err != nil {
		return err
	}
	for _, path := range append(append([]string{}, masked...), throttle...) {
		if err := mask(path); err != nil {
			return err
		}
	}
	for _, path := range protected {
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		if err := protect(path); err != nil {
			return err
		}
	}
	if !r.cfg.ReadOnly {
		return nil
	}
	for _, path := range r.writable {
		err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_set: readonly})
		if err != nil {
			return fmt.Errorf("write-protect %s: %w", path, err)
		}
	}
	return nil
}

// mask hides a path: a file behind /dev/null, a directory behind an empty one.
func mask(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil //nolint:nilerr // what is not there needs no mask
	}
	var fd int
	if info.IsDir() {
		fd, err = newFS("tmpfs", readonly|nosuid|nodev|noexec)
	} else {
		fd, err = clone("/dev/null", single)
	}
	if err != nil {
		return fmt.Errorf("mask %s: %w", path, err)
	}
	defer unix.Close(fd)
	return attach(fd, path)
}
