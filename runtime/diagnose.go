package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"slipway/netstack/netns"
	"slipway/netstack/tap"
	"slipway/runtime/caps"
	"slipway/runtime/doctor"
	"slipway/runtime/idmap"
	"slipway/runtime/rootfs"
)

// Diagnose tries what a container needs of this machine, in a throw-away user
// namespace where it can, and says what is missing.
func Diagnose(ctx context.Context) doctor.Report {
	plan := idmap.For(idmap.Here())
	f, err := tryNamespaces(ctx, plan)
	if err != nil {
		f = doctor.Findings{Namespaces: err}
	}
	f.Single = plan.Reason
	return doctor.Examine(ctx, doctor.Here(), f)
}

// tryNamespaces starts a process in namespaces of its own and has things tried
// in it.
func tryNamespaces(ctx context.Context, plan idmap.Plan) (doctor.Findings, error) {
	p, err := startStage(stageConfig{
		role: roleProbe, flags: namespaceFlags | syscall.CLONE_NEWNET, plan: plan,
		stderr: os.Stderr,
	})
	if err != nil {
		return doctor.Findings{}, err
	}
	defer p.release()
	defer p.kill()
	stop := context.AfterFunc(ctx, func() { _ = unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0) })
	defer stop()

	if err := plan.Write(p.cmd.Process.Pid); err != nil {
		return doctor.Findings{IDs: err, NotTried: true}, nil
	}
	if err := tell(p.control, kindMapped); err != nil {
		return doctor.Findings{}, p.died(err)
	}
	e := <-p.heard
	if e.err != nil {
		return doctor.Findings{}, p.died(e.err)
	}
	if e.m.Kind == kindFailed {
		return doctor.Findings{}, errors.New(e.m.Text)
	}
	var found probed
	if err := json.Unmarshal([]byte(e.m.Text), &found); err != nil {
		return doctor.Findings{}, fmt.Errorf("findings of the probe: %w", err)
	}
	f := doctor.Findings{
		Mounts: found.Mounts.err(), Overlay: found.Overlay.err(), PingInside: found.Ping.err(),
	}
	if found.NoUserXattr {
		f.Overlay = rootfs.ErrNoUserXattr
	}
	f.Offload, f.OffloadReason, f.TUN = tryTUN(p)
	return f, nil
}

// tryTUN makes a TAP device in the probe's network namespace the way a
// container gets its own.
func tryTUN(p *stageProcess) (offload, reason string, err error) {
	t, err := netns.FromPID(p.cmd.Process.Pid)
	if err != nil {
		return "", "", err
	}
	defer t.Close()
	f, err := t.OpenTUN("")
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	d, err := tap.Attach(f, "tap0", tap.Auto)
	if err != nil {
		return "", "", err
	}
	defer d.Close()
	return d.Offload().String(), d.Reason(), nil
}

// finding is an error on its way through a message: its text, "" for none.
type finding string

func (f finding) err() error {
	if f == "" {
		return nil
	}
	return errors.New(string(f))
}

func found(err error) finding {
	if err == nil {
		return ""
	}
	return finding(err.Error())
}

// probed is what the probe found, as its message's text.
type probed struct {
	Mounts, Overlay, Ping finding
	NoUserXattr           bool
}

// probe is the process in the throw-away namespaces: it tries, tells, and
// waits for its end.
func probe() error {
	admin, err := caps.HasAdmin()
	if err != nil {
		return err
	}
	if !admin && os.Args[0] == roleProbe {
		if err := controlFD.wait(kindMapped); err != nil {
			return err
		}
		return reexec("/proc/self/exe", roleProbed, controlFD)
	}
	if os.Args[0] == roleProbe {
		if err := controlFD.wait(kindMapped); err != nil {
			return err
		}
	}
	unix.CloseOnExec(int(controlFD))
	var p probed
	ids, err := idmap.Own()
	if err != nil {
		return err
	}
	overlay, err := rootfs.Probe()
	p.Mounts, p.Overlay, p.NoUserXattr = found(err), found(overlay), errors.Is(overlay, rootfs.ErrNoUserXattr)
	p.Ping = found(os.WriteFile("/proc/sys/net/ipv4/ping_group_range", fmt.Appendf(nil, "0 %d", ids.LastGID()), 0))
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := controlFD.send(message{Kind: kindReady, Text: string(text)}, -1); err != nil {
		return err
	}
	return controlFD.wait(kindStart) // never said: the launcher kills us
}
