package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"slipway/netstack/confine"
)

// Prepared is a network that has all but an engine: its sockets are bound, its device is
// made and configured. Such a network outlives an execve(2), which is the only way for
// a program of many threads into another user namespace (EINVAL in setns(2)):
//
//	Prepare → Save → execve … → Resume → Run
type Prepared struct{ m *monitor }

// Prepare does what Run does before it starts an engine, with the same errors. Networks
// with a workload to guard, a kernel path or several unix sockets cannot be prepared.
func Prepare(cfg Config) (*Prepared, error) {
	sockets := 0
	for _, l := range cfg.Listen {
		if l.Network == "unix" {
			sockets++
		}
	}
	if cfg.Workload != nil || len(cfg.KernelPorts) > 0 || sockets > 1 {
		return nil, errors.New("prepare: a workload, a kernel path or several unix sockets would not outlive it")
	}
	m, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	return &Prepared{m}, nil
}

// Ready is what has come of the configuration; there is no engine yet.
func (p *Prepared) Ready() Ready { return p.m.result }

// Run keeps an engine running until ctx ends, as the function Run, and closes p.
func (p *Prepared) Run(ctx context.Context, ready func(Ready) error) error {
	return errors.Join(p.m.supervise(ctx, ready), p.m.close())
}

// Close gives up a network that is not run.
func (p *Prepared) Close() error { return p.m.close() }

// saved is a Prepared in words; its numbers are descriptors.
type saved struct {
	Config Config           `json:"config"`
	Ready  Ready            `json:"ready"`
	Device int              `json:"device"`
	MAC    net.HardwareAddr `json:"mac"`
	Null   int              `json:"null"`
	Groups []savedGroup     `json:"groups"`
}

type savedGroup struct {
	FDs   []int            `json:"fds"`
	Bound []netip.AddrPort `json:"bound"`
	File  socketFile       `json:"file"`
	Dir   int              `json:"dir"` // of File, or -1
}

// descriptors are all that s names.
func (s *saved) descriptors() []int {
	fds := []int{s.Device, s.Null}
	for _, g := range s.Groups {
		fds = append(fds, g.FDs...)
		if g.Dir >= 0 {
			fds = append(fds, g.Dir)
		}
	}
	return fds
}

// Save returns what Resume needs in the program that this one becomes by execve(2), and
// lets its descriptors outlive that. The directories of unix sockets are among them: the
// program may live in another root by then.
func (p *Prepared) Save() ([]byte, error) {
	m := p.m
	s := saved{Config: m.cfg, Ready: m.result, Device: m.device, MAC: m.mac, Null: int(m.null.Fd())}
	for i := range m.listeners {
		g := &m.listeners[i]
		out := savedGroup{FDs: g.fds, Bound: g.bound, File: g.file, Dir: -1}
		if g.file.Path != "" {
			dir := filepath.Dir(g.file.Path)
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("save the network: open %s: %w", dir, err)
			}
			g.file.dir, out.Dir = os.NewFile(uintptr(fd), dir), fd
		}
		s.Groups = append(s.Groups, out)
	}
	if err := setFlags(s.descriptors(), 0); err != nil {
		return nil, fmt.Errorf("save the network: %w", err)
	}
	return json.Marshal(s)
}

// Keep lets the descriptors of what Save has left outlive one more execve(2).
func Keep(state []byte) error {
	var s saved
	if err := json.Unmarshal(state, &s); err != nil {
		return fmt.Errorf("keep the network: %w", err)
	}
	if err := setFlags(s.descriptors(), 0); err != nil {
		return fmt.Errorf("keep the network: %w", err)
	}
	return nil
}

// Resume takes over what Save has left. program is the path of the program for
// engines; empty, it is this one. The descriptors of Config's files are not among what
// is saved.
func Resume(state []byte, program string, log *slog.Logger) (*Prepared, error) {
	if err := confine.NonDumpable(); err != nil {
		return nil, err
	}
	var s saved
	if err := json.Unmarshal(state, &s); err != nil {
		return nil, fmt.Errorf("resume the network: %w", err)
	}
	if err := setFlags(s.descriptors(), unix.FD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("resume the network: %w", err)
	}
	m := &monitor{
		cfg: s.Config, result: s.Ready, device: s.Device, mac: s.MAC, program: program,
		null: os.NewFile(uintptr(s.Null), os.DevNull),
	}
	m.begin(log)
	if m.program == "" {
		m.program = selfExe
	}
	for _, g := range s.Groups {
		if g.Dir >= 0 {
			g.File.dir = os.NewFile(uintptr(g.Dir), filepath.Dir(g.File.Path))
		}
		m.listeners = append(m.listeners, group{fds: g.FDs, bound: g.Bound, file: g.File})
	}
	return &Prepared{m}, nil
}

// SocketDir is the directory in which a resumed network unlinks its unix socket, or nil.
func (p *Prepared) SocketDir() *os.File {
	for _, g := range p.m.listeners {
		if g.file.dir != nil {
			return g.file.dir
		}
	}
	return nil
}

func setFlags(fds []int, flags int) error {
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags); err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	return nil
}
