package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// connection is what guards a container and, for a private network, connects
// it: monitor.Process, or a guard process where there is no monitor.
type connection interface {
	// Done is closed when the process behind it has ended.
	Done() <-chan struct{}
	// Err says why, when the process said so.
	Err() error
	// Guard hands over the container: it is killed when the launcher is gone.
	Guard(pidfd *os.File) error
	// Close ends the process and waits for it.
	Close() error
}

// guardProcess kills the container when the launcher is gone, for containers
// without a monitor. PR_SET_PDEATHSIG alone does not: a workload that changes
// its user clears it.
type guardProcess struct {
	life io.Closer // the process ends when this end closes
	cmd  *exec.Cmd
	done chan struct{}
}

var _ connection = (*guardProcess)(nil)

// Guard starts the process.
func (g *guardProcess) Guard(pidfd *os.File) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe to the guard: %w", err)
	}
	defer r.Close()
	g.cmd = exec.Command("/proc/self/exe")
	g.cmd.Args = []string{roleGuard, roleArg}
	g.cmd.Env = []string{}
	g.cmd.Stderr = os.Stderr
	g.cmd.ExtraFiles = []*os.File{r, pidfd}
	// Ctrl-C of the terminal is for the launcher to pass on.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := g.cmd.Start(); err != nil {
		w.Close()
		return fmt.Errorf("start the container's guard: %w", err)
	}
	g.life = w
	go func() {
		_ = g.cmd.Wait() // its status says nothing that Done does not
		close(g.done)
	}()
	return nil
}

func (g *guardProcess) Done() <-chan struct{} { return g.done }

func (g *guardProcess) Err() error { return nil }

func (g *guardProcess) Close() error {
	if g.life == nil {
		return nil
	}
	err := g.life.Close()
	<-g.done
	return err
}

// guard is the process: descriptor 3 is the launcher's life, 4 the container.
func guard() {
	if err := nonDumpable(); err != nil {
		fmt.Fprintln(os.Stderr, "slipway guard:", err)
	}
	life := os.NewFile(3, "launcher")
	_, err := io.Copy(io.Discard, life)
	if err != nil {
		fmt.Fprintln(os.Stderr, "slipway guard:", err)
	}
	if err := unix.PidfdSendSignal(4, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		fmt.Fprintln(os.Stderr, "slipway guard: kill the container:", err)
	}
}
