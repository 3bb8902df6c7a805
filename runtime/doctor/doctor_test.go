package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slipway/runtime/rootfs"
)

// machine is one with these sysctls and no name server.
func machine(t *testing.T, sysctls map[string]string) Machine {
	t.Helper()
	m := Machine{Sysctl: t.TempDir(), ResolvConf: filepath.Join(t.TempDir(), "resolv.conf"), Executable: "/opt/slipway", Timeout: 50 * time.Millisecond}
	if err := os.WriteFile(m.ResolvConf, []byte("# nameserver 192.0.2.1\nsearch example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range sysctls {
		path := filepath.Join(m.Sysctl, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func check(t *testing.T, r Report, id string) Check {
	t.Helper()
	for _, c := range r.Checks {
		if c.ID == id {
			return c
		}
	}
	t.Fatalf("no check %q in %v", id, r)
	return Check{}
}

func TestExamine(t *testing.T) {
	for name, test := range map[string]struct {
		sysctls map[string]string
		found   Findings
		id      string
		status  Status
		fix     string
	}{
		"good":              {nil, Findings{Offload: "csum"}, "userns", OK, ""},
		"good tun":          {nil, Findings{Offload: "csum"}, "tun", OK, ""},
		"switched off":      {map[string]string{"user/max_user_namespaces": "0"}, Findings{Namespaces: unix.ENOSPC}, "userns", Fail, "user.max_user_namespaces=15000"},
		"limit":             {nil, Findings{Namespaces: fmt.Errorf("clone: %w", unix.ENOSPC)}, "userns", Fail, "user.max_user_namespaces"},
		"forbidden":         {nil, Findings{Namespaces: unix.EPERM}, "userns", Fail, "seccomp=unconfined"},
		"one id":            {nil, Findings{Single: "no range; run: echo a range"}, "ids", Warn, "echo a range"},
		"helpers fail":      {nil, Findings{IDs: errors.New("newuidmap: no"), NotTried: true}, "ids", Fail, "chmod u+s"},
		"no tun":            {nil, Findings{TUN: fmt.Errorf("open: %w", unix.ENOENT)}, "tun", Fail, "modprobe tun"},
		"closed tun":        {nil, Findings{TUN: unix.EACCES}, "tun", Fail, "chmod 0666 /dev/net/tun"},
		"device cgroup":     {nil, Findings{TUN: unix.EPERM}, "tun", Fail, "--device /dev/net/tun"},
		"no offloads":       {nil, Findings{OffloadReason: "refused"}, "tun", Warn, "kernel"},
		"hidden proc":       {nil, Findings{Mounts: unix.EPERM}, "mounts", Fail, "systempaths=unconfined"},
		"overlay not tried": {nil, Findings{Mounts: unix.EPERM}, "overlay", Fail, "see mounts"},
		"no overlay":        {nil, Findings{Overlay: unix.ENODEV}, "overlay", Fail, "modprobe overlay"},
		"no user xattrs":    {nil, Findings{Overlay: rootfs.ErrNoUserXattr}, "overlay", Warn, "6.6"},
		"no resolver":       {nil, Findings{}, "resolver", Warn, "/etc/resolv.conf"},
	} {
		t.Run(name, func(t *testing.T) {
			r := Examine(t.Context(), machine(t, test.sysctls), test.found)
			c := check(t, r, test.id)
			if c.Status != test.status || !strings.Contains(c.Fix, test.fix) || (c.Status == OK) != (c.Fix == "") {
				t.Errorf("got %+v, want %s and fix %q", c, test.status, test.fix)
			}
			if r.Failed() != (test.status == Fail) {
				t.Errorf("failed: %v", r.Failed())
			}
			if _, err := json.Marshal(r); err != nil {
				t.Error(err)
			}
			var b strings.Builder
			if err := r.Write(&b); err != nil || strings.Count(b.String(), "\n") < len(r.Checks) || !strings.Contains(b.String(), c.Detail) {
				t.Errorf("%v, text:\n%s", err, b.String())
			}
		})
	}
}

// What only an ordinary user meets.
func TestExamineUser(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("needs to run as an ordinary user")
	}
	r := Examine(t.Context(), machine(t, map[string]string{"kernel/apparmor_restrict_unprivileged_userns": "1"}), Findings{Mounts: unix.EACCES})
	if c := check(t, r, "userns"); c.Status != Fail || !strings.Contains(c.Fix, "profile slipway /opt/slipway") {
		t.Errorf("got %+v", c)
	}
	r = Examine(t.Context(), machine(t, map[string]string{"kernel/unprivileged_userns_clone": "0"}), Findings{Namespaces: unix.EPERM})
	if c := check(t, r, "userns"); c.Status != Fail || !strings.Contains(c.Fix, "unprivileged_userns_clone=1") {
		t.Errorf("got %+v", c)
	}
}
