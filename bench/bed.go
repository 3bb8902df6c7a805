package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// bed is the test bed inside the run's namespaces.
type bed struct {
	cfg        Config
	self       string // path of this program
	iperf3     string // path of the program
	nsenter    string
	congestion string // in force in every namespace of the run
	dir        string // for sockets and pid files, private to the run
	template   error  // why there is no interface with a default route, nil when there is

	programs map[string]string // paths, by the names of PeerPrograms
	versions map[string]Program
	far      map[int]far // hosts that are so many milliseconds away
	ports    uint16      // that have been given away
}

// nextPort is a port of the host, or another number, that nobody else of the run has.
func (b *bed) nextPort() uint16 {
	b.ports++
	return publishedPort + b.ports - 1
}

// client runs a client to its end and returns what it printed on stdout.
func (b *bed) client(ctx context.Context, args []string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = stopTimeout
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("client gave no result in time: %w", ctx.Err())
	}
	if len(bytes.TrimSpace(out)) == 0 && err != nil {
		return nil, fmt.Errorf("client: %w: %s", err, lastWords(stderr.Bytes()))
	}
	return out, nil
}

// container starts an empty container, a user and a network namespace that are held by
// a process which does nothing, and returns its pid and what a command line begins
// with that shall run in it.
func (b *bed) container(ctx context.Context, l *lane) (pid int, enter []string, err error) {
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return 0, nil, fmt.Errorf("pipe for the container: %w", err)
	}
	id := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	p, err := launch([]string{self, "bench", "hold", b.congestion}, &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: id, GidMappings: id,
	}, holding, lifeR)
	lifeR.Close()
	if err != nil {
		lifeW.Close()
		return 0, nil, fmt.Errorf("make a container: %w", err)
	}
	l.close = append(l.close, func() { lifeW.Close(); p.stop() })
	if err := p.await(ctx, p.output.seen); err != nil {
		return 0, nil, fmt.Errorf("make a container: %w", err)
	}
	l.container, l.holder = p.pid(), p
	l.setup = append(l.setup, "unshare --user --map-root-user --net sleep infinity # pid "+strconv.Itoa(p.pid()))
	return p.pid(), b.enter(p.pid()), nil
}

// enter is what a command line begins with that shall run in the user and network
// namespace of a process, with the programs and files of the host.
func (b *bed) enter(pid int) []string {
	return []string{b.nsenter, "--target", strconv.Itoa(pid), "--user", "--net", "--preserve-credentials", "--"}
}

// run starts a process of the driver of a lane and keeps it until the lane is shut.
func (b *bed) run(l *lane, args []string, watch string, files ...*os.File) error {
	if l.began.IsZero() {
		l.began = time.Now()
	}
	l.setup = append(l.setup, shown(args))
	p, err := launch(args, nil, watch, files...)
	if err != nil {
		return err
	}
	l.drivers = append(l.drivers, p)
	l.close = append(l.close, p.stop)
	return nil
}
