//go:build e2e

package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	maps.Copy(attacks, map[string]attack{
		"read":     attackRead,
		"write":    attackWrite,
		"everyone": attackEveryone,
		"climb":    attackClimb,
		"handle":   attackHandle,
		"umount":   attackUmount,
		"mount":    attackMount,
		"remount":  attackRemount,
		"mknod":    attackMknod,
		"unix":     attackUnix,
		"keep":     attackKeep,
		"loosen":   attackLoosen,
		"chmod":    attackChmod,
		"overkept": attackOverwriteKept,
	})
}

// attackRead reads a file.
func attackRead(args []string) (string, error) {
	b, err := os.ReadFile(args[0])
	return string(b), err
}

// attackWrite writes to a file, `write PATH TEXT`; with a third word it makes it.
func attackWrite(args []string) (string, error) {
	flags := os.O_WRONLY
	if len(args) > 2 {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(args[0], flags, 0o644)
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(args[1])
	return "written", errors.Join(err, f.Close())
}

// attackEveryone reads a file, or dials a socket, through the root and the working
// directory of every process there is.
func attackEveryone(args []string) (string, error) {
	var last error
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		for _, way := range []string{"root", "cwd", "root/..", "cwd/../../../../..", "task/" + e.Name() + "/root"} {
			path := "/proc/" + e.Name() + "/" + way + args[0]
			got, err := attackRead([]string{path})
			if errors.Is(err, unix.ENXIO) { // a socket
				got, err = attackUnix([]string{path})
			}
			if err == nil {
				return got, nil
			}
			if !errors.Is(err, unix.ENOTDIR) {
				last = err
			}
		}
	}
	return "", last
}

// attackClimb leaves a chroot of its own making, which takes whoever stands outside
// of its root up to the top of the mount tree, and reads a file from there.
func attackClimb(args []string) (string, error) {
	dir, err := os.MkdirTemp("/dev/shm", "chroot")
	if err != nil {
		return "", err
	}
	home, err := os.Open("/")
	if err != nil {
		return "", err
	}
	defer home.Close()
	defer func() { // back, for the next attack
		_ = home.Chdir()
		_ = unix.Chroot(".")
	}()
	if err := unix.Chroot(dir); err != nil {
		return "", fmt.Errorf("chroot: %w", err)
	}
	if err := home.Chdir(); err != nil {
		return "", err
	}
	return attackRead([]string{strings.Repeat("../", 40) + args[0]})
}

// attackHandle opens a file by its handle, `handle TYPE HEX DIR`: by inode number,
// past every path, on the file system of any directory it can see
// (open_by_handle_at(2)).
func attackHandle(args []string) (string, error) {
	typ, err := strconv.Atoi(args[0])
	if err != nil {
		return "", err
	}
	b, err := hex.DecodeString(args[1])
	if err != nil {
		return "", err
	}
	dir, err := unix.Open(args[2], unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	fd, err := unix.OpenByHandleAt(dir, unix.NewFileHandle(int32(typ), b), unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), "handle")
	defer f.Close()
	text, err := io.ReadAll(f)
	return string(text), err
}

// attackUmount lets go of all mounts that it may, from the top down, so that what
// lies below them shows, and reads a file then.
func attackUmount(args []string) (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	gone := 0
	for i := len(lines) - 1; i >= 0; i-- {
		if unix.Unmount(strings.Fields(lines[i])[4], unix.MNT_DETACH) == nil {
			gone++
		}
	}
	if gone == 0 {
		return "", errors.New("nothing can be unmounted")
	}
	got, err := attackRead(args)
	return got, err
}

// attackMount mounts, `mount SOURCE TYPE [bind]`, at a directory of its own, and
// returns where.
func attackMount(args []string) (string, error) {
	dir, err := os.MkdirTemp("/run", "mount")
	if err != nil {
		return "", err
	}
	flags := uintptr(0)
	if len(args) > 2 {
		flags = unix.MS_BIND | unix.MS_REC
	}
	return dir, unix.Mount(args[0], dir, args[1], flags, "")
}

// attackRemount takes the write protection off a mount and makes a file there.
func attackRemount(args []string) (string, error) {
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, args[0], unix.AT_RECURSIVE, &attr); err != nil {
		return "", fmt.Errorf("remount: %w", err)
	}
	return attackWrite([]string{args[0] + "/attacked", "x", "new"})
}

// attackMknod makes a block device and opens it.
func attackMknod(args []string) (string, error) {
	dev, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return "", err
	}
	path := "/dev/attacked" + args[0]
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(dev)); err != nil {
		return "", err
	}
	return attackRead([]string{path})
}

// attackUnix dials a unix socket; @ begins an abstract name (unix(7)).
func attackUnix(args []string) (string, error) {
	c, err := net.Dial("unix", args[0])
	if err != nil {
		return "", err
	}
	return "connected", c.Close()
}

// attackKept is a handle on a program that runs, as CVE-2019-5736 keeps one.
// attackProc is the host's /proc: an attacker that is to outlive pid 1 is no process
// of the container's own.
var attackKept int

const attackProc = 3

func attackKeptPath() string { return "self/fd/" + strconv.Itoa(attackKept) }

