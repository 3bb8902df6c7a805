//go:build e2e

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func TestRunExitStatus(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want int
	}{
		{[]string{"run", "--rm", "host", "true"}, 0},
		{[]string{"run", "--rm", "host", "sh", "-c", "exit 7"}, 7},
		{[]string{"run", "--rm", "host", "sh", "-c", "kill -9 $$"}, 0}, // pid 1 does not take it from inside
		{[]string{"run", "--rm", "host", "nosuchprogram"}, 127},
		{[]string{"run", "--rm", "host", "/nosuch/program"}, 127},
		{[]string{"run", "--rm", "host", "/etc/hostname"}, 126},
		{[]string{"run", "--rm", "host", "/etc"}, 126},
		{[]string{"run", "--rm", "--network", "none", "host", "sh", "-c", "exit 9"}, 9},
		{[]string{"run", "--nosuchflag", "host", "true"}, 125},
		{[]string{"run", "--rm", "nosuchimage", "true"}, 125},
	} {
		if got := slipway(t, tt.args...).wait(); got != tt.want {
			t.Errorf("slipway %q: exit status %d, want %d", tt.args, got, tt.want)
		}
	}
}

// openDir is a directory that every user can reach and write, also the one that
// root's containers run as.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "slw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// procStatus is /proc/PID/status by field.
func procStatus(t *testing.T, pid string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		t.Fatal(err)
	}
	return statusFields(string(b))
}

func statusFields(s string) map[string]string {
	out := make(map[string]string)
	for line := range strings.Lines(s) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			out[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	return out
}

// subIDs are the ids in /etc/subuid that are the caller's, by name or number.
func subIDs(t *testing.T) (first, last int) {
	t.Helper()
	b, err := os.ReadFile("/etc/subuid")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	name, err := exec.Command("id", "-un").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || (f[0] != strings.TrimSpace(string(name)) && f[0] != strconv.Itoa(os.Getuid())) {
			continue
		}
		start, err1 := strconv.Atoi(f[1])
		count, err2 := strconv.Atoi(f[2])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return start, start + count - 1
	}
	return -1, -1
}

// needsSubIDs skips tests of a second user in the container.
func needsSubIDs(t *testing.T) {
	t.Helper()
	if first, _ := subIDs(t); first < 0 {
		t.Skipf("uid %d has no range in /etc/subuid: only one user exists in its containers", os.Getuid())
	}
}

// dockerCaps is CapEff of root in a container of Docker's defaults.
const dockerCaps = "00000000a80425fb"

func TestRunIsRootInsideAndUnprivilegedOutside(t *testing.T) {
	t.Parallel()
	needsSubIDs(t)
	first, last := subIDs(t)
	p := slipway(t, "run", "--rm", "host", "sh", "-c", "id; cat /proc/self/uid_map; cat /proc/self/status; exec sleep 611")
	workload := find(t, p.Process.Pid, "sleep", func(cmdline string) bool { return cmdline == "sleep 611" })

	p.says("Seccomp_filters")
	if got, want := p.stdout.String(), "uid=0(root) gid=0(root) groups=0(root)\n"; !strings.HasPrefix(got, want) {
		t.Errorf("id printed %q, want %q", got, want)
	}
	inside := statusFields(p.stdout.String())
	if got := inside["Uid"]; got != "0 0 0 0" {
		t.Errorf("Uid inside is %q, want zeros", got)
	}

	outside := procStatus(t, strconv.Itoa(workload))
	for _, field := range []string{"Uid", "Gid"} {
		for id := range strings.FieldsSeq(outside[field]) {
			n, err := strconv.Atoi(id)
			if err != nil {
				t.Fatal(err)
			}
			own := os.Getuid() != 0 && (field == "Uid" && n == os.Getuid() || field == "Gid" && n == os.Getgid())
			if !own && (n < first || n > last) {
				t.Errorf("%s outside is %q: %d is neither an unprivileged caller's own nor of its range %d-%d", field, outside[field], n, first, last)
			}
		}
	}
	if got := outside["Groups"]; got != "" {
		t.Errorf("supplementary groups outside: %q, want none", got)
	}

	own := procStatus(t, "self")
	filters, err := strconv.Atoi(own["Seccomp_filters"])
	if err != nil {
		t.Fatalf("Seccomp_filters of the test itself: %v", err)
	}
	for field, want := range map[string]string{
		"NoNewPrivs": "1",
		"Seccomp":    "2",
		// The engine has one more: its lock-down must not reach the workload.
		"Seccomp_filters": strconv.Itoa(filters + 1),
		"CapInh":          "0000000000000000",
		"CapPrm":          dockerCaps,
		"CapEff":          dockerCaps,
		"CapBnd":          dockerCaps,
		"CapAmb":          "0000000000000000",
	} {
		if outside[field] != want {
			t.Errorf("%s is %q, want %q", field, outside[field], want)
		}
	}
}

