package rootfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Mount attributes, mount_setattr(2).
const (
	readonly = unix.MOUNT_ATTR_RDONLY
	nosuid   = unix.MOUNT_ATTR_NOSUID
	nodev    = unix.MOUNT_ATTR_NODEV
	noexec   = unix.MOUNT_ATTR_NOEXEC
)

// depth of an operation on a mount.
type depth uint

const (
	single    depth = 0
	recursive depth = unix.AT_RECURSIVE
)

// option is a file system parameter; flagOption as value makes it a flag.
type option struct{ key, value string }

const flagOption = "\x00"

// newFS makes a file system that is mounted nowhere yet (fsopen(2), fsmount(2)).
func newFS(fstype string, attrs int, opts ...option) (int, error) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.ENODEV) {
			return -1, fmt.Errorf("open file system %s: %w; run: sudo modprobe %s", fstype, err, fstype)
		}
		return -1, fmt.Errorf("open file system %s: %w", fstype, err)
	}
	defer unix.Close(ctx)
	for _, o := range append([]option{{"source", fstype}}, opts...) {
		if o.value == flagOption {
			err = unix.FsconfigSetFlag(ctx, o.key)
		} else {
			err = unix.FsconfigSetString(ctx, o.key, o.value)
		}
		if err != nil {
			return -1, fmt.Errorf("file system %s, option %s: %w", fstype, o.key, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("create file system %s: %w", fstype, err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("mount file system %s: %w", fstype, err)
	}
	return fd, nil
}

// clone makes a detached copy of the mount at path, with what is mounted below
// it when recursive (open_tree(2)).
func clone(path string, d depth) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|uint(d))
	if err != nil {
		return -1, fmt.Errorf("clone mount %s: %w", path, err)
	}
	return fd, nil
}

// setattr adds attributes to a detached mount and cuts it off from other mount
// namespaces.
func setattr(fd int, attrs uint64, d depth) error {
	err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|uint(d), &unix.MountAttr{Attr_set: attrs, Propagation: unix.MS_PRIVATE})
	if err != nil {
		return fmt.Errorf("mount_setattr (Linux 5.12 or newer is needed): %w", err)
	}
	return nil
}

// attach mounts a detached mount at path. It does not follow a symbolic link
// in the last place.
func attach(fd int, path string) error {
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount at %s: %w", path, err)
	}
	return nil
}

// protect makes the mount at path, or the tree at path when it is no mount,
// read-only.
func protect(path string) error {
	fd, err := clone(path, recursive)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setattr(fd, readonly, recursive); err != nil {
		return err
	}
	return attach(fd, path)
}
