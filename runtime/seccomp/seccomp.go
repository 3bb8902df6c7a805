// Package seccomp turns moby's default profile into a filter and loads it. The
// compiler is netstack/confine/filter: the library's own gets argument checks wrong.
//
// The profile is compiled for the native architecture only: system calls of a
// foreign one (a 32-bit program on amd64) get the default action, EPERM.
package seccomp

import (
	"fmt"

	sb "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"slipway/netstack/confine/filter"
)

// Default is moby's profile for a workload whose bounding set holds these
// capabilities ("CAP_CHOWN" ...): some calls are allowed only with the
// capability that makes them useful.
func Default(bounding []string) (sb.Policy, error) {
	p, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{
		Capabilities: &specs.LinuxCapabilities{Bounding: bounding},
	}})
	if err != nil {
		return sb.Policy{}, fmt.Errorf("seccomp profile: %w", err)
	}
	return convert(p)
}

// Load installs the policy on the calling thread, which the caller has locked, and
// sets no_new_privs. The error is filter.ErrNotSupported where the kernel has none.
func Load(p sb.Policy) error {
	return filter.Load(p, 0)
}

// convert translates a profile. Names that this architecture's table does not
// hold are left out: the kernel then applies the default action, which is the
// stricter one.
func convert(p *specs.LinuxSeccomp) (sb.Policy, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return sb.Policy{}, fmt.Errorf("seccomp: %w", err)
	}
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return sb.Policy{}, err
	}
	// As the default, Policy.Validate knows only the bare actions; the filter
	// makes errno EPERM, which is what the profile asks for.
	if def != sb.ActionErrno|sb.Action(unix.EPERM) {
		return sb.Policy{}, fmt.Errorf("seccomp: default action %s is not errno EPERM", p.DefaultAction)
	}
	policy := sb.Policy{DefaultAction: sb.ActionErrno}
	for _, s := range p.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return sb.Policy{}, err
		}
		conditions, err := conditions(s.Args)
		if err != nil {
			return sb.Policy{}, fmt.Errorf("seccomp: %v: %w", s.Names, err)
		}
		group := sb.SyscallGroup{Action: act}
		for _, name := range s.Names {
			if _, known := info.SyscallNames[name]; !known {
				continue
			}
			if len(conditions) == 0 {
				group.Names = append(group.Names, name)
				continue
			}
			group.NamesWithCondtions = append(group.NamesWithCondtions, sb.NameWithConditions{Name: name, Conditions: conditions})
		}
		policy.Syscalls = append(policy.Syscalls, group)
	}
	return policy, nil
}

// action adds the errno to the action's data bits (SECCOMP_RET_DATA,
// seccomp(2)); the filter returns such a value as it is.
func action(a specs.LinuxSeccompAction, errno *uint) (sb.Action, error) {
	switch a {
	case specs.ActAllow:
		return sb.ActionAllow, nil
	case specs.ActErrno:
		if errno != nil {
			return sb.ActionErrno | sb.Action(*errno&0xffff), nil
		}
		return sb.ActionErrno | sb.Action(unix.EPERM), nil
	}
	return 0, fmt.Errorf("seccomp: action %s is not supported", a)
}

// conditions translates the argument checks, all of which must hold. The
// profile never checks one argument twice, where runc would mean "or".
func conditions(args []specs.LinuxSeccompArg) (sb.ArgumentConditions, error) {
	var out sb.ArgumentConditions
	seen := map[uint]bool{}
	for _, a := range args {
		if seen[a.Index] {
			return nil, fmt.Errorf("argument %d is checked twice", a.Index)
		}
		seen[a.Index] = true
		c := sb.Condition{Argument: uint32(a.Index), Value: a.Value}
		switch a.Op {
		case specs.OpEqualTo:
			c.Operation = sb.Equal
		case specs.OpNotEqual:
			c.Operation = sb.NotEqual
		case specs.OpGreaterThan:
			c.Operation = sb.GreaterThan
		case specs.OpGreaterEqual:
			c.Operation = sb.GreaterOrEqual
		case specs.OpLessThan:
			c.Operation = sb.LessThan
		case specs.OpLessEqual:
			c.Operation = sb.LessOrEqual
		case specs.OpMaskedEqual:
			// (argument & Value) == ValueTwo; the library has it for 0 only.
			if a.ValueTwo != 0 {
				return nil, fmt.Errorf("masked comparison with %#x is not supported", a.ValueTwo)
			}
			c.Operation = sb.BitsNotSet
		default:
			return nil, fmt.Errorf("operator %s is not supported", a.Op)
		}
		out = append(out, c)
	}
	return out, nil
}
