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
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"slipway/netstack/confine"
	"slipway/netstack/netns"
	"slipway/netstack/tap"
)

// Values of Config.PublishPath.
const (
	PathAuto   = "auto"   // the kernel path where it can be set up
	PathKernel = "kernel" // fail where it cannot
	PathTAP    = "tap"
)

// Config is what a network consists of. The files stay the caller's.
type Config struct {
	Target  netns.Target `json:"-"` // the container's namespaces; none: Device is all there is
	Device  *os.File     `json:"-"` // an attached TAP of plain frames; nil: made in Target
	TunPath string       `json:"tun_path,omitempty"`
	Offload tap.Mode     `json:"offload,omitempty"` // of the device that is made; empty: tap.Auto
	Link    netns.Link   `json:"link"`
	Listen  []Listen     `json:"listen,omitempty"` // its order is that of Ready.Bound and StartMessage.Listeners

	// Forwards lets engines ask for more sockets to listen on, Client.Listen.
	Forwards bool `json:"forwards,omitempty"`
	// Status lets engines ask for Client.Status.
	Status bool `json:"status,omitempty"`
	// Container is what a person calls the container.
	Container string `json:"container,omitempty"`

	PublishPath string            `json:"publish_path,omitempty"` // empty: PathAuto
	KernelPorts []netns.PortRange `json:"kernel_ports,omitempty"` // published TCP ports; empty: no kernel path needed
	Guests      []netip.Addr      `json:"guests,omitempty"`       // the container's addresses

	Workload *os.File        `json:"-"`                // pidfd to kill when the launcher goes, or nil
	Engine   json.RawMessage `json:"engine,omitempty"` // for the engine, as it is
	Log      *slog.Logger    `json:"-"`                // nil: no log
}

// Ready says what came of a Config.
type Ready struct {
	Bound         [][]netip.AddrPort `json:"bound"` // as Config.Listen, with real ports, less what was left out
	Offload       tap.Offload        `json:"offload"`
	OffloadReason string             `json:"offload_reason,omitempty"` // why there are none, when some were wanted
	Kernel        bool               `json:"kernel"`                   // published TCP ports go by the kernel path
	KernelReason  string             `json:"kernel_reason,omitempty"`  // why not, when it was wanted
	EnginePID     int                `json:"engine_pid"`               // of the first engine
}

// monitor is a running network's monitor.
type monitor struct {
	cfg       Config
	log       *slog.Logger
	output    *output // standard error of engines, and of supervise
	listeners listeners
	forwards  forwards
	device    int             // outside of the poller
	link      *netlink.Handle // in the container's namespace; nil: nobody asks
	null      *os.File        // standard input and output of engines
	program   string          // of engines
	mac       net.HardwareAddr
	resolvers resolvers
	result    Ready
}

// Run is the monitor: it binds the listeners, makes the device, and keeps an engine
// running until ctx ends, which is no error. ready is called once, when the first
// engine serves; its error ends Run. When Run returns, the engine has gone and the
// unix sockets are unlinked.
//
// Errors: *ListenError, *netns.Error, those of tap.Attach, and an engine that does
// not start, with its last words.
func Run(ctx context.Context, cfg Config, ready func(Ready) error) error {
	return run(ctx, cfg, func(r Ready, _ []socketFile) error { return ready(r) })
}

func run(ctx context.Context, cfg Config, ready func(Ready, []socketFile) error) error {
	m, err := prepare(cfg)
	if err != nil {
		return err
	}
	defer m.close()
	return m.supervise(ctx, func(r Ready) error { return ready(r, m.listeners.files()) })
}