// TestEngineIsLockedDown is the other half of the seccomp count above: there is a
// lock-down that the workload could have inherited.
func TestEngineIsLockedDown(t *testing.T) {
	t.Parallel()
	p := slipway(t, "run", "--rm", "host", "sh", "-c", "echo up; exec sleep 612")
	p.says("up")
	status := procStatus(t, strconv.Itoa(child(t, p.Process.Pid, " engine")))
	for field, want := range map[string]string{"NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapAmb": "0000000000000000"} {
		if status[field] != want {
			t.Errorf("%s of the engine is %q, want %q", field, status[field], want)
		}
	}
}

// TestRunOptions compares what a command prints with what it prints in Docker.
func TestRunOptions(t *testing.T) {
	t.Parallel()
	caps := []string{"sed", "-n", `s/^CapEff:\t//p`, "/proc/self/status"}
	netns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	lastCap, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(lastCap)))
	if err != nil {
		t.Fatal(err)
	}
	allCaps := fmt.Sprintf("%016x\n", uint64(1)<<(n+1)-1)

	for _, tt := range []struct {
		name    string
		options []string
		command []string
		want    string
	}{
		{"env", []string{"-e", "A=b c", "-e", "A=d e"}, []string{"sh", "-c", `echo "$A"`}, "d e\n"},
		{"env passed on", []string{"-e", "SLIPWAY_BIN"}, []string{"sh", "-c", `echo "$SLIPWAY_BIN"`}, os.Getenv("SLIPWAY_BIN") + "\n"},
		{"env passed on, not set", []string{"-e", "NOBODY_SETS_THIS"}, []string{"sh", "-c", `echo "${NOBODY_SETS_THIS-unset}"`}, "unset\n"},
		{"env not asked for", nil, []string{"sh", "-c", `echo "${SLIPWAY_BIN-unset}"`}, "unset\n"},
		{"env default", []string{"--hostname", "box"}, []string{"env"}, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOSTNAME=box\nHOME=/root\n"},
		{"workdir default", nil, []string{"pwd"}, "/\n"},
		{"workdir", []string{"-w", "/usr/bin"}, []string{"pwd"}, "/usr/bin\n"},
		{"workdir made", []string{"-w", "/tmp/made/here"}, []string{"pwd"}, "/tmp/made/here\n"},
		{"user", []string{"-u", "1"}, []string{"sh", "-c", "id -u; id -g"}, "1\n1\n"}, // daemon of every Debian's /etc/passwd
		{"user and group", []string{"-u", "1234:2"}, []string{"sh", "-c", "id -u; id -g; id -G"}, "1234\n2\n2\n"},
		{"user by name", []string{"-u", "daemon"}, []string{"sh", "-c", "id -un; id -gn"}, "daemon\ndaemon\n"},
		{"user has no capabilities", []string{"-u", "1"}, caps, "0000000000000000\n"},
		{"user cannot write root's", []string{"-u", "1"}, []string{"sh", "-c", "touch /etc/x 2>/dev/null || echo refused"}, "refused\n"},
		{"hostname", []string{"--hostname", "box"}, []string{"sh", "-c", "hostname; cat /etc/hostname"}, "box\nbox\n"},
		{"hostname resolves", []string{"--hostname", "box"}, []string{"sh", "-c", "getent hosts box | sed 's/ .*//'"}, "10.0.2.100\n"},
		{"hostname default", nil, []string{"sh", "-c", "hostname | grep -cE '^[0-9a-f]{12}$'"}, "1\n"},
		{"network none", []string{"--network", "none"}, []string{"sh", "-c", "ls /sys/class/net; grep -c 127.0.0.1 /proc/net/fib_trie | sed 's/[1-9].*/up/'"}, "lo\nup\n"},
		{"network host", []string{"--network", "host"}, []string{"readlink", "/proc/self/ns/net"}, netns + "\n"},
		{"network private", nil, []string{"sh", "-c", "ls /sys/class/net; cat /sys/class/net/tap0/mtu; grep -c 10.0.2.100 /proc/net/fib_trie | sed 's/[1-9].*/up/'"}, "lo\ntap0\n1500\nup\n"},
		{"mtu", []string{"--mtu", "9000"}, []string{"cat", "/sys/class/net/tap0/mtu"}, "9000\n"},
		{"read-only", []string{"--read-only"}, []string{"sh", "-c", "for d in / /etc /var /tmp /root; do touch $d/x 2>/dev/null && echo $d; done; touch /dev/shm/x && echo shm"}, "shm\n"},
		{"not read-only", nil, []string{"sh", "-c", "for d in / /etc /var /tmp /root; do touch $d/x && echo $d; done"}, "/\n/etc\n/var\n/tmp\n/root\n"},
		{"etc can be replaced", nil, []string{"sh", "-c", "echo new >/etc/x && mv /etc/x /etc/passwd && cat /etc/passwd"}, "new\n"},
		{"caps default", nil, caps, dockerCaps + "\n"},
		{"cap-add", []string{"--cap-add", "NET_ADMIN"}, caps, "00000000a80435fb\n"},
		{"cap-add, other spelling", []string{"--cap-add", "cap_net_admin"}, caps, "00000000a80435fb\n"},
		{"cap-add all", []string{"--cap-add", "all"}, caps, allCaps},
		{"cap-drop", []string{"--cap-drop", "CHOWN"}, caps, "00000000a80425fa\n"},
		{"cap-drop all", []string{"--cap-drop", "ALL"}, caps, "0000000000000000\n"},
		{"cap-drop all, add one", []string{"--cap-drop", "all", "--cap-add", "NET_BIND_SERVICE"}, caps, "0000000000000400\n"},
		{"a program's own options", nil, []string{"echo", "-e", "-p", "80"}, "-p 80\n"},
		{"resolv.conf", nil, []string{"grep", "-v", "#", "/etc/resolv.conf"}, "nameserver 10.0.2.3\n"},
		{"resolv.conf in another network", []string{"--cidr", "10.9.8.0/24"}, []string{"grep", "-v", "#", "/etc/resolv.conf"}, "nameserver 10.9.8.3\n"},
		{"host's name", nil, []string{"sh", "-c", "getent hosts host.docker.internal | sed 's/ .*//'"}, "10.0.2.2\n"},
		{"standard input is empty without -i", nil, []string{"wc", "-c"}, "0\n"},
		{"pid 1", nil, []string{"sh", "-c", "echo $$; ls /proc | grep -cE '^[0-9]+$' | sed 's/^[1-4]$/few/'"}, "1\nfew\n"},
		{"descriptors", nil, []string{"sh", "-c", "for f in 0 2 3 4 5 6 7 8 9; do test -e /proc/self/fd/$f && echo $f; done; true"}, "0\n2\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.HasPrefix(tt.name, "user") {
				needsSubIDs(t)
			}
			t.Parallel()
			args := append([]string{"run", "--rm"}, tt.options...)
			p := slipway(t, append(append(args, "host"), tt.command...)...)
			if status := p.wait(); status != 0 {
				t.Errorf("exit status %d", status)
			}
			if got := p.stdout.String(); got != tt.want {
				t.Errorf("printed %q, want %q", got, tt.want)
			}
		})
	}
}

