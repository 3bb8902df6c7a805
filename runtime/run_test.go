package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExitStatus(t *testing.T) {
	noFormat := filepath.Join(sharedDir(t), "data")
	if err := os.WriteFile(noFormat, []byte("no program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		cfg    Config
		want   int
		stderr string
	}{
		"success":            {Config{Image: "host", Args: []string{"true"}}, 0, ""},
		"own status":         {Config{Image: "host", Args: []string{"sh", "-c", "exit 7"}}, 7, ""},
		"not there":          {Config{Image: "host", Args: []string{"no-such-program"}}, 127, "no-such-program"},
		"path not there":     {Config{Image: "host", Args: []string{"/no/such/program"}}, 127, "/no/such/program"},
		"not executable":     {Config{Image: "host", Args: []string{"/etc/passwd"}}, 126, "permission denied"},
		"a directory":        {Config{Image: "host", Args: []string{"/usr"}}, 126, "is a directory"},
		"no format":          {Config{Image: "host", Args: []string{"/mnt/data"}, Volumes: []Volume{{Source: noFormat, Target: "/mnt/data"}}}, 126, "exec format error"},
		"unknown image":      {Config{Image: "alpine", Args: []string{"true"}}, 125, `unknown image "alpine"; use host`},
		"no directory":       {Config{Image: "dir:/no/such/root", Args: []string{"true"}}, 125, "no such file"},
		"no command":         {Config{Image: "dir:/"}, 125, "no command"},
		"unknown user":       {Config{Image: "host", User: "nosuchuser", Args: []string{"true"}}, 125, `user "nosuchuser"`},
		"unknown group":      {Config{Image: "host", User: "0:nosuchgroup", Args: []string{"true"}}, 125, "nosuchgroup"},
		"unmapped user":      {Config{Image: "host", User: "3000000", Args: []string{"true"}}, 125, "does not exist in the container"},
		"unknown capability": {Config{Image: "host", CapAdd: []string{"fly"}, Args: []string{"true"}}, 125, `unknown capability "fly"`},
		"relative directory": {Config{Image: "host", Workdir: "x", Args: []string{"true"}}, 125, "absolute"},
		"bad variable":       {Config{Image: "host", Env: []string{"=x"}, Args: []string{"true"}}, 125, "environment variable"},
		"bad host name":      {Config{Image: "host", Hostname: "a b", Args: []string{"true"}}, 125, "host name"},
		"no terminal":        {Config{Image: "host", TTY: true, Interactive: true, Args: []string{"true"}}, 125, "not a terminal"},
		"private without":    {Config{Image: "host", Network: Private, Args: []string{"true"}}, 125, "configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			out, errOut, code := containerOutput(t, test.cfg)
			if code != test.want || !strings.Contains(errOut, test.stderr) {
				t.Errorf("status %d, stderr %q, stdout %q; want %d and %q", code, errOut, out, test.want, test.stderr)
			}
		})
	}
}

