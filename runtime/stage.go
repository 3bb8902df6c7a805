package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"

	"github.com/creack/pty"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"slipway/netstack/tap"
	"slipway/runtime/caps"
	"slipway/runtime/idmap"
	"slipway/runtime/image"
	"slipway/runtime/rootfs"
	"slipway/runtime/seccomp"
	"slipway/runtime/streams"
)

// What a process of the hidden role "stage" is, as its argument 0: the stage
// executes itself twice.
const (
	phaseEntered = "slipway-stage"  // in new namespaces, perhaps without an id map
	phaseMapped  = "slipway-mapped" // root of the user namespace
	phaseSealed  = "slipway-sealed" // running from a binary nobody can write
	roleGuard    = "slipway-guard"  // not in the container: kills it when the launcher is gone
	roleProbe    = "slipway-probe"  // tries things for the doctor, as phaseEntered
	roleProbed   = "slipway-probed" // the same, as phaseMapped
	roleArg      = "stage"
)

// Stage is the hidden role "slipway stage": the container's first process. It
// becomes the workload, or tells the launcher why not and ends; it never
// returns.
func Stage() {
	if os.Args[0] == roleGuard {
		guard()
		os.Exit(0)
	}
	// The workload is this thread in the end: capabilities, seccomp and the
	// parent death signal belong to a thread.
	goruntime.LockOSThread()
	err := stage(os.Args[0])
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{exitErr, err}
	}
	m := message{Kind: kindFailed, Text: f.err.Error(), Code: f.code}
	if err := controlFD.send(m, -1); err != nil {
		fmt.Fprintln(os.Stderr, "slipway stage:", f.err)
	}
	os.Exit(f.code)
}

// failure is an error with Docker's exit status for it.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// stage runs one phase; it returns only with an error.
func stage(phase string) error {
	switch phase {
	case phaseEntered:
		if err := controlFD.wait(kindMapped); err != nil {
			return err
		}
		if err := nonDumpable(); err != nil {
			return err
		}
		admin, err := caps.HasAdmin()
		if err != nil {
			return err
		}
		if !admin {
			// The first execve came before the id map and cost all
			// capabilities; as uid 0 of a user namespace the next one
			// gives them back (capabilities(7)).
			return reexec("/proc/self/exe", phaseMapped, controlFD, specFD)
		}
		return seal()
	case phaseMapped:
		return seal()
	case phaseSealed:
		return enter()
	case roleProbe, roleProbed:
		return probe()
	}
	return fmt.Errorf("%q: slipway starts this role by itself", phase)
}

// seal executes the stage again from where it cannot be written.
func seal() error {
	if err := nonDumpable(); err != nil {
		return err
	}
	path, err := sealedBinary()
	if err != nil {
		return err
	}
	return reexec(path, phaseSealed, controlFD, specFD)
}

// reexec executes this program again with an empty environment, as it was, and
// keeps the descriptors that it names.
func reexec(path, phase string, keep ...launcher) error {
	for _, fd := range keep {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep descriptor %d: %w", fd, err)
		}
	}
	return fmt.Errorf("execute %s: %w", path, unix.Exec(path, []string{phase, roleArg}, nil))
}

// nonDumpable keeps other processes of the same user out of this one's memory
// and descriptors (PR_SET_DUMPABLE, prctl(2)).
func nonDumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_DUMPABLE): %w", err)
	}
	return nil
}

// enter makes the container around this process and becomes its workload.
func enter() error {
	if err := nonDumpable(); err != nil {
		return err
	}
	for _, fd := range []launcher{controlFD, specFD} {
		unix.CloseOnExec(int(fd))
	}
	if err := dieWithLauncher(); err != nil {
		return err
	}
	s, err := readSpec()
	if err != nil {
		return err
	}
	if s.OwnNetwork {
		unpace()
	}
	if err := ready(s); err != nil {
		return err
	}
	if err := controlFD.wait(kindStart); err != nil {
		return err
	}
	ids, err := idmap.Own()
	if err != nil {
		return err
	}
	isolate()
	root, err := furnish(s, ids)
	if err != nil {
		return err
	}
	if err := tune(s, ids); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set host name %q: %w", s.Hostname, err)
	}
	who, err := resolveUser(s.User, ids)
	if err != nil {
		return err
	}
	who.keepsGroups = s.KeepsGroups
	if err := stdio(s, who); err != nil {
		return err
	}
	if err := root.Restrict(); err != nil {
		return err
	}
	return become(s, who)
}

// dieWithLauncher asks the kernel to kill this process when the launcher's
// thread ends. Gaining capabilities or changing ids clears the wish
// (prctl(2)), so it is said after each.
func dieWithLauncher() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_PDEATHSIG): %w", err)
	}
	if !controlFD.alive() {
		return errors.New("the launcher is gone")
	}
	return nil
}

// ready reports that the namespaces can be used, with a plain TAP if one was
// asked for.
func ready(s spec) error {
	if s.PlainTAP == "" {
		return controlFD.send(message{Kind: kindReady}, -1)
	}
	f, err := tap.OpenPlain(s.PlainTAP)
	if err != nil {
		// Real root's container is another user, who may not open a 0600
		// node. The monitor, which may, makes the device then, or says
		// why nobody can.
		return controlFD.send(message{Kind: kindReady}, -1)
	}
	defer f.Close()
	return controlFD.send(message{Kind: kindReady}, int(f.Fd()))
}

// isolate leaves the launcher's keys and umask behind.
func isolate() {
	unix.Umask(0o022)
	// Fails where key management is filtered; then there are no keys to
	// reach either (keyrings(7)).
	_, _ = unix.KeyctlJoinSessionKeyring("slipway")
}

