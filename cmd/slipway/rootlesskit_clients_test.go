//go:build e2e && clients

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// kit is one run of RootlessKit, with an agent as the program inside.
type kit struct {
	*agent
	shim  *shim
	state string // RootlessKit's state directory
}

// newKit starts program, which is RootlessKit, with an agent in its namespaces.
func newKit(t *testing.T, program string, options, inside []string) *kit {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	k := &kit{shim: newShim(t, os.Getenv("SLIPWAY_BIN")), state: filepath.Join(shortDir(t), "s")}
	args := append([]string{"--state-dir", k.state, "--net=slirp4netns", "--slirp4netns-binary=" + k.shim.path,
		"--copy-up=/etc"}, options...)
	args = append(append(args, inside...), exe)
	cmd := exec.Command(program, args...)
	cmd.Env = clientEnv(t, k.shim, helperEnv+"=agent")
	k.agent = startAgent(t, cmd)
	return k
}

// leave ends RootlessKit and checks that nothing of it is left.
func (k *kit) leave() {
	k.t.Helper()
	k.end()
	k.shim.over()
	nothingLeft(k.t, k.state, k.shim.path)
}

// TestClientRootlessKit is what dockerd-rootless.sh, containerd-rootless.sh, BuildKit and
// k3s stand on. The distribution's version and, where it could be built, version 3.
func TestClientRootlessKit(t *testing.T) {
	for _, name := range []string{"rootlesskit", "rootlesskit3"} {
		t.Run(name, func(t *testing.T) {
			program := needs(t, name, "ip", "nsenter", "newuidmap")
			for _, driver := range []string{"builtin", "slirp4netns"} {
				t.Run("port-driver="+driver, func(t *testing.T) { kitPorts(t, program, driver) })
			}
			t.Run("ipv6", func(t *testing.T) { kitIPv6(t, program) })
			t.Run("cidr", func(t *testing.T) { kitCIDR(t, program) })
			t.Run("detach-netns", func(t *testing.T) { kitDetached(t, program) })
			if !t.Failed() {
				ran("%s: port drivers builtin and slirp4netns, sandbox and seccomp, --ipv6, --cidr", kitVersion(t, program))
			}
		})
	}
}

func kitVersion(t *testing.T, program string) string {
	t.Helper()
	return strings.TrimSpace(clientSays(t, os.Environ(), program, "--version"))
}

// confinement are the options of RootlessKit as dockerd-rootless.sh gives them.
var confinement = []string{"--mtu=65520", "--disable-host-loopback", "--slirp4netns-sandbox=auto", "--slirp4netns-seccomp=auto"}

func kitPorts(t *testing.T, program, driver string) {
	startResolver(t, clientsHost)
	first := freePorts(t, 2)
	k := newKit(t, program, append([]string{"--port-driver=" + driver,
		"-p", "0.0.0.0:" + strconv.Itoa(first) + ":8000/tcp", "-p", "0.0.0.0:" + strconv.Itoa(first) + ":8000/udp"}, confinement...), nil)
	words := []string{"--mtu 65520", "-r 3", "--disable-host-loopback"}
	if driver == "slirp4netns" {
		words = append(words, "--api-socket "+filepath.Join(k.state, ".s4nn.sock"))
	}
	c := k.shim.last(append(words, "--enable-sandbox", "--enable-seccomp")...)
	if n := len(c.args); c.args[n-1] != "tap0" {
		t.Errorf("slirp4netns was called with %v", c.args)
	}
	k.shim.confined(c)

	if got := k.do("interface", "tap0"); !strings.HasPrefix(got, "65520 10.0.2.100/24") {
		t.Errorf("tap0 is %s", got)
	}
	reachesOut(t, k.agent, resolver)
	hasResolver(t, k.agent)
	if r := k.try("hear", "tcp", at(gateway4, hostAnswer(t, "127.0.0.1"))); !strings.Contains(r.Err, "network is unreachable") {
		t.Errorf("the host's loopback, which is disabled, answers %+v", r)
	}

	k.do("answer", 8000)
	for _, network := range []string{"tcp", "udp"} {
		for _, client := range portClients {
			if network == "udp" && client.seen == gateway4 && driver == "slirp4netns" && isUpstream(t) {
				continue // its replies to loopback clients are lost with --disable-host-loopback: podman#4586
			}
			// The built-in driver of old connects anew, from wherever it likes.
			if seen := published(t, network, at(client.host, first)); seen != client.seen && driver == "slirp4netns" {
				t.Errorf("%s to %s: the program inside sees %s, not %s", network, client.host, seen, client.seen)
			}
		}
	}
	if ctl := "rootlessctl"; driver == "slirp4netns" && filepath.Base(program) == "rootlesskit" {
		kitControl(t, k, needs(t, ctl))
	}
	k.leave()
}

