//go:build e2e && clients

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const (
	// dockerRatio is how many times as fast as Debian's slirp4netns Slipway has to carry a
	// container's stream to the host, under the same dockerd in the same run: Docker's
	// bridge is MTU 1500, and a frame of that size costs slirp4netns a system call.
	dockerRatio = 12
	// dockerRounds is how many streams each carries, in turns.
	dockerRounds = 5
)

// A rootlessDocker is dockerd under RootlessKit, as dockerd-rootless.sh starts it.
type rootlessDocker struct {
	t    *testing.T
	shim *shim
	env  []string
	kit  *process // RootlessKit
}

// newDocker starts it on program, with more in the environment of its script.
func newDocker(t *testing.T, program string, more ...string) *rootlessDocker {
	t.Helper()
	needs(t, "docker", "dockerd", "containerd", "runc", "rootlesskit", "iptables", "newuidmap")
	script := ""
	// The second is where Debian keeps it.
	for _, name := range []string{"dockerd-rootless.sh", "/usr/share/docker.io/contrib/dockerd-rootless.sh"} {
		if p, err := exec.LookPath(name); err == nil {
			script = p
			break
		}
	}
	if script == "" {
		t.Skip("no dockerd-rootless.sh on this machine")
	}
	d := &rootlessDocker{t: t, shim: newShim(t, program)}
	d.env = clientEnv(t, d.shim)
	run, home := value(d.env, "XDG_RUNTIME_DIR"), value(d.env, "HOME")
	socket := filepath.Join(run, "docker.sock")
	d.env = append(d.env, "DOCKER_HOST=unix://"+socket)
	t.Cleanup(func() {
		// What containers and dockerd have made belongs to subordinate ids.
		_, _ = clientTries(t, d.env, "rootlesskit", "rm", "-rf", filepath.Join(home, "docker"))
	})
	// The storage driver is the one that asks nothing of the kernel.
	cmd := exec.Command("sh", script, "--log-level=warn", "--storage-driver=vfs", "--data-root="+filepath.Join(home, "docker"))
	cmd.Env = append(d.env, "DOCKERD_ROOTLESS_ROOTLESSKIT_SLIRP4NETNS_SANDBOX=auto", "DOCKERD_ROOTLESS_ROOTLESSKIT_SLIRP4NETNS_SECCOMP=auto")
	cmd.Env = append(cmd.Env, more...)
	d.kit = start(t, cmd)
	eventually(t, 3*patience, "dockerd", func() bool {
		select {
		case <-d.kit.done:
			log := d.kit.stdout.String() + d.kit.stderr.String()
			if !strings.Contains(log, "+ exec dockerd") {
				t.Fatal("dockerd-rootless.sh ended before dockerd began")
			}
			d.inPlaceOfDockerd(script, log)
		default:
		}
		_, err := clientTries(t, d.env, "docker", "version")
		return err == nil
	})
	return d
}

