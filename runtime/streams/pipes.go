package streams

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Name of a standard stream.
type Name string

// The standard streams.
const (
	Stdin  Name = "stdin"
	Stdout Name = "stdout"
	Stderr Name = "stderr"
)

// Shape says which pipes a workload has.
type Shape struct {
	// Input is true where standard input is a pipe; it is /dev/null otherwise.
	Input bool
	// Joined is true where one pipe is standard output and standard error. Two pipes have
	// two relays, which do not know in which order the workload wrote: where both lead to
	// one place, only one pipe keeps the lines in their order.
	Joined bool
}

// Names are the streams that have a pipe of their own.
func (s Shape) Names() []Name {
	var names []Name
	if s.Input {
		names = append(names, Stdin)
	}
	names = append(names, Stdout)
	if !s.Joined {
		names = append(names, Stderr)
	}
	return names
}

// Pipes are those of one workload, in the process that becomes it.
type Pipes struct {
	shape  Shape
	inside [3]int       // what become the workload's descriptors 0, 1 and 2
	far    map[Name]int // the other ends
}

// Make makes the pipes of a workload with these ids, which exist in the calling process's
// user namespace, and opens /dev/null for an input that is none.
func Make(shape Shape, uid, gid int) (*Pipes, error) {
	p := &Pipes{shape: shape, inside: [3]int{-1, -1, -1}, far: map[Name]int{}}
	if err := p.open(uid, gid); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Pipes) open(uid, gid int) error {
	if !p.shape.Input {
		null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("standard input: open /dev/null: %w", err)
		}
		p.inside[0] = null
	}
	for _, name := range p.shape.Names() {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			return fmt.Errorf("pipe for %s: %w", name, err)
		}
		switch name {
		case Stdin:
			p.inside[0], p.far[name] = ends[0], ends[1]
		case Stdout:
			p.inside[1], p.far[name] = ends[1], ends[0]
		case Stderr:
			p.inside[2], p.far[name] = ends[1], ends[0]
		}
		if err := unix.Fchown(ends[0], uid, gid); err != nil {
			return fmt.Errorf("pipe for %s: owner %d:%d: %w", name, uid, gid, err)
		}
	}
	return nil
}

// Far is the other end of a stream in Names. It stays p's.
func (p *Pipes) Far(name Name) int { return p.far[name] }

// Install makes the pipes the calling process's descriptors 0, 1 and 2.
func (p *Pipes) Install() error {
	for fd, from := range p.inside {
		if fd == 2 && p.shape.Joined {
			from = p.inside[1]
		}
		if err := unix.Dup3(from, fd, 0); err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// Close closes all ends; those that Install has made stay.
func (p *Pipes) Close() error {
	var errs []error
	for _, fd := range p.inside {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	for _, fd := range p.far {
		errs = append(errs, unix.Close(fd))
	}
	p.inside, p.far = [3]int{-1, -1, -1}, nil
	return errors.Join(errs...)
}