// prepare makes all that a network has before its first engine, or nothing.
func prepare(cfg Config) (*monitor, error) {
	if err := confine.NonDumpable(); err != nil {
		return nil, err
	}
	m := &monitor{cfg: cfg, device: -1, program: selfExe}
	m.begin(cfg.Log)
	var err error
	if m.listeners, err = listenAll(cfg.Listen); err != nil {
		return nil, err
	}
	m.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err == nil {
		err = m.openDevice()
	}
	if err == nil {
		err = m.configure()
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	m.result.Bound = m.listeners.bound()
	return m, nil
}

// begin sets the fields that every monitor begins with.
func (m *monitor) begin(log *slog.Logger) {
	m.resolvers.path, m.forwards.open = resolvConf, map[int]forward{}
	if m.log = log; log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
}

// close closes what the monitor holds and unlinks the unix sockets.
func (m *monitor) close() error {
	m.listeners.close()
	m.forwards.close()
	if m.link != nil {
		m.link.Close()
	}
	var err error
	if m.null != nil {
		err = m.null.Close()
	}
	if m.device >= 0 {
		err = errors.Join(err, unix.Close(m.device))
		m.device = -1
	}
	return err
}

// openDevice takes the device of the configuration, or makes one.
func (m *monitor) openDevice() error {
	if m.cfg.Device != nil {
		return m.keepDevice(m.cfg.Device)
	}
	tun, err := m.cfg.Target.OpenTUN(m.cfg.TunPath)
	if err != nil {
		return err
	}
	mode := m.cfg.Offload
	if mode == "" {
		mode = tap.Auto
	}
	d, err := tap.Attach(tun, m.cfg.Link.Name, mode)
	if err != nil {
		return err
	}
	m.result.Offload, m.result.OffloadReason = d.Offload(), d.Reason()
	return errors.Join(m.keepDevice(d.File()), d.Close())
}

// keepDevice duplicates the device's descriptor out of the reach of the runtime's
// poller.
func (m *monitor) keepDevice(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("keep TAP: %w", err)
	}
	var dup error
	if err := raw.Control(func(fd uintptr) { m.device, dup = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return fmt.Errorf("keep TAP: %w", err)
	}
	if dup != nil {
		return fmt.Errorf("keep TAP: %w", dup)
	}
	return nil
}

// configure sets up the link and, where it is wanted, the kernel path.
func (m *monitor) configure() error {
	if m.cfg.Target.Net == nil {
		return nil // a device of which nothing is known but its descriptor
	}
	h, err := m.cfg.Target.Netlink()
	if err != nil {
		return err
	}
	if m.cfg.Status {
		m.link = h
	} else {
		defer h.Close()
	}
	if m.mac, err = netns.Configure(h, m.cfg.Link); err != nil {
		return err
	}
	if len(m.cfg.KernelPorts) == 0 || m.cfg.PublishPath == PathTAP {
		return nil
	}
	err = netns.KeepReplies(h, m.cfg.Guests, m.cfg.KernelPorts)
	if err == nil {
		err = m.trySocket()
	}
	switch {
	case err == nil:
		m.result.Kernel = true
	case m.cfg.PublishPath == PathKernel:
		return fmt.Errorf("publish path kernel: %w", err)
	default:
		m.result.KernelReason = err.Error()
	}
	return nil
}

// namespace is the inode of the container's network namespace, by which lsns(8) calls
// it; 0 when it is not known.
func (m *monitor) namespace() uint64 {
	var st unix.Stat_t
	if m.cfg.Target.Net == nil || unix.Fstat(int(m.cfg.Target.Net.Fd()), &st) != nil {
		return 0
	}
	return st.Ino
}

// trySocket makes one of the sockets that the kernel path lives on.
func (m *monitor) trySocket() error {
	files, err := m.cfg.Target.Sockets(unix.AF_INET, 1)
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// How engines are started again.
const (
	readyTimeout = 10 * time.Second // from exec to ready
	maxFailures  = 5                // in a row, without getting ready
	minDelay     = 50 * time.Millisecond
	maxDelay     = time.Second
	stable       = 10 * time.Second // an engine that served that long is replaced at once
)

// nextDelay doubles the delay before the next start, from minDelay to maxDelay.
func nextDelay(d time.Duration) time.Duration { return min(max(2*d, minDelay), maxDelay) }

// supervise keeps an engine running.
func (m *monitor) supervise(ctx context.Context, ready func(Ready) error) error {
	m.output = newOutput(os.Stderr)
	defer m.output.close()
	var delay time.Duration
	var restarts, failures int
	announced := false
	for {
		served, err := m.oneEngine(ctx, restarts, func(pid int) error {
			if announced {
				return nil
			}
			announced = true
			m.result.EnginePID = pid
			if err := ready(m.result); err != nil {
				return &fatalError{err}
			}
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		var fatal *fatalError
		if errors.As(err, &fatal) {
			return fatal.err
		}
		switch {
		case served > 0:
			failures = 0
		case announced && errors.Is(err, unix.ETOOMANYREFS): // which another program of the user can bring about
		default:
			failures++
		}
		if failures == maxFailures {
			return fmt.Errorf("the engine does not start, tried %d times: %w", failures, err)
		}
		if served >= stable {
			delay = 0
		}
		restarts++
		args := []any{"error", err, "restarts", restarts, "delay", delay}
		m.output.do(func() { m.log.Error("the engine ended and is started again", args...) })
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
		delay = nextDelay(delay)
	}
}

// fatalError ends the monitor and not only the engine.
type fatalError struct{ err error }

func (e *fatalError) Error() string { return e.err.Error() }

// oneEngine runs one engine until it ends or ctx does, and returns for how long it
// was ready. The error says why it ended; it is nil only when ctx has.
func (m *monitor) oneEngine(ctx context.Context, restarts int, ready func(pid int) error) (served time.Duration, err error) {
	e, err := m.startEngine(restarts)
	if err != nil {
		return 0, err
	}
	defer e.stop()
	timeout := time.NewTimer(readyTimeout)
	defer timeout.Stop()
	var since time.Time
	isReady := e.ready
	for {
		select {
		case <-ctx.Done():
			return 0, nil
		case <-isReady:
			isReady = nil
			timeout.Stop()
			since = time.Now()
			if err := ready(e.cmd.Process.Pid); err != nil {
				return 0, err
			}
			if err := confine.ReleaseImage(); err != nil {
				m.output.do(func() { m.log.Debug("the monitor keeps more memory than it needs", "error", err) })
			}
		case <-timeout.C:
			err = fmt.Errorf("the engine was not ready within %v", readyTimeout)
		case <-e.talked:
			// The process has ended or is about to; if it is not, it is of no use any more.
			err = e.talkErr
		case <-e.exited:
		}
		if err == nil && !isClosed(e.exited) {
			continue
		}
		e.stop()
		switch {
		case !since.IsZero():
			served = max(time.Since(since), 1)
		case isClosed(e.ready):
			served = 1 // it died before its word was heard
		}
		return served, e.obituary(err)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// absolute makes the paths of unix sockets independent of the working directory.
func absolute(ls []Listen) ([]Listen, error) {
	out := make([]Listen, len(ls))
	for i, l := range ls {
		if l.Path != "" {
			var err error
			if l.Path, err = filepath.Abs(l.Path); err != nil {
				return nil, fmt.Errorf("listen %s %s: %w", l.Network, l.Path, err)
			}
		}
		out[i] = l
	}
	return out, nil
}
