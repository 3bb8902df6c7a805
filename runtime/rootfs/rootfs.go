// Package rootfs builds a container's root file system in the calling
// process's own mount namespace and moves into it.
//
// Everything writable is one tmpfs of that mount namespace: the root itself,
// or the upper layers over directories of the machine. It is gone with the
// namespace, however the container ends, and nothing is ever written to disk.
//
// The steps, in the order in which the caller must take them:
//
//	Open       takes hold of what the container will see of the machine, while paths still mean the machine's
//	(the caller drops its supplementary groups)
//	Enter      builds the root from the image, pivots into it, drops the rest of the machine, mounts /proc /sys /dev and the volumes
//	(the caller writes sysctls, opens the terminal)
//	Restrict   masks and write-protects what Docker does, and the whole root if asked
//
// The caller is root of a user namespace of its own, alone in new mount and
// pid namespaces. Needs Linux 5.12 (mount_setattr(2)).
package rootfs

import (
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"slipway/netstack/confine"
	"slipway/runtime/idmap"
	"slipway/runtime/image"
)

// Config says what the container's files are made of.
type Config struct {
	Image   image.Reference
	Layers  v1.Image          // the image itself, for OCI
	Volumes []Volume          // in the order in which they are mounted
	Files   map[string]string // generated files by name below /etc: "resolv.conf" and so on
	// ReadOnly write-protects the root. Volumes and what the kernel makes are
	// not part of it.
	ReadOnly bool
	IDs      idmap.Inside // the ids that exist here
	// OwnNetwork is false when the network namespace is the host's, whose
	// sysfs a user namespace may not mount.
	OwnNetwork bool
	// Notice takes what is less than asked for, in words for a person.
	Notice func(text string)
}

// Volume is one bind mount.
type Volume struct {
	Source   string // absolute path on the machine
	Target   string // absolute path in the container, made when missing
	ReadOnly bool   // recursively
}

// devices of the machine that a container gets: runc's list (libcontainer
// specconv, AllowedDevices).
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// Root is a root file system in the making.
type Root struct {
	cfg      Config
	lower    int            // dir: the image's directory, O_PATH
	trees    map[string]int // host: detached clones by their place in the container
	volumes  []int          // detached clones, as cfg.Volumes
	devs     map[string]int // detached clones by name
	proc     int            // fresh file systems, not yet attached
	sysfs    int
	mqueue   int
	cgroup   int
	devpts   int
	mounts   []string        // mount points of the machine, to know what cannot be a layer
	writable []string        // mounts of the image, for ReadOnly
	layers   int             // overlays made
	dirs     int             // skeleton directories made
	noticed  map[string]bool // notices given, each once
}

// Open takes hold of everything the container will have of the machine.
func Open(cfg Config) (*Root, error) {
	r := &Root{cfg: cfg, lower: -1, trees: map[string]int{}, devs: map[string]int{}, noticed: map[string]bool{}}
	// Nothing that is mounted from here on may show on the machine, nor the
	// machine's later mounts here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w (AppArmor may take the rights of user namespaces away: run slipway doctor)", err)
	}
	for _, v := range cfg.Volumes {
		fd, err := clone(v.Source, recursive)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w%s", v.Source, err, r.whyUnreadable(v.Source))
		}
		var set uint64
		if v.ReadOnly {
			set = unix.MOUNT_ATTR_RDONLY
		}
		if err := setattr(fd, set, recursive); err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Source, err)
		}
		r.volumes = append(r.volumes, fd)
	}
	for _, name := range devices {
		fd, err := clone("/dev/"+name, single)
		if err != nil {
			r.notice(fmt.Sprintf("device /dev/%s: %v; the container does without it", name, err))
			continue
		}
		r.devs[name] = fd
	}
	switch cfg.Image.Kind {
	case image.Host:
		if err := r.openHost(); err != nil {
			return nil, err
		}
	case image.Dir:
		fd, err := unix.Open(cfg.Image.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("image directory %s: %w%s", cfg.Image.Path, err, r.whyUnreadable(cfg.Image.Path))
		}
		r.lower = fd
	}
	return r, r.openKernel()
}

// openKernel makes the kernel's own file systems. It must happen while the
// machine's are still in sight: the kernel gives a user namespace a new proc
// or sysfs only where it can see one already (mount_too_revealing in
// fs/namespace.c).
func (r *Root) openKernel() (err error) {
	if r.proc, err = newFS("proc", nosuid|nodev|noexec); err != nil {
		return fmt.Errorf("%w (is this a container whose /proc is partly hidden? it needs --security-opt systempaths=unconfined)", err)
	}
	gid := ""
	if r.cfg.IDs.HasGID(5) {
		gid = "5" // the tty group, as everywhere
	}
	pts := []option{{"newinstance", flagOption}, {"ptmxmode", "0666"}, {"mode", "0620"}}
	if gid != "" {
		pts = append(pts, option{"gid", gid})
	}
	if r.devpts, err = newFS("devpts", nosuid|noexec, pts...); err != nil {
		return err
	}
	if r.mqueue, err = newFS("mqueue", nosuid|nodev|noexec); err != nil {
		r.mqueue = -1 // POSIX message queues are the only thing missing then
	}
	if r.cgroup, err = newFS("cgroup2", readonly|nosuid|nodev|noexec); err != nil {
		r.cgroup = -1 // a machine on cgroup v1, or /sys partly hidden
	}
	r.sysfs = -1
	if r.cfg.OwnNetwork {
		if r.sysfs, err = newFS("sysfs", readonly|nosuid|nodev|noexec); err == nil {
			return nil
		}
	}
	// The network namespace is not ours, or /sys is partly hidden: the
	// machine's own, write-protected.
	if r.sysfs, err = clone("/sys", recursive); err != nil {
		return fmt.Errorf("clone /sys: %w", err)
	}
	return setattr(r.sysfs, readonly|nosuid|nodev|noexec, recursive)
}

