package bench

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Output is where a rendering goes, and in which format.
type Output struct {
	Format Format
	// Path of the file, for SVG and PNG of the directory; empty: standard output.
	Path string
}

// File is a rendering, or a part of one. Its name is a path relative to where the
// rendering is put, empty for what stands alone.
type File struct {
	Name string
	Data []byte
}

// separate says whether the format is a file for each plot.
func (o Output) separate() bool { return o.Format == FormatSVG || o.Format == FormatPNG }

// HasPlots says whether plots must be drawn.
func (o Output) HasPlots() bool {
	return o.separate() || o.Format == FormatHTML || o.PlotDir() != ""
}

// PlotDir is the name of the directory beside a Markdown file in which its plots are,
// empty when there is none.
func (o Output) PlotDir() string {
	dir, isMarkdown := strings.CutSuffix(filepath.Base(o.Path), ".md")
	if o.Format != FormatMarkdown || !isMarkdown {
		return ""
	}
	return dir
}

// Validate says what is wrong with it.
func (o Output) Validate() error {
	switch {
	case !slices.Contains(Formats, o.Format):
		var names []string
		for _, f := range Formats {
			names = append(names, string(f))
		}
		return fmt.Errorf("unknown format %q, there are %s", o.Format, strings.Join(names, ", "))
	case o.separate() && o.Path == "":
		return fmt.Errorf("%s is a file for each plot: give a directory for them with -o DIR", o.Format)
	case o.Format == FormatMarkdown && o.Path != "" && o.PlotDir() == "":
		return fmt.Errorf("write to %s: Markdown goes to a file that ends in .md, its plots to the directory of that name", o.Path)
	}
	return nil
}

// Write writes the files to where they go.
func (o Output) Write(stdout io.Writer, files []File) error {
	if o.Path == "" {
		for _, f := range files {
			if _, err := stdout.Write(f.Data); err != nil {
				return fmt.Errorf("write to standard output: %w", err)
			}
		}
		return nil
	}
	dir := filepath.Dir(o.Path)
	if o.separate() {
		dir = o.Path
	}
	for _, f := range files {
		to := filepath.Join(dir, f.Name)
		if f.Name == "" {
			to = o.Path
		} else if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { //nolint:gosec // for everybody to read
			return fmt.Errorf("make the directory of the plots: %w", err)
		}
		if err := WriteFile(to, func(w io.Writer) error { _, err := w.Write(f.Data); return err }); err != nil {
			return err
		}
	}
	return nil
}

// NewFile is a file that takes its name only when it is whole.
type NewFile struct {
	*os.File
	path string
}

// CreateFile makes a file that shall be called path. What is no ordinary file, like
// /dev/stdout, is written as it is.
func CreateFile(path string) (*NewFile, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("write a file: %w", err)
		}
		return &NewFile{File: f}, nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, fmt.Errorf("write a file: %w", err)
	}
	return &NewFile{File: f, path: path}, nil
}

// Discard removes the file unless it has been finished.
func (f *NewFile) Discard() {
	if f.path != "" {
		os.Remove(f.Name())
	}
	f.Close()
}

// Finish gives the file its name.
func (f *NewFile) Finish() error {
	if f.path == "" {
		return f.Close()
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil { //nolint:gosec // for everybody to read
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	if err := os.Rename(f.Name(), f.path); err != nil {
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	f.path = ""
	return nil
}

// WriteFile writes a file as a whole or not at all.
func WriteFile(path string, write func(io.Writer) error) error {
	f, err := CreateFile(path)
	if err != nil {
		return err
	}
	defer f.Discard()
	if err := write(f); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Finish()
}
