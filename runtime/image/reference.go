// Package image names, reads and unpacks what a container's root file system
// is made of: the machine itself ("host"), a directory ("dir:PATH") or an OCI
// image layout ("oci:PATH[:TAG]").
package image

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Kind says where the root file system comes from.
type Kind string

// The kinds there are.
const (
	Host Kind = "host" // the machine's own programs
	Dir  Kind = "dir"  // a directory that holds a root file system
	OCI  Kind = "oci"  // an OCI image layout
)

// Reference is a parsed IMAGE argument.
type Reference struct {
	Kind Kind
	Path string // absolute, symbolic links resolved; "" for Host
	Tag  string // OCI only; "" when none was given
}

// Parse reads an IMAGE argument and checks that the path is there.
func Parse(s string) (Reference, error) {
	kind, path, _ := strings.Cut(s, ":")
	switch {
	case s == string(Host):
		return Reference{Kind: Host}, nil
	case kind == string(Dir) && path != "":
		p, err := directory(path)
		if err != nil {
			return Reference{}, fmt.Errorf("image %q: %w", s, err)
		}
		return Reference{Kind: Dir, Path: p}, nil
	case kind == string(OCI) && path != "":
		tag := ""
		if _, err := os.Stat(path); err != nil {
			if i := strings.LastIndexByte(path, ':'); i > 0 && !strings.Contains(path[i:], "/") {
				path, tag = path[:i], path[i+1:]
			}
		}
		p, err := directory(path)
		if err != nil {
			return Reference{}, fmt.Errorf("image %q: %w", s, err)
		}
		return Reference{Kind: OCI, Path: p, Tag: tag}, nil
	}
	return Reference{}, fmt.Errorf("unknown image %q; use host, dir:PATH or oci:PATH[:TAG] (registries are not supported yet)", s)
}

func directory(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	resolved, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s is not a directory", resolved)
	}
	return resolved, nil
}