func TestRunStandardInput(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("a line of the caller\n", 100_000)
	cmd := exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "-i", "host", "cat")
	cmd.Stdin = strings.NewReader(text)
	p := start(t, cmd)
	if status := p.wait(); status != 0 || p.stdout.String() != text {
		t.Errorf("cat ended with %d and %d bytes, want 0 and %d", status, len(p.stdout.String()), len(text))
	}
}

func TestRunVolumes(t *testing.T) {
	t.Parallel()
	dir := openDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("host\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	// Whatever the umask of the caller is.
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	script := "cat /w/file; echo inside >>/w/file; echo new >/w/new\n" +
		"{ echo x >>/r/file; touch /r/x; rm /r/file; echo x >/f; } 2>&1 | grep -c 'Read-only file system'\n" +
		"cat /f /mnt/deep/er/file"
	p := slipway(t, "run", "--rm", "-v", dir+":/w", "-v", dir+":/r:ro", "-v", file+":/f:ro", "-v", dir+":/mnt/deep/er", "host", "sh", "-c", script)
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	if got, want := p.stdout.String(), "host\n4\nhost\ninside\nhost\ninside\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	for name, want := range map[string]string{"file": "host\ninside\n", "new": "new\n"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s on the host is %q (%v), want %q", name, b, err, want)
		}
	}
	// What container root has made belongs to an unprivileged user, here and outside.
	out, err := exec.Command("stat", "-c", "%u", filepath.Join(dir, "new")).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got == "0" {
		t.Error("a file that the container made belongs to root")
	}
}

// TestRunShowsNothingElse is the allow-list of the image host: what is not on it is
// not there.
func TestRunShowsNothingElse(t *testing.T) {
	t.Parallel()
	p := slipway(t, "run", "--rm", "host", "sh", "-c", "ls -A / /home /root /tmp /run /mnt | tr '\\n' ' '")
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	allowed := regexp.MustCompile(`^/: ((bin|boot|dev|etc|home|lib|lib32|lib64|libx32|media|mnt|opt|proc|root|run|sbin|srv|sys|tmp|usr|var) )+` +
		` /home:  /mnt:  /root:  /run: ((lock|shm|user) )* /tmp: *$`)
	if got := p.stdout.String(); !allowed.MatchString(got) {
		t.Errorf("the container sees %q", got)
	}
}
