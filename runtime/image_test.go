package runtime

import (
	"archive/tar"
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// busybox finds a static shell to make images of.
func busybox(t *testing.T) []byte {
	t.Helper()
	for _, path := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if b, err := os.ReadFile(path); err == nil && !bytes.Contains(b, []byte("/lib64/ld-linux")) {
			return b
		}
	}
	t.Skip("needs a static busybox (apt-get install busybox-static)")
	return nil
}

// rootDir is a minimal root file system in a directory.
func rootDir(t *testing.T) string {
	t.Helper()
	b := busybox(t)
	dir := filepath.Join(sharedDir(t), "root,fs:1") // what an overlay's options could trip over
	for _, d := range []string{"bin", "etc", "data/sub"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"etc/passwd": "root:x:0:0::/home/root:/bin/sh\n", "etc/group": "root:x:0:\n", "data/file": "lower\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "ls", "cat", "id", "rm", "mkdir", "echo", "stat"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tree lists a directory with contents, to see that nothing has changed.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		got[path] = info.Mode().String()
		if info.Mode().IsRegular() && info.Size() < 1<<16 {
			b, err := os.ReadFile(path)
			got[path] += string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestDirImage(t *testing.T) {
	dir := rootDir(t)
	before := tree(t, dir)
	out := script(t, Config{Image: "dir:" + dir}, `
rm -r /data && mkdir /data && ls -A /data && echo made again
echo x > /new && echo y >> /etc/group || echo not mine
cat /etc/hostname | while read h; do [ -n "$h" ] && echo named; done
echo $HOME`)
	if want := "made again\nnamed\n/home/root"; strings.ReplaceAll(out, "not mine\n", "") != want {
		t.Errorf("got %q, want %q", out, want)
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("the image's directory has changed (-before +after)\n%s", diff)
	}
}

// entry is a file of a layer.
type entry struct {
	tar.Header
	data []byte
}

func layer(t *testing.T, entries ...entry) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.data))
		if e.Mode == 0 {
			e.Mode = 0o755
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func ociLayout(t *testing.T, config v1.Config, layers ...v1.Layer) string {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, config); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(sharedDir(t), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v1"})); err != nil {
		t.Fatal(err)
	}
	err = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Chmod(path, info.Mode()|0o444|info.Mode()>>2&0o111)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// An image whose layers cannot be had must not become an empty container.
func TestOCIImageBroken(t *testing.T) {
	for name, breakBlob := range map[string]func(path string) error{
		"missing": os.Remove,
		"changed": func(path string) error { return os.WriteFile(path, []byte("not a layer"), 0o644) },
		"cut":     func(path string) error { return os.Truncate(path, 2000) },
	} {
		t.Run(name, func(t *testing.T) {
			data := make([]byte, 1<<16)
			rand.NewChaCha8([32]byte{}).Read(data) // does not compress
			dir := ociLayout(t, v1.Config{}, layer(t, entry{Header: tar.Header{Name: "big"}, data: data}))
			blobs, err := filepath.Glob(dir + "/blobs/sha256/*")
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range blobs {
				if info, err := os.Stat(b); err != nil || info.Size() < 60000 {
					continue
				}
				if err := breakBlob(b); err != nil {
					t.Fatal(err)
				}
			}
			_, errOut, code := containerOutput(t, Config{Image: "oci:" + dir, Args: []string{"/big"}})
			if code != 125 || !strings.Contains(errOut, "unpack image") {
				t.Errorf("status %d, stderr %q; want 125 and why", code, errOut)
			}
		})
	}
}

func TestOCIImage(t *testing.T) {
	dir := ociLayout(t,
		v1.Config{Env: []string{"FROM=image", "PATH=/bin"}, Entrypoint: []string{"/bin/busybox"}, Cmd: []string{"sh", "-c", "exit 9"}, WorkingDir: "/work"},
		layer(t,
			entry{Header: tar.Header{Name: "bin/", Typeflag: tar.TypeDir}},
			entry{Header: tar.Header{Name: "bin/busybox"}, data: busybox(t)},
			entry{Header: tar.Header{Name: "gone", Mode: 0o644}, data: []byte("x")},
			entry{Header: tar.Header{Name: "run/", Typeflag: tar.TypeDir}},
			entry{Header: tar.Header{Name: "var/run", Typeflag: tar.TypeSymlink, Linkname: "/run"}},
			entry{Header: tar.Header{Name: "run/through", Mode: 0o640, Uid: 33, Gid: 44}, data: []byte("link\n")},
			entry{Header: tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "run/through"}},
			entry{Header: tar.Header{Name: "su", Mode: 0o4755}, data: []byte("x")},
			entry{Header: tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8}},
		),
		layer(t, entry{Header: tar.Header{Name: ".wh.gone"}}),
	)
	before := tree(t, dir)
	out, errOut, code := containerOutput(t, Config{Image: "oci:" + dir + ":v1", Args: []string{"sh", "-c", `
busybox ls -A / | while read f; do echo -n "$f "; done; echo
busybox cat /hard; busybox stat -c '%a %h' /run/through; busybox stat -c %a /su
busybox readlink /var/run; echo $FROM; pwd; echo x > /bin/new && echo writable
[ "$(busybox stat -c %u:%g /run/through)" = 33:44 ] || [ "$(busybox cat /proc/self/uid_map | busybox wc -l)" = 1 ] && echo owner`}})
	want := "bin dev etc hard proc run su sys var work \nlink\n640 2\n4755\n/run\nimage\n/work\nwritable\nowner\n"
	if code != 0 || out != want {
		t.Errorf("status %d, stderr %s\n(-want +got)\n%s", code, errOut, cmp.Diff(want, out))
	}
	if _, errOut, code := containerOutput(t, Config{Image: "oci:" + dir}); code != 9 {
		t.Errorf("the image's own command: status %d, want 9; %s", code, errOut)
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("the layout has changed\n%s", diff)
	}
	for ref, want := range map[string]string{
		"oci:" + dir + ":v2": `no image tagged "v2"; there is: v1`, "oci:" + t.TempDir(): "not an OCI layout", "oci:/no/such/layout:v1": "no such file",
	} {
		if _, errOut, code := containerOutput(t, Config{Image: ref, Args: []string{"x"}}); code != 125 || !strings.Contains(errOut, want) {
			t.Errorf("%s: status %d, stderr %q; want 125 and %q", ref, code, errOut, want)
		}
	}
}

