package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"slipway/runtime/image"
	"slipway/runtime/rootfs"
	"slipway/runtime/streams"
)

// spec is what the stage is to make. It holds the workload's environment, so
// it travels in memory that only launcher and stage can reach.
type spec struct {
	Image    image.Reference
	Argv     []string
	Env      []string
	Workdir  string
	User     string
	Hostname string
	Volumes  []rootfs.Volume
	Files    map[string]string // below /etc
	ReadOnly bool
	Caps     []capability.Cap
	TTY      *size         // nil without a terminal
	Streams  streams.Shape // without a terminal
	// OwnNetwork is true unless the network namespace is the caller's.
	OwnNetwork bool
	// Loopback asks the stage to bring lo up: nobody else will.
	Loopback bool
	Reserved string
	PlainTAP string
	// KeepsGroups is true where setgroups(2) is forbidden.
	KeepsGroups bool
}

// size of a terminal, in characters.
type size struct{ Rows, Cols uint16 }

// file puts the specification into a sealed memfd.
func (s spec) file() (*os.File, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode the container's specification: %w", err)
	}
	fd, err := unix.MemfdCreate("slipway-spec", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd for the container's specification: %w", err)
	}
	f := os.NewFile(uintptr(fd), "spec")
	_, err = f.Write(b)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write the container's specification: %w", err)
	}
	return f, nil
}

// readSpec reads it in the stage.
func readSpec() (spec, error) {
	var s spec
	f := os.NewFile(uintptr(specFD), "spec")
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return s, fmt.Errorf("stage: no specification; slipway starts this role by itself: %w", err)
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return s, fmt.Errorf("stage: read specification: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("stage: read specification: %w", err)
	}
	return s, nil
}
