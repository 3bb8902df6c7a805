// Package idmap decides which user and group ids exist in a container's user
// namespace, and writes the maps (user_namespaces(7)).
//
// An ordinary user's container root is that user; ids from 1 on come from the
// user's ranges in /etc/subuid and /etc/subgid, written by newuidmap and
// newgidmap. Real root's container root is the first id of root's own range, so
// that it means nothing on the host. Where no range can be had one id is left,
// and Plan.Reason says why and what would help.
package idmap

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// MaxRange bounds how many sub-ids are mapped: what images use, and what the
// kernel's ping_group_range and the distributions' default ranges cover.
const MaxRange = 65536

// nobody is the host id that real root's container gets when root owns no
// range: the one id every distribution leaves without rights.
const nobody = 65534

// Host is what the decision depends on.
type Host struct {
	UID, GID int    // effective ids of the caller
	Name     string // login name, "" when /etc/passwd does not know the uid
	Initial  bool   // the caller's user namespace maps every id: the host's own
	SubUID   string // path of /etc/subuid
	SubGID   string // path of /etc/subgid
	// Helpers returns the paths of newuidmap and newgidmap, or why they
	// cannot be used.
	Helpers func() (newuidmap, newgidmap string, err error)
}

// Here describes the calling process.
func Here() Host {
	h := Host{UID: os.Geteuid(), GID: os.Getegid(), SubUID: "/etc/subuid", SubGID: "/etc/subgid", Helpers: helpers}
	if u, err := user.LookupUid(h.UID); err == nil {
		h.Name = u.Name
	}
	h.Initial = isFull("/proc/self/uid_map") && isFull("/proc/self/gid_map")
	return h
}

// isFull reports whether a map file holds the identity over all ids: only the
// initial user namespace has that by itself.
func isFull(path string) bool {
	m, err := user.ParseIDMapFile(path)
	return err == nil && len(m) == 1 && m[0].ID == 0 && m[0].ParentID == 0 && m[0].Count == 1<<32-1
}

// Plan is one container's id maps.
type Plan struct {
	UIDs, GIDs []syscall.SysProcIDMap
	// Single is true when only one id exists inside; Reason says why, with the fix.
	Single bool
	Reason string
	// KeepsGroups is true when the kernel forbids setgroups(2) inside, so that
	// the caller's supplementary groups cannot be dropped.
	KeepsGroups bool

	helpers [2]string // newuidmap, newgidmap; "" when the maps are written directly
	root    bool      // the caller is real root and its id is not mapped: the child must change to 0
}

// For decides the maps for a caller. It never fails: where nothing better can
// be had it falls back to one id.
func For(h Host) Plan {
	switch {
	case h.UID == 0 && h.Initial:
		return forRoot(h)
	case h.UID == 0:
		return single(h, "slipway runs as root of a user namespace and not of the machine, which has no sub-ids of its own to give")
	}
	uids, gids, err := ranges(h)
	if err != nil {
		return single(h, err.Error())
	}
	newuidmap, newgidmap, err := h.Helpers()
	if err != nil {
		return single(h, err.Error())
	}
	return Plan{
		UIDs:    []syscall.SysProcIDMap{{ContainerID: 0, HostID: h.UID, Size: 1}, {ContainerID: 1, HostID: uids.start, Size: uids.count}},
		GIDs:    []syscall.SysProcIDMap{{ContainerID: 0, HostID: h.GID, Size: 1}, {ContainerID: 1, HostID: gids.start, Size: gids.count}},
		helpers: [2]string{newuidmap, newgidmap},
	}
}

// forRoot maps real root's container to ids that are unprivileged on the host;
// root may write such a map itself.
func forRoot(h Host) Plan {
	uids, gids, err := ranges(h)
	if err != nil {
		return Plan{
			UIDs:   []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},
			GIDs:   []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},
			Single: true,
			Reason: err.Error(),
			root:   true,
		}
	}
	return Plan{
		UIDs: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uids.start, Size: uids.count}},
		GIDs: []syscall.SysProcIDMap{{ContainerID: 0, HostID: gids.start, Size: gids.count}},
		root: true,
	}
}

func single(h Host, reason string) Plan {
	return Plan{
		UIDs:        []syscall.SysProcIDMap{{ContainerID: 0, HostID: h.UID, Size: 1}},
		GIDs:        []syscall.SysProcIDMap{{ContainerID: 0, HostID: h.GID, Size: 1}},
		Single:      true,
		Reason:      reason,
		KeepsGroups: true,
	}
}

type idRange struct{ start, count int }

// ranges finds the caller's largest range in each file.
func ranges(h Host) (uids, gids idRange, err error) {
	if uids, err = largest(h, h.SubUID); err != nil {
		return uids, gids, err
	}
	gids, err = largest(h, h.SubGID)
	return uids, gids, err
}

