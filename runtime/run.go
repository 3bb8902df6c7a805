package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"slipway/runtime/caps"
	"slipway/runtime/idmap"
	"slipway/runtime/image"
)

// Run runs a container in the foreground until it ends, and returns the
// workload's exit status, 128+n when signal n ended it. With an error the
// status is Docker's: 125 for a container that could not be started or kept,
// 126 for a command that cannot be executed, 127 for one that is not there.
// Signals sent to the calling process go to the workload; ctx ending kills it.
func Run(ctx context.Context, cfg Config) (int, error) {
	exit, err := run(ctx, cfg)
	if f := (*failure)(nil); errors.As(err, &f) {
		return f.code, f.err
	}
	if err != nil {
		return exitErr, err
	}
	return exit, nil
}

func run(ctx context.Context, cfg Config) (exit int, err error) {
	s, err := specify(cfg)
	if err != nil {
		return 0, err
	}
	plan := idmap.For(idmap.Here())
	s.KeepsGroups = plan.KeepsGroups
	announce(cfg, plan)

	signals := make(chan os.Signal, 64)
	signal.Notify(signals, forwarded()...)
	defer signal.Stop(signals)

	c := &container{cfg: cfg, plan: plan, signals: signals, aborts: signals}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := c.start(ctx, s); err != nil {
		return 0, err
	}
	return c.wait(ctx)
}