func attackKeep(args []string) (string, error) {
	var err error
	attackKept, err = unix.Open(args[0], unix.O_PATH, 0)
	return "kept", err
}

// attackLoosen takes the write protection off the mount behind the handle.
func attackLoosen([]string) (string, error) {
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	return "writable", unix.MountSetattr(attackKept, "", unix.AT_EMPTY_PATH, &attr)
}

// attackChmod changes the file behind the handle, which even a running program
// does not prevent.
func attackChmod([]string) (string, error) {
	return "changed", unix.Fchmodat(attackProc, attackKeptPath(), 0o770, 0)
}

func attackOverwriteKept([]string) (string, error) {
	fd, err := unix.Openat(attackProc, attackKeptPath(), unix.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	_, err = unix.Write(fd, []byte("overwritten"))
	return "overwritten", errors.Join(err, unix.Close(fd))
}

// secret is a file of the caller's that no option names.
func secret(t *testing.T, dir string, mode fs.FileMode) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "slw-secret")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(f.Name()) })
	if _, err := f.WriteString("secret"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Chmod(mode), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// TestAttackFiles: what was not mounted is out of reach, even when all may read it.
func TestAttackFiles(t *testing.T) {
	t.Parallel()
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	public := secret(t, openDir(t), 0o666)
	secrets := []string{secret(t, home, 0o600), secret(t, "/tmp", 0o600), public}

	for _, path := range secrets {
		a := attackInside(t)
		for _, way := range []string{"", "/proc/1/root", "/proc/self/root/..", "/proc/1/cwd/../../..", "/../../../.."} {
			a.refused(invisible, "read", way+path)
		}
		a.refused(invisible, "everyone", path)
		a.refused(invisible, "climb", path)
		for _, way := range []string{"/..", "/proc/1/root/.."} {
			got := a.works("mount", way, "none", "bind") // the container's own root again
			a.refused(invisible, "read", got+path)
			a.refused(invisible, "read", got+"/.."+path)
		}
		a.refused(invisible, "umount", path)
		a.end()
	}

	// A mount of it makes all of these ways work.
	b := attackInside(t, "-v", filepath.Dir(public)+":"+filepath.Dir(public))
	for _, way := range []string{"", "/proc/1/root", "/proc/self/root/..", "/proc/1/cwd/../../..", "/../../../.."} {
		b.works("read", way+public)
	}
	b.works("everyone", public)
	b.works("climb", public)
	got := b.works("mount", "/..", "none", "bind")
	b.works("read", got+public)
	b.end()
	// An unmounting shows what is below: under /e2e, the empty file that it is mounted on.
	c := attackInside(t)
	if got := c.works("umount", "/e2e"); got != "" {
		t.Errorf("below /e2e is a file of %d bytes, want an empty one", len(got))
	}
	c.end()
}

// TestAttackHandles: inode numbers are no way to files.
func TestAttackHandles(t *testing.T) {
	t.Parallel()
	path := secret(t, openDir(t), 0o666)
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		t.Skipf("files of %s have no handles: %v", filepath.Dir(path), err)
	}
	handle := []any{h.Type(), hex.EncodeToString(h.Bytes())}
	a := attackInside(t)
	// ESTALE: another file system than the secret's.
	for _, dir := range []string{"/", "/usr", "/opt", "/etc", "/var", "/dev/null", "/e2e", "/proc", "/dev/shm"} {
		a.refused([]error{unix.EPERM, unix.EACCES, unix.ESTALE, unix.EOPNOTSUPP}, "handle", handle[0], handle[1], dir)
	}
	a.end()
	if os.Getuid() != 0 {
		return // only real root can show that the attack works
	}
	if got, err := attackHandle([]string{fmt.Sprint(handle[0]), fmt.Sprint(handle[1]), filepath.Dir(path)}); err != nil || got != "secret" {
		t.Errorf("the handle opens %q (%v) for the host's root, want the secret", got, err)
	}
}

// TestAttackMounts: no mount shows more of the machine, or makes it writable.
func TestAttackMounts(t *testing.T) {
	t.Parallel()
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		t.Fatal(err)
	}
	a := attackInside(t)

	a.refused([]error{unix.EPERM}, "mknod", st.Dev)
	for _, fstype := range []string{"ext4", "xfs", "btrfs", "vfat", "devtmpfs", "debugfs", "tracefs", "securityfs", "configfs"} {
		a.refused([]error{unix.EPERM, unix.ENODEV}, "mount", "/dev/null", fstype)
	}
	a.works("mount", "tmpfs", "tmpfs")

	// proc and sysfs again, without our masks: the machine's settings belong to others.
	proc := a.works("mount", "proc", "proc")
	for _, file := range []string{"sys/kernel/core_pattern", "sys/kernel/modprobe", "sys/vm/drop_caches", "sys/kernel/panic", "sysrq-trigger"} {
		if _, err := os.Stat("/proc/" + file); err == nil {
			a.refused(forbidden, "write", proc+"/"+file, "0")
		}
	}
	a.refused(append(forbidden, unix.ENOENT), "read", proc+"/kcore")
	a.refused(invisible, "procfile", os.Getpid(), "root")
	a.works("write", proc+"/sys/net/ipv4/ip_forward", "1") // of its own network
	sys := a.works("mount", "sysfs", "sysfs")
	for _, file := range []string{"power/state", "kernel/uevent_helper", "kernel/mm/transparent_hugepage/enabled", "kernel/profiling"} {
		if _, err := os.Stat("/sys/" + file); err == nil {
			a.refused(forbidden, "write", sys+"/"+file, "0")
		}
	}

	// Write protection is not what keeps root of all capabilities out: our ids are.
	a.refused(forbidden, "remount", "/usr")
	a.end()
	dir := openDir(t)
	b := attackInside(t, "-v", dir+":/mnt/volume:ro")
	b.refused([]error{unix.EROFS}, "write", "/mnt/volume/attacked", "x", "new")
	b.works("remount", "/mnt/volume")
	b.end()
}