// largest picks the longest range of the caller in a subuid(5) file, where the
// owner stands as a name or as a number.
func largest(h Host, path string) (idRange, error) {
	all, err := user.ParseSubIDFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return idRange{}, fmt.Errorf("read sub-ids from %s: %w", path, err)
	}
	var best idRange
	next := 100000 // SUB_UID_MIN of login.defs(5)
	for _, s := range all {
		if (s.Name == h.Name && h.Name != "") || s.Name == strconv.Itoa(h.UID) {
			if int(s.Count) > best.count {
				best = idRange{int(s.SubID), int(s.Count)}
			}
		}
		next = max(next, int(s.SubID+s.Count))
	}
	if best.count == 0 {
		owner := h.Name
		if owner == "" {
			owner = strconv.Itoa(h.UID)
		}
		return best, fmt.Errorf("user %s has no range in %s; run: echo %s:%d:%d | sudo tee -a /etc/subuid /etc/subgid", owner, path, owner, next, MaxRange)
	}
	best.count = min(best.count, MaxRange)
	return best, nil
}

// helpers finds newuidmap and newgidmap and checks that they can work at all.
func helpers() (newuidmap, newgidmap string, err error) {
	// PR_GET_NO_NEW_PRIVS, prctl(2): set-user-ID programs have no effect then.
	if nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && nnp == 1 {
		return "", "", errors.New("no_new_privs is set on slipway, so newuidmap cannot gain the right to map sub-ids; start slipway without it")
	}
	var paths [2]string
	for i, name := range [2]string{"newuidmap", "newgidmap"} {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", "", fmt.Errorf("%s is not installed; run: sudo apt-get install uidmap (Fedora: shadow-utils)", name)
		}
		if err := privileged(path); err != nil {
			return "", "", err
		}
		paths[i] = path
	}
	return paths[0], paths[1], nil
}

// privileged checks for the set-user-ID bit or file capabilities, and a mount
// that honours them.
func privileged(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if _, err := unix.Getxattr(path, "security.capability", nil); info.Mode()&os.ModeSetuid == 0 && err != nil {
		return fmt.Errorf("%s has neither the set-user-ID bit nor file capabilities; run: sudo chmod u+s %s", path, path)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err == nil && fs.Flags&unix.ST_NOSUID != 0 {
		return fmt.Errorf("%s is on a file system mounted nosuid; run: sudo mount -o remount,suid on it", path)
	}
	return nil
}

// Configure prepares the attributes of a process that is started in a new user
// namespace. Where the maps need the helpers the process starts without maps,
// and Write completes them.
func (p Plan) Configure(attr *syscall.SysProcAttr) {
	attr.Cloneflags |= syscall.CLONE_NEWUSER
	if p.helpers[0] != "" {
		return
	}
	attr.UidMappings, attr.GidMappings = p.UIDs, p.GIDs
	attr.GidMappingsEnableSetgroups = !p.KeepsGroups
	if p.root {
		attr.Credential = &syscall.Credential{Uid: 0, Gid: 0}
	}
}

// Write completes the maps of the started process by newuidmap(1) and
// newgidmap(1). Its error holds what the helper printed.
func (p Plan) Write(pid int) error {
	for i, m := range [2][]syscall.SysProcIDMap{p.UIDs, p.GIDs} {
		if p.helpers[i] == "" {
			continue
		}
		args := []string{strconv.Itoa(pid)}
		for _, e := range m {
			args = append(args, strconv.Itoa(e.ContainerID), strconv.Itoa(e.HostID), strconv.Itoa(e.Size))
		}
		cmd := exec.Command(p.helpers[i], args...)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for who waits for it
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s (do /etc/subuid and /etc/subgid allow these ids?)",
				p.helpers[i], strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// Inside is the pair of maps that hold for the calling process, as a process
// in the container reads them.
type Inside struct{ UIDs, GIDs []user.IDMap }

// Own reads the calling process's maps.
func Own() (Inside, error) {
	u, err := user.CurrentProcessUIDMap()
	if err != nil {
		return Inside{}, fmt.Errorf("read uid map: %w", err)
	}
	g, err := user.CurrentProcessGIDMap()
	if err != nil {
		return Inside{}, fmt.Errorf("read gid map: %w", err)
	}
	return Inside{u, g}, nil
}

// HasUID and HasGID report whether an id exists here.
func (m Inside) HasUID(id int) bool { return has(m.UIDs, id) }

// HasGID is HasUID for groups.
func (m Inside) HasGID(id int) bool { return has(m.GIDs, id) }

// LastUID and LastGID are the largest ids that exist here.
func (m Inside) LastUID() int { return last(m.UIDs) }

// LastGID is LastUID for groups.
func (m Inside) LastGID() int { return last(m.GIDs) }

func has(m []user.IDMap, id int) bool {
	for _, e := range m {
		if int64(id) >= e.ID && int64(id) < e.ID+e.Count {
			return true
		}
	}
	return false
}

func last(m []user.IDMap) int {
	var l int64
	for _, e := range m {
		l = max(l, e.ID+e.Count-1)
	}
	return int(l)
}