// One container shows all that it must not have.
func TestIsolation(t *testing.T) {
	out := script(t, Config{Env: []string{"A=b"}, Hostname: "box"}, `
echo id=$(id -u):$(id -g)
echo hostname=$(hostname) A=$A HOME=$HOME
grep -E '^(Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -d ' \t'
echo pid=$$ processes=$(ls -d /proc/[0-9]* | wc -l)
[ "$(stat -c %d:%i /)" = "$(stat -c %d:%i /..)" ] && echo rootless-parent=none
echo session=$(cut -d' ' -f6 /proc/1/stat)
echo ping=$(cat /proc/sys/net/ipv4/ping_group_range | tr '\t' ' ' | cut -d' ' -f1) port=$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)
echo lo=$(cat /sys/class/net/lo/operstate) links=$(ls /sys/class/net | tr '\n' ' ')
(echo x > /proc/sys/kernel/hostname) 2>/dev/null || echo sysctl=ro
echo keys=$(wc -c < /proc/keys)
touch /usr/x 2>/dev/null || echo usr=ro
touch /etc/x /var/lib/x /var/tmp/x /tmp/x /run/x /root/x /home/x /mnt/x /dev/shm/x && echo writable=yes
ls -A /home /mnt /root | grep -v -e ':$' -e '^x$' | tr -d '\n'
`)
	want := map[string]string{
		"id": "0:0", "hostname": "box A=b HOME=/root", "CapInh": "0000000000000000", "CapPrm": "00000000a80425fb", "CapEff": "00000000a80425fb",
		"CapBnd": "00000000a80425fb", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "pid": "1 processes=",
		"rootless-parent": "none", "session": "1", "ping": "0 port=0", "lo": "unknown links=lo", "sysctl": "ro", "usr": "ro", "writable": "yes",
		"keys": "0",
	}
	got := map[string]string{}
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		i := strings.IndexAny(line, "=:")
		if i < 0 {
			t.Errorf("unexpected: %q", line)
			continue
		}
		got[line[:i]] = line[i+1:]
	}
	got["pid"] = regexp.MustCompile(`\d+$`).ReplaceAllString(got["pid"], "")
	delete(got, "Groups")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// No descriptor but the three reaches the workload: a directory of the machine
// among them would be a way out (CVE-2024-21626).
func TestDescriptors(t *testing.T) {
	out, errOut, code := containerOutput(t, Config{Image: "host", Args: []string{"ls", "/proc/self/fd"}})
	if want := "0\n1\n2\n3\n"; code != 0 || out != want { // 3 is the directory that ls reads
		t.Errorf("got %q, want %q; status %d, %s", out, want, code, errOut)
	}
}

// Nothing of the machine may be mounted beside what the image is made of: a
// mount that stays above the root is one "/.." away.
func TestMounts(t *testing.T) {
	allowed := regexp.MustCompile(`^(/|/(usr|opt|etc|var|bin|sbin|lib|lib32|lib64|libx32|proc|sys|dev)(/.*)?)$`)
	for name, cfg := range map[string]Config{"default": {}, "all capabilities": {CapAdd: []string{"all"}}, "read-only": {ReadOnly: true}} {
		t.Run(name, func(t *testing.T) {
			roots := 0
			for line := range strings.Lines(script(t, cfg, "cat /proc/self/mountinfo")) {
				f := strings.Fields(line)
				if !allowed.MatchString(f[4]) {
					t.Errorf("mount %s", line)
				}
				if f[4] == "/" {
					roots++
				}
			}
			if roots != 1 {
				t.Errorf("%d mounts at /, want 1", roots)
			}
		})
	}
}

func TestReadOnly(t *testing.T) {
	out := script(t, Config{ReadOnly: true}, `
for d in / /etc /var /var/tmp /tmp /run /root /home /mnt /usr; do touch $d/x 2>/dev/null && echo "$d is writable"; done
touch /dev/shm/x && echo shm`)
	if out != "shm" {
		t.Errorf("got %q", out)
	}
}

