package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// The host image is an allow-list: what is not named here of the machine does
// not exist in the container. An overlay over "/" would be simpler, but the
// kernel refuses one in a user namespace, where mounts below it are locked
// (has_locked_children in fs/namespace.c), and it would show everything.
var (
	// hostTrees are shared read-only, with what is mounted below them.
	hostTrees = []string{"/usr", "/opt"}
	// hostLinks are symbolic links to /usr on a merged system; where they are
	// directories they are shared like hostTrees.
	hostLinks = []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}
	// hostLayers get a writable layer.
	hostLayers = []string{"/etc", "/var"}
	// hostEmpty are made afresh.
	hostEmpty = map[string]os.FileMode{
		"/tmp": 0o777 | os.ModeSticky, "/run": 0o755, "/run/lock": 0o777 | os.ModeSticky,
		"/home": 0o755, "/root": 0o700, "/mnt": 0o755,
	}
)

// Bounds for a layered directory of the machine that has mounts below it.
const (
	maxLayers = 256     // overlays
	maxCopy   = 1 << 20 // bytes of one file that is copied
)

// openHost takes hold of the shared trees.
func (r *Root) openHost() error {
	for _, path := range append(append([]string{}, hostTrees...), hostLinks...) {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() {
			continue
		}
		fd, err := clone(path, recursive)
		if err != nil {
			return err
		}
		if err := setattr(fd, readonly|nosuid|nodev, recursive); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		r.trees[path] = fd
	}
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	for _, m := range infos {
		r.mounts = append(r.mounts, m.Mountpoint)
	}
	return nil
}

// buildHost makes the host image at "root".
func (r *Root) buildHost() error {
	if err := r.probeOverlay(); err != nil {
		return err
	}
	for path, fd := range r.trees {
		if err := os.Mkdir("root"+path, 0o755); err != nil {
			return err
		}
		if err := attach(fd, "root"+path); err != nil {
			return err
		}
		unix.Close(fd)
	}
	for _, path := range hostLinks {
		if target, err := os.Readlink(path); err == nil {
			if err := os.Symlink(target, "root"+path); err != nil {
				return err
			}
		}
	}
	for _, path := range hostLayers {
		if err := r.layer(path); err != nil {
			return fmt.Errorf("%s of the machine: %w", path, err)
		}
	}
	for _, path := range []string{"/tmp", "/run", "/run/lock", "/home", "/root", "/mnt"} {
		if err := emptyDir("root"+path, hostEmpty[path]); err != nil {
			return err
		}
	}
	// /var/tmp lies in a layer, and only a mount hides what a layer shows.
	if err := emptyDir("empty/tmp", 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := os.Mkdir("root/var/tmp", 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := unix.Mount("empty/tmp", "root/var/tmp", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /var/tmp: %w", err)
	}
	r.writable = append(r.writable, "/var/tmp")
	return r.generate("root")
}

func emptyDir(path string, mode os.FileMode) error {
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.Chmod(path, mode) // past the umask
}

// layer puts a writable layer over a directory of the machine. Where something
// is mounted below it the kernel refuses: then the directory is made from its
// parts, each with a layer of its own, and single files are copied.
func (r *Root) layer(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	target := "root" + path
	if err := os.Mkdir(target, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if !r.mountsBelow(path) {
		if r.layers >= maxLayers {
			r.notice(fmt.Sprintf("more than %d layers: %s is empty in the container", maxLayers, path))
			return nil
		}
		upper := fmt.Sprintf("upper/%d", r.layers)
		if err := r.skeleton(path, upper, nil); err != nil {
			return err
		}
		if _, err := os.Stat(upper); err != nil {
			return os.Chmod(target, info.Mode()) // not readable: nothing to show
		}
		if err := r.overlay(path, upper, target); err != nil {
			return err
		}
		r.writable = append(r.writable, path)
		return nil
	}
	entries, err := os.ReadDir(path)
	if errors.Is(err, os.ErrPermission) {
		return os.Chmod(target, info.Mode())
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := r.part(filepath.Join(path, e.Name()), e); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return os.Chmod(target, info.Mode())
}

// part makes one entry of a directory that cannot be layered as a whole.
func (r *Root) part(path string, e os.DirEntry) error {
	switch {
	case e.IsDir():
		return r.layer(path)
	case e.Type()&os.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(target, "root"+path)
	case e.Type().IsRegular():
		return r.copyFile(path)
	}
	return nil // sockets, pipes and devices are the machine's own
}

func (r *Root) copyFile(path string) error {
	in, err := os.Open(path)
	if errors.Is(err, os.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxCopy {
		r.notice(fmt.Sprintf("%s is left out: it lies beside mounts and is larger than %d bytes", path, maxCopy))
		return nil
	}
	out, err := os.OpenFile("root"+path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(in, maxCopy))
	return errors.Join(err, out.Close())
}

// mountsBelow reports whether the machine has something mounted strictly below
// path.
func (r *Root) mountsBelow(path string) bool {
	for _, m := range r.mounts {
		if strings.HasPrefix(m, path+"/") {
			return true
		}
	}
	return false
}
