// Package caps holds the capabilities of a container's workload: Docker's
// default list, what --cap-add and --cap-drop make of it, and how a process
// comes down to it (capabilities(7)).
package caps

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
)

// Default is Docker's list (moby oci/caps/defaults.go). NET_ADMIN is not in
// it: the container cannot reconfigure its own network.
var Default = []capability.Cap{
	capability.CAP_CHOWN,
	capability.CAP_DAC_OVERRIDE,
	capability.CAP_FSETID,
	capability.CAP_FOWNER,
	capability.CAP_MKNOD,
	capability.CAP_NET_RAW,
	capability.CAP_SETGID,
	capability.CAP_SETUID,
	capability.CAP_SETFCAP,
	capability.CAP_SETPCAP,
	capability.CAP_NET_BIND_SERVICE,
	capability.CAP_SYS_CHROOT,
	capability.CAP_KILL,
	capability.CAP_AUDIT_WRITE,
}

// Set computes the workload's capabilities as Docker does (moby
// oci/caps/utils.go, TweakCapabilities). Names come with or without CAP_, in
// any case. ALL in add means everything but what drop names; ALL in drop means
// what add names; otherwise drop is taken from the default and add put to it.
func Set(add, drop []string) ([]capability.Cap, error) {
	addSet, addAll, err := parse(add)
	if err != nil {
		return nil, fmt.Errorf("--cap-add: %w", err)
	}
	dropSet, dropAll, err := parse(drop)
	if err != nil {
		return nil, fmt.Errorf("--cap-drop: %w", err)
	}
	var set []capability.Cap
	keep := func(from []capability.Cap) {
		for _, c := range from {
			if !slices.Contains(dropSet, c) {
				set = append(set, c)
			}
		}
	}
	switch {
	case addAll:
		supported, err := capability.ListSupported()
		if err != nil {
			return nil, fmt.Errorf("list the kernel's capabilities: %w", err)
		}
		keep(supported)
	case dropAll:
		set = addSet
	default:
		keep(Default)
		set = append(set, addSet...)
	}
	slices.Sort(set)
	return slices.Compact(set), nil
}

// parse turns names into capabilities and reports whether ALL is among them.
func parse(names []string) (set []capability.Cap, all bool, err error) {
	known := capability.ListKnown()
	for _, n := range names {
		name := strings.TrimPrefix(strings.ToLower(n), "cap_")
		if name == "all" {
			all = true
			continue
		}
		i := slices.IndexFunc(known, func(c capability.Cap) bool { return c.String() == name })
		if i < 0 {
			return nil, false, fmt.Errorf("unknown capability %q; see capabilities(7)", n)
		}
		set = append(set, known[i])
	}
	return set, all, nil
}

// Names gives the set as the OCI specification spells it: CAP_CHOWN.
func Names(set []capability.Cap) []string {
	names := make([]string, len(set))
	for i, c := range set {
		names[i] = "CAP_" + strings.ToUpper(c.String())
	}
	return names
}

// Bound drops everything else from the calling thread's bounding set. It needs
// CAP_SETPCAP and must come before the user id changes.
func Bound(set []capability.Cap) error {
	c, err := capability.NewPid2(0)
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	c.Set(capability.BOUNDING, set...)
	if err := c.Apply(capability.BOUNDING); err != nil {
		return fmt.Errorf("drop capabilities from the bounding set: %w", err)
	}
	return nil
}

// Limit sets the calling thread's permitted and effective sets to set, and
// empties the inheritable and ambient ones: ambient capabilities would pass
// an execve(2) whatever the bounding set says.
func Limit(set []capability.Cap) error {
	c, err := capability.NewPid2(0)
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	c.Set(capability.PERMITTED|capability.EFFECTIVE, set...)
	if err := c.Apply(capability.CAPS | capability.AMBIENT); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

// HasAdmin reports whether the calling thread holds CAP_SYS_ADMIN in its user
// namespace.
func HasAdmin() (bool, error) {
	c, err := capability.NewPid2(0)
	if err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	if err := c.Load(); err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	return c.Get(capability.EFFECTIVE, capability.CAP_SYS_ADMIN), nil
}
