//go:build e2e

package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func init() {
	helpers["describe"] = describe
}

// describe prints who and where it is, and the files that it is given.
func describe(args []string) error {
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	fmt.Printf("uid %d gid %d in %s FLAVOUR=%s HOME=%s\n", os.Getuid(), os.Getgid(), wd, os.Getenv("FLAVOUR"), os.Getenv("HOME"))
	for _, name := range args {
		b, err := os.ReadFile(name)
		if err != nil {
			fmt.Printf("%s: missing\n", name)
			continue
		}
		fmt.Printf("%s: %s\n", name, b)
	}
	return nil
}

// testBinary is the test binary itself: the one program that is sure to be static.
func testBinary(t *testing.T) []byte {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRunDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "rootfs")
	for name, content := range map[string][]byte{
		"bin/e2e":         testBinary(t),
		"etc/passwd":      []byte("root:x:0:0::/root:/bin/e2e\n"),
		"etc/resolv.conf": []byte("nameserver 192.0.2.1\n"),
		"data":            []byte("of the image"),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before := listing(t, dir)
	p := slipway(t, "run", "--rm", "-e", helperEnv+"=describe", "-e", "FLAVOUR=dir", "dir:"+dir, "/bin/e2e", "/data", "/etc/resolv.conf", "/usr/bin/env")
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	want := "uid 0 gid 0 in / FLAVOUR=dir HOME=/root\n/data: of the image\n/etc/resolv.conf: # made by slipway\nnameserver 10.0.2.3\n\n/usr/bin/env: missing\n"
	if got := p.stdout.String(); got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if after := listing(t, dir); after != before {
		t.Errorf("the image was changed from\n%s\nto\n%s", before, after)
	}
}

// listing is every name below dir, with mode and size.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s %s", path, info.Mode())
		if info.Mode().IsRegular() {
			fmt.Fprintf(&out, " %d", info.Size())
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// layer makes a layer of files, whose contents are in the PAX record "content"; e2e is
// the test binary.
func layer(t *testing.T, files ...tar.Header) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range files {
		content := []byte(h.PAXRecords["content"])
		if h.PAXRecords["content"] == "e2e" {
			content = testBinary(t)
		}
		h.PAXRecords, h.Size = nil, int64(len(content))
		if h.Typeflag == tar.TypeDir {
			h.Size, content = 0, nil
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestRunOCI(t *testing.T) {
	t.Parallel()
	needsSubIDs(t)
	dir := func(name string) tar.Header { return tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeDir} }
	file := func(name, content string) tar.Header {
		return tar.Header{Name: name, Mode: 0o755, Uid: 7, Gid: 7, PAXRecords: map[string]string{"content": content}}
	}
	img, err := mutate.AppendLayers(empty.Image,
		layer(t, dir("bin/"), file("bin/e2e", "e2e"), dir("etc/"), file("etc/passwd", "root:x:0:0::/root:/x\napp:x:7:8::/srv:/x\n"), dir("data/"), file("data/kept", "lower"), file("data/gone", "lower"), file("data/new", "lower")),
		layer(t, dir("data/"), file("data/.wh.gone", ""), file("data/new", "upper")),
	)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.Config(img, v1.Config{
		Env: []string{"FLAVOUR=oci", helperEnv + "=describe"}, WorkingDir: "/data", User: "app",
		Entrypoint: []string{"/bin/e2e", "kept"}, Cmd: []string{"new", "gone"},
	})
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(openDir(t), "layout")
	path, err := layout.Write(root, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v1"})); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		// Blobs come as 0600, and root's containers run as another user.
		p := slipway(t, "run", "--rm", "oci:"+root)
		if status := p.wait(); status != 125 {
			t.Errorf("exit status %d with closed blobs, want 125", status)
		}
		oneLine(t, p.stderr.String(), "permission denied", "chmod -R o+rX "+root)
	}
	if out, err := exec.Command("chmod", "-R", "o+rX", root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before := listing(t, root)

	for _, tt := range []struct {
		name    string
		options []string
		image   string
		args    []string
		status  int
		want    string
	}{
		{"as it is", nil, "oci:" + root, nil, 0, "uid 7 gid 8 in /data FLAVOUR=oci HOME=/srv\nkept: lower\nnew: upper\ngone: missing\n"},
		{"tag and command", nil, "oci:" + root + ":v1", []string{"/data/new"}, 0, "uid 7 gid 8 in /data FLAVOUR=oci HOME=/srv\nkept: lower\n/data/new: upper\n"},
		{
			"overridden", []string{"-u", "0", "-w", "/", "-e", "FLAVOUR=mine"}, "oci:" + root, []string{"/data/new"}, 0,
			"uid 0 gid 0 in / FLAVOUR=mine HOME=/root\nkept: missing\n/data/new: upper\n",
		},
		{"no such tag", nil, "oci:" + root + ":v2", nil, 125, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := slipway(t, append(append(append([]string{"run", "--rm"}, tt.options...), tt.image), tt.args...)...)
			if status := p.wait(); status != tt.status {
				t.Errorf("exit status %d, want %d", status, tt.status)
			}
			if got := p.stdout.String(); got != tt.want {
				t.Errorf("printed %q, want %q", got, tt.want)
			}
		})
	}
	if after := listing(t, root); after != before {
		t.Errorf("the image was changed from\n%s\nto\n%s", before, after)
	}
}
