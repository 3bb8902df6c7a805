package caps

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/capability"
)

func TestSet(t *testing.T) {
	all, err := capability.ListSupported()
	if err != nil {
		t.Fatal(err)
	}
	less := func(from []capability.Cap, drop ...capability.Cap) []capability.Cap {
		return slices.DeleteFunc(slices.Clone(from), func(c capability.Cap) bool { return slices.Contains(drop, c) })
	}
	for name, test := range map[string]struct {
		add, drop []string
		want      []capability.Cap
	}{
		"default":             {nil, nil, Default},
		"add":                 {[]string{"net_admin"}, nil, append(slices.Clone(Default), capability.CAP_NET_ADMIN)},
		"add what is there":   {[]string{"CAP_CHOWN", "chown"}, nil, Default},
		"drop":                {nil, []string{"CAP_KILL", "mknod"}, less(Default, capability.CAP_KILL, capability.CAP_MKNOD)},
		"all":                 {[]string{"ALL"}, nil, all},
		"all but one":         {[]string{"all"}, []string{"SYS_ADMIN"}, less(all, capability.CAP_SYS_ADMIN)},
		"none":                {nil, []string{"all"}, nil},
		"only one":            {[]string{"Cap_Sys_Ptrace"}, []string{"ALL"}, []capability.Cap{capability.CAP_SYS_PTRACE}},
		"added after dropped": {[]string{"kill"}, []string{"kill"}, Default},
		"add and drop all":    {[]string{"all"}, []string{"all"}, all},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Set(test.add, test.drop)
			want := slices.Sorted(slices.Values(test.want))
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%v, (-want +got)\n%s", err, cmp.Diff(Names(want), Names(got)))
			}
		})
	}
	for _, bad := range []string{"", "cap_", "fly", "CAP_ALL_", "chown,kill"} {
		if set, err := Set([]string{bad}, nil); err == nil {
			t.Errorf("add %q: got %v", bad, set)
		}
		if set, err := Set(nil, []string{bad}); err == nil {
			t.Errorf("drop %q: got %v", bad, set)
		}
	}
}

func TestNames(t *testing.T) {
	want := []string{"CAP_CHOWN", "CAP_NET_BIND_SERVICE"}
	if diff := cmp.Diff(want, Names([]capability.Cap{capability.CAP_CHOWN, capability.CAP_NET_BIND_SERVICE})); diff != "" {
		t.Error(diff)
	}
}