// specify decides everything that can be decided before anything is started.
func specify(cfg Config) (spec, error) {
	if err := cfg.check(); err != nil {
		return spec{}, err
	}
	ref, err := image.Parse(cfg.Image)
	if err != nil {
		return spec{}, err
	}
	img, _, err := image.Load(ref)
	if err != nil {
		return spec{}, err
	}
	argv := cfg.Args
	if len(argv) == 0 {
		argv = img.Cmd
	}
	argv = append(slices.Clone(img.Entrypoint), argv...)
	if len(argv) == 0 || argv[0] == "" {
		return spec{}, fmt.Errorf("image %s has no command of its own; give one after it", cfg.Image)
	}
	set, err := caps.Set(cfg.CapAdd, cfg.CapDrop)
	if err != nil {
		return spec{}, err
	}
	hostname, err := cfg.hostname()
	if err != nil {
		return spec{}, err
	}
	s := spec{
		Image: ref, Argv: argv, Env: cfg.environment(img.Env, hostname),
		Workdir: firstOf(cfg.Workdir, img.WorkingDir, "/"), User: firstOf(cfg.User, img.User), Hostname: hostname,
		Volumes: cfg.Volumes, Files: cfg.files(hostname), ReadOnly: cfg.ReadOnly, Caps: set,
		OwnNetwork: cfg.Network != HostNet, Loopback: cfg.Network == None,
		Reserved: cfg.reserved(), PlainTAP: cfg.plainTAP(),
	}
	if cfg.TTY {
		size := terminalSize(cfg.Stdin, cfg.Stdout)
		s.TTY = &size
		return s, nil
	}
	s.Streams, err = cfg.streams()
	return s, err
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// announce says what the id maps cost.
func announce(cfg Config, plan idmap.Plan) {
	if !plan.Single {
		return
	}
	cfg.Log.Warn("only user id 0 exists in the container: " + plan.Reason)
	if groups, err := os.Getgroups(); err == nil && plan.KeepsGroups && slices.ContainsFunc(groups, func(g int) bool { return g != os.Getegid() }) {
		cfg.Log.Warn("your supplementary groups stay with the container: without sub-ids the kernel does not let it drop them")
	}
}

// container is a stage, then a workload, with what the launcher holds of it.
type container struct {
	cfg     Config
	plan    idmap.Plan
	signals <-chan os.Signal
	aborts  <-chan os.Signal // the same, while a signal means that there will be no container

	*stageProcess // nil before launch
	conn          connection
	term          *terminal
	relays        relays
}

// start brings the container up to the workload's execve.
func (c *container) start(ctx context.Context, s spec) error {
	if err := c.launch(s); err != nil {
		return err
	}
	ns, err := c.namespaces()
	if err != nil {
		return err
	}
	defer ns.close()
	if err := c.plan.Write(c.cmd.Process.Pid); err != nil {
		return err
	}
	if err := tell(c.control, kindMapped); err != nil {
		return c.died(err)
	}
	if ns.tap, err = c.expect(ctx, kindReady); err != nil {
		return err
	}
	if c.conn, err = connect(c.cfg, s.Hostname, ns); err != nil {
		return err
	}
	if err := c.conn.Guard(c.pidfd); err != nil {
		return err
	}
	if err := tell(c.control, kindStart); err != nil {
		return c.died(err)
	}
	if err := c.join(ctx, s); err != nil {
		return err
	}
	if _, err := c.expect(ctx, kindExec); err != nil {
		return err
	}
	// The stage's end closes when execve succeeds; before that comes at
	// most the news that it did not. Signals wait: they are the workload's.
	c.aborts = nil
	if err := tell(c.control, kindGo); err != nil {
		return c.died(err)
	}
	e, err := c.next(ctx)
	if err == nil && e.err == nil {
		err = fmt.Errorf("unexpected message %q from the stage", e.m.Kind)
	}
	return err
}

// launch starts the stage in its new namespaces.
func (c *container) launch(s spec) error {
	config, err := s.file()
	if err != nil {
		return err
	}
	defer config.Close()
	flags := uintptr(namespaceFlags)
	if s.OwnNetwork {
		flags |= syscall.CLONE_NEWNET
	}
	c.stageProcess, err = startStage(stageConfig{
		role: phaseEntered, flags: flags, plan: c.plan,
		stderr: c.cfg.Stderr, files: []*os.File{config}, // specFD
	})
	return err
}

// join joins the workload's standard streams to the caller's.
func (c *container) join(ctx context.Context, s spec) error {
	if s.TTY != nil {
		master, err := c.expect(ctx, kindTerminal)
		if err != nil {
			return err
		}
		return c.attach(master)
	}
	for _, name := range s.Streams.Names() {
		far, err := c.expect(ctx, kindStream)
		if err != nil {
			return err
		}
		if err := c.relays.add(name, far, c.cfg); err != nil {
			return err
		}
	}
	return nil
}

// attach joins the workload's terminal to ours.
func (c *container) attach(master *os.File) error {
	if master == nil {
		return errors.New("the stage sent no terminal")
	}
	// Through the poller, so that the output ends with the last writer.
	if err := unix.SetNonblock(int(master.Fd()), true); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	master.Close()
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	var in *os.File
	if c.cfg.Interactive {
		in = c.cfg.Stdin
	}
	c.term, err = newTerminal(os.NewFile(uintptr(fd), "terminal"), in, c.cfg.Stdout)
	return err
}

// expect waits for a message of kind k and returns its descriptor.
func (c *container) expect(ctx context.Context, k kind) (*os.File, error) {
	e, err := c.next(ctx)
	switch {
	case err != nil:
		return nil, err
	case e.err != nil:
		return nil, c.died(e.err)
	case e.m.Kind != k:
		return nil, fmt.Errorf("unexpected message %q from the stage, not %q", e.m.Kind, k)
	}
	return e.f, nil
}

// next waits for the stage's next message of consequence, while it is still a
// stage: a signal or the monitor's end now means that there will be no
// container.
func (c *container) next(ctx context.Context) (event, error) {
	for {
		select {
		case e := <-c.heard:
			switch {
			case e.err == nil && e.m.Kind == kindNotice:
				c.cfg.Log.Warn(e.m.Text)
				continue
			case e.err == nil && e.m.Kind == kindFailed:
				return e, &failure{e.m.Code, errors.New(e.m.Text)}
			case e.err != nil && !errors.Is(e.err, io.EOF):
				return e, e.err
			}
			return e, nil
		case <-ctx.Done():
			return event{}, ctx.Err()
		case <-c.connDone():
			return event{}, c.connLost()
		case s := <-c.aborts:
			switch s {
			case unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT:
				n := s.(syscall.Signal)
				return event{}, &failure{128 + int(n), fmt.Errorf("%v before the container was started", s)}
			}
		}
	}
}

// connDone is nil, which blocks for ever, while there is no connection yet.
func (c *container) connDone() <-chan struct{} {
	if c.conn == nil {
		return nil
	}
	return c.conn.Done()
}

func (c *container) connLost() error {
	who := "the container's guard"
	if c.cfg.Network == Private {
		who = "the network's monitor"
	}
	if err := c.conn.Err(); err != nil {
		return fmt.Errorf("%s ended, the container is killed: %w", who, err)
	}
	return fmt.Errorf("%s was killed, so the container is too", who)
}

// wait is the launcher's life beside a running workload, and until what that has printed
// was written. Who takes the output may take their time, unless they want the container to
// stop. A terminal that the workload has passed to somebody outside of the container ends by
// such a signal only.
func (c *container) wait(ctx context.Context) (int, error) {
	var stops []time.Time
	exited, conn := c.exited, c.conn.Done()
	var printed <-chan struct{}
	var enough <-chan time.Time
	asked := false // to stop
	for {
		if asked && exited == nil && enough == nil {
			enough = time.After(stopTimeout)
		}
		select {
		case <-exited:
			exited, conn, printed = nil, nil, c.printed()
			if c.term != nil {
				if err := c.term.restore(); err != nil { // for Ctrl-C
					return 0, err
				}
			}
		case <-printed:
			return c.status(), nil
		case <-enough:
			c.cfg.Log.Warn("nobody takes the output: not waiting for the rest of it")
			return c.status(), nil
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-conn:
			// A monitor may also end because the container has.
			select {
			case <-exited:
				continue
			case <-time.After(settle):
			}
			return 0, c.connLost()
		case s := <-c.signals:
			n := s.(syscall.Signal)
			if n == unix.SIGINT || n == unix.SIGTERM {
				asked = true
				now := time.Now()
				stops = append(slices.DeleteFunc(stops, func(t time.Time) bool { return now.Sub(t) > forceWithin }), now)
			}
			switch {
			case len(stops) < forceAfter:
				c.forward(n)
			case exited == nil:
				c.cfg.Log.Warn(fmt.Sprintf("%d times %v: not waiting for the rest of the output", len(stops), n))
				return c.status(), nil
			default:
				c.cfg.Log.Warn(fmt.Sprintf("%d times %v: killing the container", len(stops), n))
				stops = nil
				c.kill()
			}
		}
	}
}

// printed is closed when all that the workload, which has ended, has printed was written.
func (c *container) printed() <-chan struct{} {
	c.relays.finish()
	all := make(chan struct{})
	go func() {
		defer close(all)
		c.relays.wait()
		if c.term != nil {
			<-c.term.output
		}
	}()
	return all
}

// A workload that is pid 1 and has no handler ignores SIGINT and SIGTERM
// (pid_namespaces(7)); as with Docker, asking three times in a row is heeded.
const (
	forceAfter  = 3
	forceWithin = 3 * time.Second
	// settle is how long a container whose monitor ended may take to have
	// ended itself.
	settle = 100 * time.Millisecond
	// stopTimeout is how long a container that was asked to stop, and has ended, may take to
	// have what it printed written: who stops it does not wait for ever.
	stopTimeout = 5 * time.Second
	// flushTimeout is how long a container that was not waited for may take to have what it
	// printed written.
	flushTimeout = time.Second
)

// lastSignal is SIGRTMAX, signal(7).
const lastSignal = syscall.Signal(64)

// forwarded are the signals that the launcher takes, to pass them on: not those that it
// was told to ignore, nor those of job control that stop a process in the background which
// turns to the terminal. Caught, they would have it try again for ever.
func forwarded() []os.Signal {
	var all []os.Signal
	for n := unix.SIGHUP; n <= lastSignal; n++ {
		if n != unix.SIGTTIN && n != unix.SIGTTOU && !signal.Ignored(n) {
			all = append(all, n)
		}
	}
	return all
}

// forward passes a signal to the workload.
func (c *container) forward(n syscall.Signal) {
	switch n {
	case unix.SIGCHLD, unix.SIGPIPE:
		return // ours
	case unix.SIGURG:
		return // the Go scheduler's
	case unix.SIGWINCH:
		if c.term != nil {
			c.term.resize()
			return
		}
	}
	// ESRCH: it has just ended.
	if err := unix.PidfdSendSignal(int(c.pidfd.Fd()), n, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		c.cfg.Log.Warn(fmt.Sprintf("pass %v to the container: %v", n, err))
	}
}

// close lets go of everything, whatever came to be.
func (c *container) close() error {
	if c.stageProcess == nil {
		return nil
	}
	c.kill()
	select {
	case <-c.printed():
	case <-time.After(flushTimeout):
	}
	var errs []error
	c.relays.close()
	if c.term != nil {
		errs = append(errs, c.term.Close())
	}
	if c.conn != nil {
		errs = append(errs, c.conn.Close())
	}
	c.release()
	return errors.Join(errs...)
}