// TestAttackSockets: unix sockets of the host, the metrics' among them.
func TestAttackSockets(t *testing.T) {
	t.Parallel()
	metrics := metricsSocket(t)
	dir := openDir(t)
	open := filepath.Join(dir, "open.sock")
	abstract := fmt.Sprintf("@slipway-e2e-%d", os.Getpid())
	for _, name := range []string{open, abstract} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	if err := os.Chmod(open, 0o666); err != nil {
		t.Fatal(err)
	}
	a := attackInside(t, "--metrics", "unix:"+metrics)
	for _, path := range []string{metrics, open} {
		a.refused(invisible, "unix", path)
		a.refused(invisible, "everyone", path)
	}
	a.refused([]error{unix.ECONNREFUSED}, "unix", abstract)
	if info, err := os.Stat(metrics); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the metrics socket: %v, %v; want mode 0600", info.Mode(), err)
	}
	a.end()

	b := attackInside(t, "-v", dir+":"+dir, "--network", "host")
	b.works("unix", open)
	b.works("everyone", open)
	b.works("unix", abstract)
	b.end()
	// None of ours is abstract: such a socket would have no file whose rights protect it.
	names, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(names)) {
		if f := strings.Fields(line); len(f) > 7 && strings.HasPrefix(f[7], "@") && strings.Contains(f[7], "slipway") && f[7] != abstract {
			t.Errorf("an abstract socket: %s", f[7])
		}
	}
}

// TestAttackWorkingDirectory: no descriptor of ours leaks, so that no working
// directory leads out by one (CVE-2024-21626).
func TestAttackWorkingDirectory(t *testing.T) {
	t.Parallel()
	path := secret(t, openDir(t), 0o666)
	// A program of the host's beside a directory image that the container's root could name.
	image := filepath.Join(openDir(t), "image")
	tool := filepath.Join(filepath.Dir(image), "tool")
	for name, content := range map[string][]byte{filepath.Join(image, "bin/e2e"): testBinary(t), tool: testBinary(t)} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for fd := range 16 {
		t.Run(fmt.Sprintf("dir/%d", fd), func(t *testing.T) {
			t.Parallel()
			for _, args := range [][]string{
				{"dir:" + image, fmt.Sprintf("/proc/self/fd/%d/../tool", fd)},
				{"-w", fmt.Sprintf("/proc/self/fd/%d/..", fd), "dir:" + image, "./tool"},
				{"-w", fmt.Sprintf("/proc/self/fd/%d/../made", fd), "dir:" + image, "/bin/e2e"},
			} {
				p := slipway(t, append([]string{"run", "--rm", "-e", helperEnv + "=describe"}, args...)...)
				if status := p.wait(); status == 0 {
					t.Errorf("%q: exit status 0, printed %q", args, &p.stdout)
				}
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(image), "made")); err == nil {
				t.Error("a directory was made on the host")
			}
		})
		for _, dir := range []string{"/proc/self/fd/%d", "/proc/self/fd/%d/../../../..", "/proc/1/fd/%d"} {
			dir := fmt.Sprintf(dir, fd)
			t.Run(dir, func(t *testing.T) {
				t.Parallel()
				p := slipway(t, "run", "--rm", "-w", dir, "host", "cat", strings.Repeat("../", 10)+path[1:], path)
				if status := p.wait(); status == 0 || strings.Contains(p.stdout.String(), "secret") {
					t.Errorf("exit status %d, printed %q", status, &p.stdout)
				}
			})
		}
	}
	dir := filepath.Dir(path)
	p := slipway(t, "run", "--rm", "-v", dir+":"+dir, "-w", dir, "host", "cat", strings.Repeat("../", 10)+path[1:])
	if status := p.wait(); status != 0 || p.stdout.String() != "secret" {
		t.Errorf("with a mount: exit status %d, printed %q", status, &p.stdout)
	}
	q := slipway(t, "run", "--rm", "host", "sh", "-c", "ls /proc/self/fd; readlink /proc/self/cwd")
	// 3 is the directory that ls reads.
	if status := q.wait(); status != 0 || q.stdout.String() != "0\n1\n2\n3\n/\n" {
		t.Errorf("exit status %d, descriptors and directory %q", status, &q.stdout)
	}
}