// Enter builds the root, moves into it and lets go of the machine.
func (r *Root) Enter() error {
	if err := r.stage(); err != nil {
		return err
	}
	if err := r.build(); err != nil {
		return err
	}
	if err := confine.PivotRoot("root"); err != nil {
		return err
	}
	return r.furnish()
}

// stage mounts the tmpfs that holds everything writable and makes it the
// current directory. It lies on top of "/", where only the current directory
// reaches it: absolute paths start below it (path_resolution(7)) and go on to
// mean the machine.
func (r *Root) stage() error {
	fd, err := newFS("tmpfs", nosuid|nodev, option{"mode", "0755"})
	if err != nil {
		return err
	}
	if err := attach(fd, "/"); err != nil {
		return err
	}
	if err := unix.Fchdir(fd); err != nil {
		return fmt.Errorf("enter the container's tmpfs: %w", err)
	}
	unix.Close(fd)
	for _, dir := range []string{"root", "upper", "work", "empty"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// build makes the image's part of the root at "root", as a mount.
func (r *Root) build() error {
	if r.cfg.Image.Kind == image.Dir {
		return r.buildDir()
	}
	if err := unix.Mount("root", "root", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the container's root: %w", err)
	}
	r.writable = append(r.writable, "/")
	if r.cfg.Image.Kind == image.Host {
		return r.buildHost()
	}
	root, err := os.OpenRoot("root")
	if err != nil {
		return err
	}
	defer root.Close()
	sum, err := image.Extract(r.cfg.Layers, root, r.cfg.IDs)
	if err != nil {
		return err
	}
	if sum.Owners > 0 {
		r.notice(fmt.Sprintf("%d files of the image belong to ids that do not exist here and are given to root", sum.Owners))
	}
	if sum.Devices > 0 {
		r.notice(fmt.Sprintf("%d device nodes of the image are left out: a user namespace may not make them", sum.Devices))
	}
	return r.generate("root")
}

// buildDir lays a layer over the image's directory.
func (r *Root) buildDir() error {
	if err := r.probeOverlay(); err != nil {
		return err
	}
	lower := fmt.Sprintf("/proc/self/fd/%d", r.lower)
	var st unix.Stat_t
	if err := unix.Fstat(r.lower, &st); err != nil {
		return fmt.Errorf("stat image directory: %w", err)
	}
	upper := filepath.Join("upper", "dir")
	if err := os.MkdirAll(upper, 0o755); err != nil {
		return err
	}
	if !r.cfg.IDs.HasUID(int(st.Uid)) || st.Uid == overflowID {
		r.notice(fmt.Sprintf("files of %s belong to users that do not exist in the container: they can be replaced, not opened for writing", r.cfg.Image.Path))
		if err := r.skeleton(lower, upper, nil); err != nil {
			return err
		}
	}
	if info, err := os.Lstat(lower + "/etc"); err != nil || info.IsDir() {
		if err := r.generate(upper); err != nil {
			return err
		}
	}
	if err := r.overlay(lower, upper, "root"); err != nil {
		return fmt.Errorf("image directory %s: %w (mounts below it cannot be part of it: unmount them)", r.cfg.Image.Path, err)
	}
	r.writable = append(r.writable, "/")
	// It would still be open at the workload's execve, whose path may lead through
	// /proc/self/fd (CVE-2024-21626).
	unix.Close(r.lower)
	r.lower = -1
	return nil
}

// generate writes the generated files into the etc directory below top, in place of
// what the image has there. Links of the image that lead out of top, to the machine's
// files, are not followed.
func (r *Root) generate(top string) error {
	root, err := os.OpenRoot(top)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.MkdirAll("etc", 0o755); err != nil {
		return fmt.Errorf("/etc of the image: %w", err)
	}
	for name, text := range r.cfg.Files {
		path := filepath.Join("etc", name)
		if err := root.RemoveAll(path); err != nil {
			return fmt.Errorf("/etc of the image: %w", err)
		}
		if err := root.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("/etc of the image: %w", err)
		}
	}
	return nil
}

// overflowID is what an unmapped owner reads as (user_namespaces(7)).
const overflowID = 65534

// whyUnreadable explains a failing path for the case that is hard to guess.
func (r *Root) whyUnreadable(path string) string {
	if err := unix.Access(path, unix.R_OK); err == unix.EACCES {
		return fmt.Sprintf(" (the container's root is another user on this machine, and may not reach it: give others the right to, for instance chmod o+rx on %s and the directories above)", path)
	}
	return ""
}

func (r *Root) notice(text string) {
	if !r.noticed[text] {
		r.noticed[text] = true
		r.cfg.Notice(text)
	}
}
