package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// overlay mounts upper over lower at target. Paths may not hold ':' or ',';
// those that people name come as /proc/self/fd/N. userxattr is what makes an
// overlay usable in a user namespace: without it the mount succeeds, and
// removing and making a lower directory again gives EIO
// (Documentation/filesystems/overlayfs.rst).
func (r *Root) overlay(lower, upper, target string) error {
	work := filepath.Join("work", strconv.Itoa(r.layers))
	r.layers++
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	return mountOverlay(lower, upper, work, target)
}

func mountOverlay(lower, upper, work, target string) error {
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,userxattr", lower, upper, work)
	if err := unix.Mount("overlay", target, "overlay", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		if errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("mount overlay: %w; run: sudo modprobe overlay", err)
		}
		return fmt.Errorf("mount overlay over %s: %w", lower, err)
	}
	return nil
}

// ErrNoUserXattr is the finding that directories of the machine, once removed
// from an overlay, cannot be made again.
var ErrNoUserXattr = errors.New("a directory of the image that is removed cannot be made again: this kernel's tmpfs has no user extended attributes (Linux 6.6 with CONFIG_TMPFS_XATTR has)")

// tryOverlay tries an overlay with all its parts in the current directory,
// which must be a tmpfs: mount, remove a lower directory and make it again.
func tryOverlay() error {
	const dir = "probe"
	for _, d := range []string{"lower/d", "upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	merged := filepath.Join(dir, "merged")
	if err := mountOverlay(filepath.Join(dir, "lower"), filepath.Join(dir, "upper"), filepath.Join(dir, "work"), merged); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(merged, "d"))
	if err == nil {
		err = os.Mkdir(filepath.Join(merged, "d"), 0o700)
	}
	if uerr := unix.Unmount(merged, unix.MNT_DETACH); uerr != nil {
		return fmt.Errorf("unmount overlay: %w", uerr)
	}
	if rerr := os.RemoveAll(dir); rerr != nil {
		return rerr
	}
	if err != nil && errors.Is(unix.Setxattr(".", "user.slipway", []byte("1"), 0), unix.EOPNOTSUPP) {
		return ErrNoUserXattr
	}
	if err != nil {
		return fmt.Errorf("overlay: remove a directory and make it again: %w", err)
	}
	return nil
}

// Probe tries in the caller's mount namespace what every container needs: the
// mount calls (err) and, when those work, an overlay.
func Probe() (overlay, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	r := &Root{}
	if err := r.stage(); err != nil {
		return nil, err
	}
	fd, err := clone("/dev/null", single)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := setattr(fd, readonly, single); err != nil {
		return nil, err
	}
	fd, err = newFS("proc", nosuid|nodev|noexec)
	if err != nil {
		return nil, err
	}
	unix.Close(fd)
	return tryOverlay(), nil
}

// probeOverlay is tryOverlay for a container that goes on with less.
func (r *Root) probeOverlay() error {
	err := tryOverlay()
	if errors.Is(err, ErrNoUserXattr) {
		r.notice(err.Error())
		return nil
	}
	return err
}

// maxSkeleton bounds the directories that skeleton makes.
const maxSkeleton = 1 << 16

// skeleton gives an upper layer the directories of its lower one, so that they
// belong to the container's root and take new files: directories of the
// machine belong to ids that do not exist here, and no capability reaches over
// those. Only directories that the caller may read are made; what is hidden
// stays hidden. skip names paths to leave out.
func (r *Root) skeleton(lower, upper string, skip map[string]bool) error {
	f, err := os.Open(lower)
	if errors.Is(err, os.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if r.dirs++; r.dirs > maxSkeleton {
		r.notice(fmt.Sprintf("more than %d directories; some of %s belong to nobody in the container", maxSkeleton, lower))
		return nil
	}
	if err := os.Mkdir(upper, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	entries, err := f.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(lower, e.Name())
		if !e.IsDir() || skip[name] {
			continue
		}
		if err := r.skeleton(name, filepath.Join(upper, e.Name()), skip); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	// Last, since the mode may forbid making entries.
	return os.Chmod(upper, info.Mode())
}
