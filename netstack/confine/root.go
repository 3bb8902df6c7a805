package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// resolvConf is where the host's resolvers are listed (resolv.conf(5)).
const resolvConf = "/etc/resolv.conf"

// writers are the directories of the programs that write resolv.conf, to which it may
// become a link while we run.
var writers = []string{"/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/run/connman", "/run/netconfig"}

const (
	maxLinks = 40 // MAXSYMLINKS of include/linux/namei.h
	maxOver  = 4  // mounts that may lie over a new root
)

// Root gives the process a root directory of its own, read-only, in which there is /etc,
// of /run what resolv.conf may lead to, and this program at the path given. The rest of
// the machine is gone. It needs CAP_SYS_ADMIN and a mount namespace that no other
// process is in, whose mounts tell other namespaces nothing (mount_namespaces(7)), and
// Linux 5.12 (mount_setattr(2)). After an error the process should end.
func Root(program string) error {
	// Where all goes as long as the machine is there.
	const stage = "/tmp"
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("mount a root at %s: %w", stage, err)
	}
	for _, dir := range append([]string{"/etc"}, resolverDirs()...) {
		if err := bind(dir, stage+dir, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(stage+filepath.Dir(program), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(stage+program, nil, 0o644); err != nil {
		return err
	}
	if err := bind("/proc/self/exe", stage+program, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
		return err
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, stage, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return PivotRoot(stage)
}

// bind copies the mount at from, with all that is mounted below it, to a directory
// which it makes, or to a file that is there. What the host mounts there later, another
// resolv.conf for one, comes along.
func bind(from, to string, attrs uint64) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	defer unix.Close(fd)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attrs, Propagation: unix.MS_SLAVE})
	if err != nil {
		return fmt.Errorf("bind %s: mount_setattr (Linux 5.12 or newer is needed): %w", from, err)
	}
	if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	return nil
}

// resolverDirs are the directories outside of /etc in which resolv.conf may be found.
func resolverDirs() []string {
	var dirs []string
	add := func(dir string) {
		for _, d := range append([]string{"/etc"}, dirs...) {
			if dir == d || strings.HasPrefix(dir, d+"/") {
				return
			}
		}
		if fi, err := os.Lstat(dir); err == nil && fi.IsDir() {
			dirs = append(dirs, dir)
		}
	}
	path := resolvConf
	for range maxLinks {
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		// The directory may be reached by links itself, /var/run for one.
		dir, err := filepath.EvalSymlinks(filepath.Dir(to))
		if err != nil || dir == "/" {
			break
		}
		add(filepath.Dir(to))
		add(dir)
		path = to
	}
	for _, dir := range writers {
		add(dir)
	}
	return dirs
}

// PivotRoot makes the mount at dir the root of this mount namespace and lets go of the
// old one, with whatever was mounted over that (pivot_root(2), "pivot_root(".", ".")").
func PivotRoot(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w (a machine whose root is its initramfs cannot do it)", err)
	}
	// The old root now lies on top of the new one: "." resolves to the topmost.
	for range maxOver {
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount the old root: %w", err)
		}
		over, err := mountedOver()
		if err != nil {
			return err
		}
		if !over {
			if err := os.Chdir("/"); err != nil {
				return fmt.Errorf("enter the new root: %w", err)
			}
			return nil
		}
	}
	return errors.New("unmount the old root: something is still mounted over the new one")
}

// mountedOver reports whether something is mounted over the root. It would be one ".."
// away: unlike "/", ".." of the root steps up what is mounted on it.
func mountedOver() (bool, error) {
	var root, above unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_MNT_ID|unix.STATX_INO, &root); err != nil {
		return false, fmt.Errorf("statx /: %w", err)
	}
	if err := unix.Statx(unix.AT_FDCWD, "/..", 0, unix.STATX_MNT_ID|unix.STATX_INO, &above); err != nil {
		return false, fmt.Errorf("statx /..: %w", err)
	}
	return root.Mnt_id != above.Mnt_id || root.Ino != above.Ino, nil
}
