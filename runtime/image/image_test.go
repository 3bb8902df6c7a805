package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	dir := t.TempDir()
	colon := filepath.Join(dir, "with:colon")
	if err := os.Mkdir(colon, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(colon, link); err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]Reference{
		"host":                {Kind: Host},
		"dir:" + dir:          {Kind: Dir, Path: dir},
		"dir:" + colon:        {Kind: Dir, Path: colon},
		"dir:" + link:         {Kind: Dir, Path: colon},
		"oci:" + dir:          {Kind: OCI, Path: dir},
		"oci:" + dir + ":v1":  {Kind: OCI, Path: dir, Tag: "v1"},
		"oci:" + colon:        {Kind: OCI, Path: colon},
		"oci:" + colon + ":t": {Kind: OCI, Path: colon, Tag: "t"},
	} {
		got, err := Parse(s)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v (-want +got)\n%s", s, err, diff)
		}
	}
	for s, want := range map[string]string{
		"": "unknown image", "alpine": "unknown image", "docker.io/library/alpine:3": "registries are not supported", "dir:": "unknown image", "oci:": "unknown image",
		"host:x": "unknown image", "Host": "unknown image", "dir:" + file: "not a directory", "dir:/no/such": "no such file", "oci:/no/such:tag": "no such file", "oci:" + dir + "/no:/tag": "no such file",
	} {
		if got, err := Parse(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v; want %q", s, got, err, want)
		}
	}
}

// only is an Owner that knows one id.
type only int

func (o only) HasUID(id int) bool { return id == int(o) }
func (o only) HasGID(id int) bool { return id == int(o) }

// FuzzExtract unpacks whatever an archive says, and never outside of the root.
func FuzzExtract(f *testing.F) {
	for _, h := range []tar.Header{
		{Name: "a/b", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 3}, {Name: "../../up", Typeflag: tar.TypeReg, Size: 3}, {Name: "/abs", Typeflag: tar.TypeDir},
		{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/"}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "../x"}, {Name: "d", Typeflag: tar.TypeChar}, {Name: ".", Typeflag: tar.TypeDir},
		{Name: "../up", Typeflag: tar.TypeDir},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("abc")); err != nil {
				f.Fatal(err)
			}
		}
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: "l/through", Typeflag: tar.TypeReg, Format: tar.FormatPAX}), w.Close()); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		top := t.TempDir()
		inside := filepath.Join(top, "root")
		if err := os.Mkdir(inside, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(inside)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		x := extractor{root: root, ids: only(os.Getuid()), room: 1 << 16}
		_ = x.run(tar.NewReader(bytes.NewReader(archive))) // most archives are none
		left, err := os.ReadDir(top)
		if err != nil || len(left) != 1 {
			t.Errorf("outside of the root: %v, %v", left, err)
		}
		// What the archive made may be closed to us.
		_ = filepath.WalkDir(inside, func(path string, d os.DirEntry, _ error) error {
			if d.IsDir() {
				return os.Chmod(path, 0o700)
			}
			return nil
		})
	})
}

// A sparse file claims a size without having it.
func TestExtractTooLarge(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"fits", "does-not"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: 600, Uid: os.Getuid(), Gid: os.Getgid()}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, 600)); err != nil {
			t.Fatal(err)
		}
	}
	x := extractor{root: root, ids: only(os.Getuid()), room: 1000}
	if err := x.run(tar.NewReader(&b)); err == nil || !strings.Contains(err.Error(), "does-not: the image is too large") {
		t.Errorf("got %v", err)
	}
}

func TestExtractOwners(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "known", Typeflag: tar.TypeReg, Uid: 0, Gid: 0}, {Name: "foreign", Typeflag: tar.TypeReg, Uid: 5, Gid: 6, Mode: 0o2755}, {Name: "null", Typeflag: tar.TypeChar},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root to give files away")
	}
	x := extractor{root: root, ids: only(0), room: 1 << 16}
	if err := x.run(tar.NewReader(&b)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Summary{Entries: 3, Devices: 1, Owners: 1}, x.sum); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if info, err := os.Stat(filepath.Join(dir, "foreign")); err != nil || info.Mode() != 0o755|os.ModeSetgid {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}