func TestCapabilities(t *testing.T) {
	const text = "grep -E '^Cap(Eff|Bnd|Amb)' /proc/self/status | tr -d '\t\n'"
	for name, test := range map[string]struct {
		cfg  Config
		want string
	}{
		"none":          {Config{CapDrop: []string{"ALL"}}, "CapEff:0000000000000000CapBnd:0000000000000000CapAmb:0000000000000000"},
		"one":           {Config{CapDrop: []string{"all"}, CapAdd: []string{"NET_ADMIN"}}, "CapEff:0000000000001000CapBnd:0000000000001000CapAmb:0000000000000000"},
		"without chown": {Config{CapDrop: []string{"CAP_CHOWN"}}, "CapEff:00000000a80425faCapBnd:00000000a80425faCapAmb:0000000000000000"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, script(t, test.cfg, text)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestUser(t *testing.T) {
	needIDs(t)
	for user, want := range map[string]string{
		"33":         "33 33 /var/www",
		"www-data":   "33 33 /var/www",
		"33:44":      "33 44 /var/www",
		"12345":      "12345 0 /",
		"0:www-data": "0 33 /root",
	} {
		t.Run(user, func(t *testing.T) {
			got := script(t, Config{User: user}, "echo $(id -u) $(id -g) $HOME; grep CapEff /proc/self/status | grep -q 0000000000000000 || [ $(id -u) = 0 ]")
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("SLIPWAY_PASSED", "from outside")
	t.Setenv("SLIPWAY_SECRET", "hidden")
	out := script(t, Config{Env: []string{"SLIPWAY_PASSED", "SLIPWAY_UNSET", "PATH=/bin", "X=a=b"}, Workdir: "/new/dir"}, `
echo $SLIPWAY_PASSED,$SLIPWAY_SECRET,${SLIPWAY_UNSET-unset},$PATH,$X,$(pwd)`)
	if want := "from outside,,unset,/bin,a=b,/new/dir"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestHostNetwork(t *testing.T) {
	want, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := script(t, Config{Network: HostNet}, "readlink /proc/self/ns/net"); got != want {
		t.Errorf("network namespace %s, want %s", got, want)
	}
}

// The stage's binary is read-only whoever owns it.
func TestOwnBinaryCannotBeWritten(t *testing.T) {
	needNamespaces(t)
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := sharedDir(t)
	for name, mode := range map[string]os.FileMode{"by its path": 0o755, "where the path is closed": 0o700} {
		t.Run(name, func(t *testing.T) {
			sub := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			if err := os.Mkdir(sub, mode); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(sub, "slipway")
			if err := os.WriteFile(path, exe, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, 0o777); err != nil { // anybody's, were it not for the seal
				t.Fatal(err)
			}
			r := command(t, Config{Image: "host", Args: []string{"/proc/self/exe", attackArg}})
			r.cmd.Path = path
			if err := r.cmd.Run(); err == nil {
				t.Error("the write succeeded")
			}
			if msg := r.errOut.String(); !strings.Contains(msg, "Read-only file system") && !strings.Contains(msg, "Operation not permitted") {
				t.Errorf("stdout %q, stderr %q; want a refusal of the file system", r.out.String(), msg)
			}
			if now, err := os.ReadFile(path); err != nil || len(now) != len(exe) {
				t.Errorf("the binary has changed: %d bytes, %v", len(now), err)
			}
		})
	}
}

// Where only one id can be had, and where something is mounted below /etc, a
// container is less than usual, and one all the same.
func TestNestedUserNamespace(t *testing.T) {
	needNamespaces(t)
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip("needs unshare (util-linux)")
	}
	r := command(t, Config{Image: "host", Args: []string{"sh", "-c", `
id -u; wc -l < /proc/self/uid_map; cat /proc/sys/net/ipv4/ping_group_range | tr '\t' ' '
cat /etc/hostname; touch /etc/new /etc/ssl/new /var/lib/new && echo writable; grep -c ' /etc/passwd ' /proc/self/mountinfo; [ -s /etc/passwd ] && echo passwd`}, Hostname: "box"})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r.cmd.Path = "/usr/bin/unshare"
	r.cmd.Args = []string{"unshare", "-Urm", "sh", "-c", "mount --bind /etc/passwd /etc/passwd && mount --bind /etc/group /etc/hostname && exec " + exe}
	if err := r.cmd.Run(); err != nil {
		t.Fatalf("%v, stderr %s", err, r.errOut.String())
	}
	if want := "0\n1\n0 0\nbox\nwritable\n0\npasswd\n"; r.out.String() != want {
		t.Errorf("(-want +got)\n%s\n%s", cmp.Diff(want, r.out.String()), r.errOut.String())
	}
	if want := "only user id 0 exists in the container: slipway runs as root of a user namespace"; !strings.Contains(r.errOut.String(), want) {
		t.Errorf("stderr %q, want %q", r.errOut.String(), want)
	}
}