// kitControl adds a port to a running RootlessKit and takes it away.
func kitControl(t *testing.T, k *kit, ctl string) {
	t.Helper()
	port := freeTCP(t)
	socket := "--socket=" + filepath.Join(k.state, "api.sock")
	id := strings.TrimSpace(clientSays(t, os.Environ(), ctl, socket, "add-ports", "0.0.0.0:"+strconv.Itoa(port)+":8000/tcp"))
	published(t, "tcp", at(clientsHost, port))
	clientSays(t, os.Environ(), ctl, socket, "remove-ports", id)
	if said, _, err := hear("tcp", "", at(clientsHost, port)); err == nil && said != "" {
		t.Errorf("port %d was taken away and answers %q", port, said)
	}
}

func kitIPv6(t *testing.T, program string) {
	startResolver(t, clientsHost)
	k := newKit(t, program, append([]string{"--ipv6"}, confinement...), nil)
	k.shim.last("--mtu 65520", "-r 3", "--enable-sandbox", "--enable-seccomp", "--enable-ipv6")
	reachesOut(t, k.agent, resolver)
	eventually(t, patience, "an address of fd00::/64", func() bool { return strings.Contains(k.do("interface", "tap0"), " fd00::") })
	port := hostAnswer(t, clientsHost6)
	for _, network := range []string{"tcp", "udp"} {
		if said := k.do("hear", network, at(clientsHost6, port)); from(said) != clientsHost6 {
			t.Errorf("by IPv6 the host sees %q by %s", said, network)
		}
	}
	k.leave()
}

// kitCIDR is how k3s --rootless calls it: a /16, no sandbox, no seccomp.
func kitCIDR(t *testing.T, program string) {
	startResolver(t, clientsHost)
	k := newKit(t, program, []string{"--cidr=10.41.0.0/16", "--disable-host-loopback", "--port-driver=builtin"}, nil)
	k.shim.last("--mtu 65520", "-r 3", "--disable-host-loopback", "--cidr 10.41.0.0/16")
	if got := k.do("interface", "tap0"); !strings.HasPrefix(got, "65520 10.41.0.100/16") {
		t.Errorf("tap0 is %s", got)
	}
	reachesOut(t, k.agent, "10.41.0.3")
	hasResolver(t, k.agent)
	k.leave()
}

func kitDetached(t *testing.T, program string) {
	if !strings.Contains(clientSays(t, os.Environ(), program, "--help"), "--detach-netns") {
		t.Skipf("%s has no --detach-netns", kitVersion(t, program))
	}
	startResolver(t, clientsHost)
	port := freeTCP(t)
	k := newKit(t, program, append([]string{"--detach-netns", "--port-driver=builtin", "-p", "127.0.0.1:" + strconv.Itoa(port) + ":8000/tcp"},
		confinement...), []string{"sh", "-c", `exec nsenter --net="$ROOTLESSKIT_STATE_DIR/netns" -- "$0"`})
	k.shim.last("--mtu 65520", "-r 3", "--userns-path=/proc/", "--netns-type=path /proc/", "tap0")
	reachesOut(t, k.agent, resolver)
	k.do("answer", 8000)
	published(t, "tcp", at("127.0.0.1", port))
	k.leave()
	ran("%s: --detach-netns", kitVersion(t, program))
}
