package runtime

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	goruntime "runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"slipway/runtime/idmap"
)

// namespaceFlags are the namespaces of every stage, beside the user namespace;
// the network namespace comes to it unless the container has the caller's.
const namespaceFlags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// stageConfig says how to start a stage.
type stageConfig struct {
	role   string // its argument 0
	flags  uintptr
	plan   idmap.Plan
	stderr *os.File   // for the stage's own last words: the workload has other streams
	files  []*os.File // descriptors from specFD on
}

// stageProcess is a process of the hidden role "stage" in namespaces of its
// own, as its launcher holds it. It dies with the launcher.
type stageProcess struct {
	cmd     *exec.Cmd
	pidfd   *os.File
	control *net.UnixConn
	heard   chan event
	exited  chan struct{} // closed when the process is reaped
}

// event is one message of a stage, or how they ended.
type event struct {
	m   message
	f   *os.File
	err error
}

// startStage starts one. The id maps may still have to be written by
// plan.Write, and the stage to be told so.
func startStage(cfg stageConfig) (*stageProcess, error) {
	control, theirs, err := controlPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	pidfd := -1
	// A session of its own: a process with the launcher's controlling terminal could type
	// into it (TIOCSTI), and would end by a Ctrl-C that is for the launcher to heed.
	attr := &syscall.SysProcAttr{Cloneflags: cfg.flags, Pdeathsig: syscall.SIGKILL, PidFD: &pidfd, Setsid: true}
	cfg.plan.Configure(attr)
	p := &stageProcess{
		cmd: &exec.Cmd{
			Path: "/proc/self/exe", Args: []string{cfg.role, roleArg}, Env: []string{},
			Stderr:      cfg.stderr,
			ExtraFiles:  append([]*os.File{theirs}, cfg.files...), // controlFD, specFD
			SysProcAttr: attr,
		},
		control: control, heard: make(chan event), exited: make(chan struct{}),
	}
	started := make(chan error)
	go func() {
		// The parent death signal comes when the thread that forked ends
		// (prctl(2)): this one lives as long as the container, and is
		// never unlocked, so that nothing else ever runs on it.
		goruntime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // the status is in cmd.ProcessState
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		control.Close()
		return nil, startError(err)
	}
	go p.listen()
	if pidfd < 0 {
		p.kill()
		p.release()
		return nil, errors.New("no pidfd for the container: Linux 5.12 or newer is needed")
	}
	p.pidfd = os.NewFile(uintptr(pidfd), "container")
	return p, nil
}

// startError explains a clone that the machine forbids.
func startError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return fmt.Errorf("make the container's namespaces: %w; the limit is reached, run: sudo sysctl -w user.max_user_namespaces=15000", err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("make the container's namespaces: %w; the container's root is another user and must be able to execute slipway, run: chmod o+rx on its file; or see slipway doctor", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("make the container's namespaces: %w; run slipway doctor for the reason", err)
	}
	return fmt.Errorf("make the container's namespaces: %w", err)
}

// listen passes on what the stage says, until its end of the socket closes.
// The channel's reader takes all of it; release takes what is left.
func (p *stageProcess) listen() {
	defer close(p.heard)
	for {
		m, f, err := hear(p.control)
		p.heard <- event{m, f, err}
		if err != nil {
			return
		}
	}
}

// namespaces are a waiting stage's, for the network's monitor.
type namespaces struct {
	user, net *os.File
	tap       *os.File // a plain TAP opened inside, or nil
}

func (p *stageProcess) namespaces() (namespaces, error) {
	var ns namespaces
	for name, f := range map[string]**os.File{"user": &ns.user, "net": &ns.net} {
		file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", p.cmd.Process.Pid, name))
		if err != nil {
			ns.close()
			return namespaces{}, fmt.Errorf("open the container's %s namespace: %w", name, err)
		}
		*f = file
	}
	return ns, nil
}

func (n *namespaces) close() {
	for _, f := range []*os.File{n.user, n.net, n.tap} {
		if f != nil {
			f.Close()
		}
	}
}

// kill ends the process, and with it everything in its pid namespace, and
// waits for it.
func (p *stageProcess) kill() {
	if p.pidfd != nil {
		_ = unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0) // it may be gone
	} else {
		_ = p.cmd.Process.Kill()
	}
	<-p.exited
}

// release closes what is held of a process that has ended.
func (p *stageProcess) release() {
	p.control.Close()
	for e := range p.heard {
		if e.f != nil {
			e.f.Close()
		}
	}
	if p.pidfd != nil {
		p.pidfd.Close()
	}
}

// died explains a stage that ended without a word.
func (p *stageProcess) died(err error) error {
	p.kill()
	return fmt.Errorf("the container's stage ended before the workload was started (%v): %w", p.cmd.ProcessState, err)
}

// status is the exit status as a shell has it.
func (p *stageProcess) status() int {
	ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return p.cmd.ProcessState.ExitCode()
}