// furnish builds the root file system and enters it.
func furnish(s spec, ids idmap.Inside) (*rootfs.Root, error) {
	cfg := rootfs.Config{
		Image: s.Image, Volumes: s.Volumes, Files: s.Files, ReadOnly: s.ReadOnly, IDs: ids, OwnNetwork: s.OwnNetwork,
		Notice: func(text string) { _ = controlFD.send(message{Kind: kindNotice, Text: text}, -1) },
	}
	if s.Image.Kind == image.OCI {
		_, img, err := image.Load(s.Image)
		if err != nil {
			return nil, unreadable(s.Image, err)
		}
		cfg.Layers = img
	}
	root, err := rootfs.Open(cfg)
	if err != nil {
		return nil, unreadable(s.Image, err)
	}
	if !s.KeepsGroups {
		if err := unix.Setgroups(nil); err != nil {
			return nil, fmt.Errorf("drop supplementary groups: %w", err)
		}
	}
	return root, unreadable(s.Image, root.Enter())
}

// unreadable says what helps when the files of an OCI layout are closed to the
// container's root, who is nobody special outside: real root's tools often make them
// with mode 0600.
func unreadable(ref image.Reference, err error) error {
	if f := (*fs.PathError)(nil); ref.Kind == image.OCI && errors.As(err, &f) && errors.Is(f, fs.ErrPermission) && strings.HasPrefix(f.Path, ref.Path) {
		return fmt.Errorf("%w (the container's root is another user on this machine: give others the right to read the image: chmod -R o+rX %s, and o+x on the directories above)", err, ref.Path)
	}
	return err
}

// tune writes the sysctls of the container's own network namespace.
func tune(s spec, ids idmap.Inside) error {
	if !s.OwnNetwork {
		return nil
	}
	settings := [][2]string{
		// Ping without privilege for every group that exists here; an
		// unmapped one is refused with EINVAL.
		{"net/ipv4/ping_group_range", fmt.Sprintf("0 %d", ids.LastGID())},
		// Inside, every port is the container's own.
		{"net/ipv4/ip_unprivileged_port_start", "0"},
		// An outgoing connection must not take a published port.
		{"net/ipv4/ip_local_reserved_ports", s.Reserved},
	}
	for _, kv := range settings {
		if kv[1] == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join("/proc/sys", kv[0]), []byte(kv[1]), 0); err != nil {
			return fmt.Errorf("sysctl %s=%q: %w", strings.ReplaceAll(kv[0], "/", "."), kv[1], err)
		}
	}
	if !s.Loopback {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// stdio gives the workload its standard streams: pipes of its own, or a terminal.
func stdio(s spec, who account) error {
	if s.TTY != nil {
		return giveTerminal(*s.TTY, who)
	}
	pipes, err := streams.Make(s.Streams, who.uid, who.gid)
	if err != nil {
		return err
	}
	defer pipes.Close()
	for _, name := range s.Streams.Names() {
		if err := controlFD.send(message{Kind: kindStream}, pipes.Far(name)); err != nil {
			return fmt.Errorf("hand over %s: %w", name, err)
		}
	}
	return pipes.Install()
}

// giveTerminal makes the workload's terminal, in the container's own devpts.
func giveTerminal(size size, who account) error {
	master, slave, err := pty.Open()
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	defer master.Close()
	defer slave.Close()
	if err := pty.Setsize(master, &pty.Winsize{Rows: size.Rows, Cols: size.Cols}); err != nil {
		return fmt.Errorf("size of the terminal: %w", err)
	}
	if err := slave.Chown(who.uid, -1); err != nil {
		return fmt.Errorf("owner of the terminal: %w", err)
	}
	if err := rootfs.Console(slave.Name()); err != nil {
		return fmt.Errorf("/dev/console: %w", err)
	}
	if err := controlFD.send(message{Kind: kindTerminal}, int(master.Fd())); err != nil {
		return fmt.Errorf("hand over the terminal: %w", err)
	}
	if err := unix.IoctlSetInt(int(slave.Fd()), unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("controlling terminal: %w", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(int(slave.Fd()), fd, 0); err != nil {
			return fmt.Errorf("terminal as descriptor %s: %w", strconv.Itoa(fd), err)
		}
	}
	return nil
}

// become drops to the workload's rights and executes it. The order matters:
// the bounding set needs CAP_SETPCAP, changing the user clears the permitted
// set and the parent death signal, the filter must allow what follows it.
func become(s spec, who account) error {
	filter, err := seccomp.Default(caps.Names(s.Caps))
	if err != nil {
		return err
	}
	if err := makeDir(s.Workdir); err != nil {
		return err
	}
	if err := caps.Bound(s.Caps); err != nil {
		return err
	}
	if err := who.assume(); err != nil {
		return err
	}
	limit := s.Caps
	if who.uid != 0 {
		limit = nil // execve gives a user other than root none anyway
	}
	if err := caps.Limit(limit); err != nil {
		return err
	}
	if err := enterDir(s.Workdir); err != nil {
		return err
	}
	env := who.home(s.Env)
	path, err := lookPath(s.Argv[0], env)
	if err != nil {
		return err
	}
	if err := dieWithLauncher(); err != nil {
		return err
	}
	if err := controlFD.send(message{Kind: kindExec}, -1); err != nil {
		return err
	}
	if err := controlFD.wait(kindGo); err != nil {
		return err
	}
	// Nothing but 0, 1 and 2 reaches the workload (CVE-2024-21626); the
	// control socket closing tells the launcher that the workload runs.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	if err := seccomp.Load(filter); err != nil {
		return err
	}
	return execFailure(s.Argv[0], unix.Exec(path, s.Argv, env))
}
