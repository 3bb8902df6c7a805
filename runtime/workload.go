package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"slipway/runtime/idmap"
)

// account is who the workload is, in the container's ids.
type account struct {
	uid, gid int
	groups   []int
	homeDir  string
	// keepsGroups is true where setgroups(2) is forbidden.
	keepsGroups bool
}

// resolveUser reads user[:group] with the container's own /etc/passwd and
// /etc/group.
func resolveUser(spec string, ids idmap.Inside) (account, error) {
	u, err := user.GetExecUserPath(spec, &user.ExecUser{Home: "/"}, "/etc/passwd", "/etc/group")
	if err != nil {
		return account{}, fmt.Errorf("user %q: %w (in the container's /etc/passwd and /etc/group)", spec, err)
	}
	if !ids.HasUID(u.Uid) {
		return account{}, fmt.Errorf("user %q: id %d does not exist in the container, the last one is %d; a range in /etc/subuid gives more, see slipway doctor", spec, u.Uid, ids.LastUID())
	}
	if !ids.HasGID(u.Gid) {
		return account{}, fmt.Errorf("user %q: group id %d does not exist in the container, the last one is %d; a range in /etc/subgid gives more, see slipway doctor", spec, u.Gid, ids.LastGID())
	}
	groups := slices.DeleteFunc(slices.Clone(u.Sgids), func(g int) bool { return !ids.HasGID(g) })
	if spec == "" {
		groups = nil // as Docker: only a named user brings its groups
	}
	return account{uid: u.Uid, gid: u.Gid, groups: groups, homeDir: u.Home}, nil
}

// assume makes the calling thread this user. Raw calls, since Go's own change
// every thread and compare their results, and the threads differ by now.
func (a account) assume() error {
	if !a.keepsGroups {
		if err := setgroups(a.groups); err != nil {
			return fmt.Errorf("set groups %v: %w", a.groups, err)
		}
	}
	id := uintptr(a.gid)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, id, id, id); e != 0 {
		return fmt.Errorf("change to group %d: %w", a.gid, e)
	}
	id = uintptr(a.uid)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id); e != 0 {
		return fmt.Errorf("change to user %d: %w", a.uid, e)
	}
	return nil
}

// home adds HOME where the environment has none.
func (a account) home(env []string) []string {
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		return env
	}
	return append(slices.Clone(env), "HOME="+a.homeDir)
}

// makeDir makes the working directory where it is missing, as root: Docker
// does.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("working directory %s: %w", dir, err)
	}
	return nil
}

// enterDir changes to the working directory as the workload's user, and makes
// sure that it is below the container's root (CVE-2024-21626).
func enterDir(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("working directory %s: %w", dir, err)
	}
	// The kernel puts "(unreachable)" before a directory outside the root (getcwd(3)).
	wd, err := unix.Getwd()
	if err != nil {
		return fmt.Errorf("working directory %s: %w", dir, err)
	}
	if !filepath.IsAbs(wd) {
		return fmt.Errorf("working directory %s is not in the container but %q", dir, wd)
	}
	return nil
}

// lookPath finds the program as execvp(3) would, with the container's PATH and
// as its user.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", execFailure(name, err)
		}
		return name, nil
	}
	var path string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	var found error
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		file := filepath.Join(dir, name)
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if found == nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			found = err
		}
	}
	if found != nil {
		return "", execFailure(name, found)
	}
	return "", &failure{exitNone, fmt.Errorf("execute %q: not found in the container's PATH=%s", name, path)}
}

func executable(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return unix.EISDIR
	}
	return unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS)
}

// execFailure gives an execve(2) error Docker's exit status: 127 for a program
// that is not there, 126 for one that cannot be executed.
func execFailure(name string, err error) error {
	f := &failure{exitPerm, fmt.Errorf("execute %q: %w", name, err)}
	if errors.Is(err, fs.ErrNotExist) {
		f.code = exitNone
		if _, serr := os.Stat(name); serr == nil {
			f.err = fmt.Errorf("execute %q: %w (its interpreter or loader is missing)", name, err)
		}
	}
	if errors.Is(err, unix.ENOEXEC) {
		f.err = fmt.Errorf("execute %q: %w (wrong architecture, or a script without #!)", name, err)
	}
	return f
}

// setgroups is setgroups(2) for the calling thread only.
func setgroups(groups []int) error {
	list := make([]uint32, len(groups)+1) // one more, for the address of an empty list
	for i, g := range groups {
		list[i] = uint32(g)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0])), 0); e != 0 {
		return e
	}
	return nil
}
