package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// Bounds of an image. Its files live in memory, where the tmpfs has a bound of
// its own; a sparse file of an archive may claim any size.
const (
	maxEntries = 1 << 20
	maxBytes   = 1 << 38
)

// Summary counts what could not be unpacked as the image has it.
type Summary struct {
	Entries int
	Devices int // device nodes, which a user namespace may not make
	Owners  int // entries given to root because their owner's id is not mapped
}

// Owner says which ids exist in the container.
type Owner interface {
	HasUID(id int) bool
	HasGID(id int) bool
}

// Extract unpacks the image's flattened layers below root, and never outside of
// it, whatever names and links the image brings.
func Extract(img v1.Image, root *os.Root, ids Owner) (Summary, error) {
	rc := mutate.Extract(img)
	defer rc.Close()
	x := extractor{root: root, ids: ids, room: maxBytes}
	err := x.run(tar.NewReader(rc))
	if err == nil {
		// mutate.Extract ends the archive before it tells of an error, so
		// that an unreadable layer looks like an empty one.
		_, err = io.Copy(io.Discard, rc)
	}
	if err != nil {
		return x.sum, fmt.Errorf("unpack image: %w", err)
	}
	return x.sum, nil
}

type extractor struct {
	root  *os.Root
	ids   Owner
	sum   Summary
	room  int64         // bytes that may still be unpacked
	links []*tar.Header // hard links, made last: their target may follow them
	dirs  []dirTime     // times of directories, set last: making entries changes them
}

type dirTime struct {
	name string
	time time.Time
}

func (x *extractor) run(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if x.sum.Entries++; x.sum.Entries > maxEntries {
			return fmt.Errorf("more than %d entries", maxEntries)
		}
		if err := x.entry(h, r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	for _, h := range x.links {
		if err := x.link(h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	for _, d := range x.dirs {
		// A directory that a later entry replaced has no time to set.
		if err := x.root.Chtimes(d.name, d.time, d.time); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

func (x *extractor) entry(h *tar.Header, r io.Reader) error {
	name, err := x.place(h.Name)
	if err != nil {
		return err
	}
	mode := fs.FileMode(h.Mode).Perm()
	for bit, flag := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if h.Mode&bit != 0 {
			mode |= flag
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := x.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		x.dirs = append(x.dirs, dirTime{name, h.ModTime})
	case tar.TypeReg:
		if err := x.file(name, r); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := x.root.Symlink(h.Linkname, name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// A layer above may have made a directory where this one has a link: the one above wins.
		return x.own(name, h)
	case tar.TypeLink:
		x.links = append(x.links, h)
		return nil
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		x.sum.Devices++
		return nil
	default:
		return nil // global headers and the like carry no file
	}
	if err := x.own(name, h); err != nil {
		return err
	}
	// After the owner: chown(2) clears the set-user-ID bit.
	if err := x.root.Chmod(name, mode); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeReg {
		return x.root.Chtimes(name, h.ModTime, h.ModTime)
	}
	return nil
}

func (x *extractor) file(name string, r io.Reader) error {
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(r, x.room+1))
	if x.room -= n; x.room < 0 {
		err = errors.New("the image is too large")
	}
	return errors.Join(err, f.Close())
}

func (x *extractor) link(h *tar.Header) error {
	name, err := x.place(h.Name)
	if err != nil {
		return err
	}
	target, err := x.place(h.Linkname)
	if err != nil {
		return err
	}
	return x.root.Link(target, name)
}

// own gives the entry its owner, or root's id where the owner does not exist.
func (x *extractor) own(name string, h *tar.Header) error {
	uid, gid := h.Uid, h.Gid
	if !x.ids.HasUID(uid) || !x.ids.HasGID(gid) {
		x.sum.Owners++
		if !x.ids.HasUID(uid) {
			uid = 0
		}
		if !x.ids.HasGID(gid) {
			gid = 0
		}
	}
	return x.root.Lchown(name, uid, gid)
}

// place makes the directories above an entry, which may come after it, and
// gives its name in the root. An entry below a symbolic link does not come:
// mutate.Extract takes what is not a directory to hide what is below it.
func (x *extractor) place(entry string) (string, error) {
	name := strings.TrimPrefix(path.Clean("/"+entry), "/")
	if name == "" {
		return ".", nil
	}
	return name, x.root.MkdirAll(path.Dir(name), 0o755)
}