// A link or name that leads out of the root ends inside of it, or nowhere.
func TestOCIImageCannotEscape(t *testing.T) {
	outside := filepath.Join(sharedDir(t), "outside")
	if err := os.MkdirAll(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	dir := ociLayout(t, v1.Config{},
		layer(t,
			entry{Header: tar.Header{Name: "bin/busybox"}, data: busybox(t)},
			entry{Header: tar.Header{Name: "leave", Typeflag: tar.TypeSymlink, Linkname: outside}},
			entry{Header: tar.Header{Name: "climb", Typeflag: tar.TypeSymlink, Linkname: "../../../../.." + outside}},
			entry{Header: tar.Header{Name: "leave/a"}, data: []byte("x")},
			entry{Header: tar.Header{Name: "climb/b"}, data: []byte("x")},
		),
	)
	_, errOut, code := containerOutput(t, Config{Image: "oci:" + dir, Args: []string{"/bin/busybox", "true"}})
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside the root: %v, %v", left, err)
	}
	if code != 0 && !strings.Contains(errOut, "unpack image") {
		t.Errorf("status %d, %s", code, errOut)
	}

	// What is generated does not follow the image out either.
	hosts := filepath.Join(outside, "hosts")
	if err := os.WriteFile(hosts, []byte("the machine's"), 0o666); err != nil {
		t.Fatal(err)
	}
	dir = ociLayout(t, v1.Config{}, layer(t,
		entry{Header: tar.Header{Name: "bin/busybox"}, data: busybox(t)},
		entry{Header: tar.Header{Name: "etc", Typeflag: tar.TypeSymlink, Linkname: outside}},
	))
	if _, errOut, code := containerOutput(t, Config{Image: "oci:" + dir, Args: []string{"/bin/busybox", "true"}}); code != 125 || !strings.Contains(errOut, "/etc of the image") {
		t.Errorf("status %d, %s; want 125 and what is wrong with /etc", code, errOut)
	}
	if b, err := os.ReadFile(hosts); string(b) != "the machine's" {
		t.Errorf("the machine's file: %q, %v", b, err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
		t.Errorf("outside the root: %v, %v", left, err)
	}
}

func TestVolumes(t *testing.T) {
	dir := sharedDir(t)
	rw, ro, file := filepath.Join(dir, "rw"), filepath.Join(dir, "ro"), filepath.Join(dir, "file")
	for _, d := range []string{rw, ro} {
		if err := os.Mkdir(d, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, []byte("a file"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := script(t, Config{Volumes: []Volume{{Source: rw, Target: "/mnt/new/rw"}, {Source: ro, Target: "/etc/ro", ReadOnly: true}, {Source: file, Target: "/root/file"}}}, `
echo from inside > /mnt/new/rw/x; touch /etc/ro/x 2>/dev/null || echo ro; cat /root/file`)
	if want := "ro\na file"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	if b, err := os.ReadFile(filepath.Join(rw, "x")); string(b) != "from inside\n" {
		t.Errorf("in the volume: %q, %v", b, err)
	}
	for target, want := range map[string]string{"/proc/sys": "inside /proc", "/sys/x": "inside /sys", "/": "root directory", "/dev/fd": "inside /proc", "/etc/passwd/x": "not a directory"} {
		_, errOut, code := containerOutput(t, Config{Image: "host", Args: []string{"true"}, Volumes: []Volume{{Source: rw, Target: target}}})
		if code != 125 || !strings.Contains(errOut, want) {
			t.Errorf("%s: status %d, stderr %q; want 125 and %q", target, code, errOut, want)
		}
	}
}
