package idmap

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFor(t *testing.T) {
	type ids = []syscall.SysProcIDMap
	const someone = "other:100000:65536\n"
	for name, test := range map[string]struct {
		host           Host
		subuid, subgid string
		uids, gids     ids
		reason         string // "" when there is a range
		keepsGroups    bool
	}{
		"user with ranges": {
			Host{UID: 1000, GID: 100, Name: "me", Initial: true}, someone + "me:200000:65536\n", "me:300000:70000\n",
			ids{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 200000, Size: 65536}},
			ids{{ContainerID: 0, HostID: 100, Size: 1}, {ContainerID: 1, HostID: 300000, Size: MaxRange}}, "", false,
		},
		"the longest of several, by number": {
			Host{UID: 1000, GID: 100, Name: "me", Initial: true}, "me:200000:10\n1000:300000:1000\nme:400000:20\n", "1000:300000:1000\n",
			ids{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 300000, Size: 1000}},
			ids{{ContainerID: 0, HostID: 100, Size: 1}, {ContainerID: 1, HostID: 300000, Size: 1000}}, "", false,
		},
		"user without range": {
			Host{UID: 1000, GID: 100, Name: "me", Initial: true}, someone, someone,
			ids{{HostID: 1000, Size: 1}}, ids{{HostID: 100, Size: 1}},
			"user me has no range in SUBUID; run: echo me:165536:65536 | sudo tee -a /etc/subuid /etc/subgid", true,
		},
		"no group range": {
			Host{UID: 1000, GID: 100, Name: "me", Initial: true}, "me:200000:65536\n", "",
			ids{{HostID: 1000, Size: 1}}, ids{{HostID: 100, Size: 1}}, "user me has no range in SUBGID", true,
		},
		"no helpers": {
			Host{UID: 1000, GID: 100, Name: "me", Initial: true, Helpers: func() (string, string, error) { return "", "", errors.New("not installed") }},
			"me:200000:65536\n", "me:200000:65536\n", ids{{HostID: 1000, Size: 1}}, ids{{HostID: 100, Size: 1}}, "not installed", true,
		},
		"user that /etc/passwd does not know": {
			Host{UID: 4711, GID: 100, Initial: true}, ":1:1\n", "", ids{{HostID: 4711, Size: 1}}, ids{{HostID: 100, Size: 1}}, "user 4711 has no range", true,
		},
		"real root": {
			Host{Name: "root", Initial: true}, "root:500000:65536\n", "root:600000:65536\n", ids{{HostID: 500000, Size: 65536}}, ids{{HostID: 600000, Size: 65536}}, "", false,
		},
		"real root without range": {
			Host{Name: "root", Initial: true}, someone, someone, ids{{HostID: 65534, Size: 1}}, ids{{HostID: 65534, Size: 1}}, "user root has no range", false,
		},
		"root of a user namespace": {
			Host{Name: "root"}, "root:500000:65536\n", "root:600000:65536\n", ids{{HostID: 0, Size: 1}}, ids{{HostID: 0, Size: 1}}, "root of a user namespace", true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := test.host
			h.SubUID, h.SubGID = filepath.Join(t.TempDir(), "subuid"), filepath.Join(t.TempDir(), "subgid")
			for path, text := range map[string]string{h.SubUID: test.subuid, h.SubGID: test.subgid} {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if h.Helpers == nil {
				h.Helpers = func() (string, string, error) { return "/bin/newuidmap", "/bin/newgidmap", nil }
			}
			p := For(h)
			if diff := cmp.Diff([]ids{test.uids, test.gids}, []ids{p.UIDs, p.GIDs}); diff != "" {
				t.Errorf("maps (-want +got)\n%s", diff)
			}
			want := strings.NewReplacer("SUBUID", h.SubUID, "SUBGID", h.SubGID).Replace(test.reason)
			if p.Single != (test.reason != "") || !strings.Contains(p.Reason, want) {
				t.Errorf("single %v, reason %q; want %q", p.Single, p.Reason, want)
			}
			if p.KeepsGroups != test.keepsGroups {
				t.Errorf("keeps groups %v, want %v", p.KeepsGroups, test.keepsGroups)
			}
			// Container root is nobody that has rights on the machine.
			if id := p.UIDs[0].HostID; test.host.UID == 0 && test.host.Initial && id < 65534 {
				t.Errorf("real root's container root is %d on the machine", id)
			}
		})
	}
}

func TestMissingFiles(t *testing.T) {
	p := For(Host{UID: 1000, Name: "me", Initial: true, SubUID: "/no/such/file", SubGID: "/no/such/file"})
	if !p.Single || !strings.Contains(p.Reason, "echo me:100000:65536") {
		t.Errorf("single %v, reason %q", p.Single, p.Reason)
	}
}

func TestConfigure(t *testing.T) {
	for name, test := range map[string]struct {
		plan Plan
		want syscall.SysProcAttr
	}{
		"by helpers": {
			Plan{UIDs: []syscall.SysProcIDMap{{Size: 1}}, helpers: [2]string{"a", "b"}},
			syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER},
		},
		"single": {
			single(Host{UID: 7, GID: 8}, "why"),
			syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{HostID: 7, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: 8, Size: 1}},
			},
		},
		"real root": {
			Plan{UIDs: []syscall.SysProcIDMap{{HostID: 9, Size: 2}}, GIDs: []syscall.SysProcIDMap{{HostID: 9, Size: 2}}, root: true},
			syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{HostID: 9, Size: 2}}, GidMappings: []syscall.SysProcIDMap{{HostID: 9, Size: 2}},
				GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got syscall.SysProcAttr
			test.plan.Configure(&got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// The helper's own words come with the error.
func TestWriteFails(t *testing.T) {
	helper := filepath.Join(t.TempDir(), "newuidmap")
	if err := os.WriteFile(helper, []byte("#!/bin/sh\necho \"refused: $*\" >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := Plan{UIDs: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 7, Size: 1}, {ContainerID: 1, HostID: 100, Size: 5}}, helpers: [2]string{helper, helper}}
	if err := p.Write(42); err == nil || !strings.Contains(err.Error(), "refused: 42 0 7 1 1 100 5") {
		t.Errorf("got %v", err)
	}
}