// inPlaceOfDockerd is for a machine on which dockerd itself ends: the script runs once
// more, with an agent by the name of dockerd.
func (d *rootlessDocker) inPlaceOfDockerd(script, log string) {
	d.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(filepath.Dir(d.shim.path), "dockerd")); err != nil {
		d.t.Fatal(err)
	}
	startResolver(d.t, clientsHost)
	cmd := exec.Command("sh", script)
	cmd.Env = append(d.kit.Env, helperEnv+"=agent")
	a := startAgent(d.t, cmd)
	d.shim.confined(d.shim.last("--mtu 65520", "-r 3", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp"))
	reachesOut(d.t, a, resolver)
	hasResolver(d.t, a)
	a.end()
	// RootlessKit has the last words, about the exit status.
	log, _, _ = strings.Cut(log, "[rootlesskit:")
	d.shim.handshake(log)
}

func (d *rootlessDocker) docker(args ...string) string {
	d.t.Helper()
	return strings.TrimSpace(clientSays(d.t, d.env, "docker", args...))
}

// end ends dockerd, and with it RootlessKit, as systemd's unit for it does.
func (d *rootlessDocker) end() {
	d.t.Helper()
	dockerd := find(d.t, d.kit.Process.Pid, "dockerd", func(line string) bool { return strings.HasPrefix(line, "dockerd ") })
	if err := syscall.Kill(dockerd, syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	if status := d.kit.wait(); status != 0 {
		d.t.Errorf("dockerd ended with status %d", status)
	}
	d.shim.over()
	nothingLeft(d.t, d.shim.path, value(d.env, "XDG_RUNTIME_DIR"))
}

func TestClientDocker(t *testing.T) {
	var version string
	t.Run("flow", func(t *testing.T) {
		d := newDocker(t, os.Getenv("SLIPWAY_BIN"))
		version = d.docker("version", "--format", "Docker {{.Server.Version}}")
		startResolver(t, clientsHost)
		d.image()
		c := d.shim.last("--mtu 65520", "-r 3", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp")
		d.shim.confined(c)
		d.web()
		d.outwards()
		d.end()
		nothingLeft(t, "containerd")
	})
	t.Run("port driver slirp4netns", func(t *testing.T) {
		d := newDocker(t, os.Getenv("SLIPWAY_BIN"), "DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER=slirp4netns")
		d.image()
		d.shim.last("--mtu 65520", "-r 3", "--disable-host-loopback", "--api-socket ", "--enable-sandbox", "--enable-seccomp")
		d.web()
		d.end()
		nothingLeft(t, "containerd")
	})
	if t.Failed() || version == "" {
		return
	}
	ran("%s: run -d -p with both port drivers, the page from the host, DNS, TCP and UDP outwards", version)
	t.Run("speed", func(t *testing.T) { dockerSpeeds(t, version) })
}

// dockerSpeeds compares what iperf3 in a container reaches on the program under test with
// what it reaches on the machine's own slirp4netns, if that is another.
func dockerSpeeds(t *testing.T, version string) {
	programs := []string{os.Getenv("SLIPWAY_BIN")}
	if other := os.Getenv("SLIPWAY_CLIENTS_REFERENCE"); other != "" && !isUpstream(t) {
		programs = append(programs, other)
	}
	port := strconv.Itoa(iperf3Server(t))
	var daemons []*rootlessDocker
	for _, p := range programs {
		d := newDocker(t, p)
		d.image()
		daemons = append(daemons, d)
	}
	toHost := make([][]float64, len(daemons))
	for range dockerRounds {
		for i, d := range daemons {
			toHost[i] = append(toHost[i], d.stream(clientsHost, "--port", port))
		}
	}
	for i, d := range daemons {
		name := "Slipway"
		if i > 0 || isUpstream(t) {
			name = "the machine's own slirp4netns"
		}
		ran("%s on %s: iperf3 container to host %.2f Gbit/s (median of %d), container to container %.2f Gbit/s",
			version, name, median(toHost[i]), dockerRounds, d.betweenContainers())
	}
	for _, d := range daemons {
		d.end()
	}
	nothingLeft(t, "containerd")
	if len(daemons) == 1 {
		return
	}
	ratio := median(toHost[0]) / median(toHost[1])
	ran("%s: container to host is %.1f times what it is on the machine's own slirp4netns", version, ratio)
	if ratio < dockerRatio {
		t.Errorf("container to host is %.1f times what it is on the machine's own slirp4netns, not %d times: %.2f and %.2f Gbit/s in turns", ratio, dockerRatio, toHost[0], toHost[1])
	}
}

func (d *rootlessDocker) image() {
	d.t.Helper()
	d.docker("import", rootfs(d.t), clientImage)
}

// web is the flow with which people try a rootless Docker.
func (d *rootlessDocker) web() {
	d.t.Helper()
	port := freeTCP(d.t)
	id := d.docker("run", "-d", "-p", strconv.Itoa(port)+":80", clientImage, "/bin/httpd", "-f", "-p", "80", "-h", "/www")
	for _, host := range []string{"127.0.0.1", clientsHost} {
		if got := fetched(d.t, "http://"+at(host, port)+"/"); got != "a page of the container\n" {
			d.t.Errorf("the page from %s is %q", host, got)
		}
	}
	d.docker("rm", "-f", id)
}

func (d *rootlessDocker) outwards() {
	d.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command("docker", "run", "--rm", "-i", "-e", helperEnv+"=agent", "-v", exe+":/e2e:ro", clientImage, "/e2e")
	cmd.Env = d.env
	a := startAgent(d.t, cmd)
	reachesOut(d.t, a, resolver)
	hasResolver(d.t, a)
	a.end()
}

// stream is what iperf3 in a container reaches towards addr, in Gbit/s.
func (d *rootlessDocker) stream(addr string, options ...string) float64 {
	d.t.Helper()
	args := append([]string{"run", "--rm", clientImage, "/usr/bin/iperf3", "--json", "--time", "2", "--client", addr}, options...)
	return gbits(d.t, d.docker(args...))
}

// betweenContainers is what it reaches towards another container.
func (d *rootlessDocker) betweenContainers() float64 {
	d.t.Helper()
	id := d.docker("run", "-d", clientImage, "/usr/bin/iperf3", "--server", "--forceflush")
	eventually(d.t, patience, "iperf3 in a container", func() bool { return strings.Contains(d.docker("logs", id), "listening") })
	rate := d.stream(d.docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", id))
	d.docker("rm", "-f", id)
	return rate
}
