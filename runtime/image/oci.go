package image

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Annotations that name an image in a layout's index: the specification's
// (image-spec annotations.md) and containerd's.
const (
	refName       = "org.opencontainers.image.ref.name"
	containerName = "io.containerd.image.name"
)

// Config is what an image says about the process to run.
type Config struct {
	Env        []string
	Entrypoint []string
	Cmd        []string
	User       string
	WorkingDir string
}

// Load reads an image's configuration. For OCI it also returns the image, to
// be unpacked by Extract.
func Load(ref Reference) (Config, v1.Image, error) {
	switch ref.Kind {
	case Host:
		return Config{Cmd: []string{"/bin/sh"}}, nil, nil
	case Dir:
		return Config{}, nil, nil
	}
	img, err := open(ref)
	if err != nil {
		return Config{}, nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return Config{}, nil, fmt.Errorf("image %s: read configuration: %w", ref.Path, err)
	}
	c := file.Config
	return Config{Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, User: c.User, WorkingDir: c.WorkingDir}, img, nil
}

// open picks the image of a layout: by tag, or the only one.
func open(ref Reference) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(ref.Path)
	if err != nil {
		return nil, fmt.Errorf("image oci:%s is not an OCI layout: %w", ref.Path, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("image %s: read index: %w", ref.Path, err)
	}
	var found []v1.Descriptor
	var tags []string
	for _, d := range manifest.Manifests {
		name := d.Annotations[refName]
		if name != "" {
			tags = append(tags, name)
		}
		if ref.Tag == "" || name == ref.Tag || strings.HasSuffix(name, ":"+ref.Tag) || strings.HasSuffix(d.Annotations[containerName], ":"+ref.Tag) {
			found = append(found, d)
		}
	}
	slices.Sort(tags)
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("image %s: no image tagged %q; there is: %s", ref.Path, ref.Tag, strings.Join(tags, ", "))
	case len(found) > 1:
		return nil, fmt.Errorf("image %s: %d images match; name one as oci:PATH:TAG, there is: %s", ref.Path, len(found), strings.Join(tags, ", "))
	}
	return pick(index, found[0], ref)
}

// pick follows a descriptor: an index inside the index holds one image a
// platform.
func pick(index v1.ImageIndex, d v1.Descriptor, ref Reference) (v1.Image, error) {
	if !d.MediaType.IsIndex() {
		if !d.MediaType.IsImage() && d.MediaType != types.OCIManifestSchema1 {
			return nil, fmt.Errorf("image %s: %s is not an image", ref.Path, d.MediaType)
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", ref.Path, err)
		}
		return img, nil
	}
	inner, err := index.ImageIndex(d.Digest)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Path, err)
	}
	manifest, err := inner.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Path, err)
	}
	for _, m := range manifest.Manifests {
		if m.Platform == nil || (m.Platform.OS == "linux" && m.Platform.Architecture == runtime.GOARCH) {
			img, err := inner.Image(m.Digest)
			if err != nil {
				return nil, fmt.Errorf("image %s: %w", ref.Path, err)
			}
			return img, nil
		}
	}
	return nil, fmt.Errorf("image %s: nothing for linux/%s in it", ref.Path, runtime.GOARCH)
}
