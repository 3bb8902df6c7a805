package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"slipway/netstack/confine"
	"slipway/netstack/monitor"
	"slipway/portfwd/slirp4netns"
)

// Clients look at the process that they started, so the sandbox must come over that one.
// A Go program has threads from the start, and with threads no process gets into another
// user namespace (unshare(2), EINVAL); unshare(1) does it for us between two programs of
// the same pid:
//
//	slirp4netns …     makes device and sockets, becomes
//	unshare           with new namespaces, becomes
//	slipway sandbox   with a root of its own, becomes
//	slirp4netns …     gives up what it has left to give up, runs the network

const (
	// sandboxProgram is where this program is in the sandbox, under the name for which
	// people look with ps(1).
	sandboxProgram = "/run/slirp4netns"
	// stageState and sandboxState are environment variables, of the stage and of the
	// program after it: the descriptor of a sandboxed, or trial.
	stageState   = "SLIPWAY_STAGE_FD"
	sandboxState = "SLIPWAY_SANDBOX_FD"
	trial        = "none"
)

// sandboxed is what goes through the sandbox's door.
type sandboxed struct {
	Args    []string            `json:"args"` // the command line, with argv[0]
	Options slirp4netns.Options `json:"options"`
	Network json.RawMessage     `json:"network"` // of monitor.Prepared
}

// sandboxError is why there is no sandbox.
type sandboxError struct{ err error }

func (e *sandboxError) Error() string { return "--enable-sandbox: " + e.err.Error() }
func (e *sandboxError) Unwrap() error { return e.err }

// enterSandbox goes on in the sandbox, and returns only when there is none or ctx has
// ended.
func enterSandbox(ctx context.Context, prepared *monitor.Prepared, args []string, opts slirp4netns.Options) error {
	command, err := unshareCommand()
	if err != nil {
		return &sandboxError{err}
	}
	// By its path, and not by a descriptor: only what was reached through a mount of the
	// new namespace can be bound there (open_tree(2), EINVAL).
	program, err := os.Executable()
	if err != nil {
		return &sandboxError{err}
	}
	// Once before it counts: after the exec a failure leaves nobody who could tidy up.
	var said bytes.Buffer
	try := exec.CommandContext(ctx, command[0], append(command[1:], program, "sandbox")...)
	try.Env = append(os.Environ(), stageState+"="+trial)
	try.Stderr = &said
	if err := try.Run(); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return &sandboxError{fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, bytes.TrimSpace(said.Bytes()))}
	}
	state := sandboxed{Args: args, Options: opts}
	if state.Network, err = prepared.Save(); err != nil {
		return &sandboxError{err}
	}
	fd, err := state.save()
	if err != nil {
		return &sandboxError{err}
	}
	defer unix.Close(fd)
	if err := keep(opts); err != nil {
		return &sandboxError{err}
	}
	err = unix.Exec(command[0], append(command, program, "sandbox"), append(os.Environ(), stageState+"="+strconv.Itoa(fd)))
	return &sandboxError{fmt.Errorf("execute %s: %w", command[0], err)}
}

// unshareCommand is the command line of unshare(1), less the program. Who cannot mount
// gets a user namespace of its own, in which the container has no rights either.
func unshareCommand() ([]string, error) {
	path, err := exec.LookPath("unshare")
	if err != nil {
		return nil, fmt.Errorf("%w; it is part of util-linux", err)
	}
	command := []string{path, "--mount", "--propagation", "slave"}
	caps, err := capability.NewPid2(0)
	if err == nil {
		err = caps.Load()
	}
	if err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	if !caps.Get(capability.EFFECTIVE, capability.CAP_SYS_ADMIN) {
		command = append(command, "--user", "--map-root-user")
	}
	return append(command, "--"), nil
}

// save writes s to memory that outlives an exec, and returns its descriptor.
func (s *sandboxed) save() (int, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return -1, fmt.Errorf("save the network: %w", err)
	}
	fd, err := unix.MemfdCreate("slipway", 0)
	if err != nil {
		return -1, fmt.Errorf("save the network: memfd_create: %w", err)
	}
	if _, err := unix.Pwrite(fd, b, 0); err != nil { // which leaves the offset at the start
		return -1, errors.Join(fmt.Errorf("save the network: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// loadSandboxed reads and closes what save has written.
func loadSandboxed(descriptor string) (*sandboxed, error) {
	fd, err := strconv.Atoi(descriptor)
	if err != nil {
		return nil, fmt.Errorf("load the network: descriptor %q", descriptor)
	}
	f := os.NewFile(uintptr(fd), "saved network")
	if f == nil {
		return nil, fmt.Errorf("load the network: descriptor %q", descriptor)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("load the network: %w", err)
	}
	s := new(sandboxed)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("load the network: %w", err)
	}
	return s, nil
}

// sandboxStage gives the process its root and becomes the program in there. In a trial
// that is all. A person who starts it has no mount namespace to spare for it.
func sandboxStage() error {
	descriptor, ok := os.LookupEnv(stageState)
	switch {
	case !ok:
		return errors.New("sandbox: it is started by slirp4netns --enable-sandbox only")
	case descriptor == trial:
		return confine.Root(sandboxProgram)
	}
	state, err := loadSandboxed(descriptor)
	if err != nil {
		return &sandboxError{err}
	}
	err = confine.Root(sandboxProgram)
	if err == nil {
		err = state.become()
	}
	// Only now, as it may be another root.
	prepared, gone := monitor.Resume(state.Network, sandboxProgram, logger())
	if gone == nil {
		gone = prepared.Close()
	}
	return &sandboxError{errors.Join(err, gone)}
}

// become executes the program in the sandbox.
func (s *sandboxed) become() error {
	if err := errors.Join(monitor.Keep(s.Network), keep(s.Options)); err != nil {
		return err
	}
	fd, err := s.save()
	if err != nil {
		return err
	}
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, stageState+"=") })
	err = unix.Exec(sandboxProgram, s.Args, append(env, sandboxState+"="+strconv.Itoa(fd)))
	return fmt.Errorf("execute %s: %w", sandboxProgram, err)
}

// inSandbox runs the network that the stage has handed over; it returns the exit status.
func inSandbox(descriptor string) int {
	if err := os.Unsetenv(sandboxState); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	state, err := loadSandboxed(descriptor)
	if err != nil {
		fmt.Fprintf(os.Stderr, "create_sandbox failed\n%v\n", err)
		return 1
	}
	if err := claim(&state.Options); err != nil {
		fmt.Fprintf(os.Stderr, "create_sandbox failed\n%v\n", err)
		return 1
	}
	return network(state.Options, func(ctx context.Context, cancel context.CancelCauseFunc) error {
		prepared, err := monitor.Resume(state.Network, sandboxProgram, logger())
		if err != nil {
			return &sandboxError{err}
		}
		if err := confine.Restrict(prepared.SocketDir()); err != nil {
			return errors.Join(&sandboxError{err}, prepared.Close())
		}
		return runSlirp4netns(ctx, cancel, prepared, state.Options)
	})
}
