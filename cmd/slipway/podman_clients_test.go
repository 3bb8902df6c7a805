//go:build e2e && clients

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// containersEnv is the environment of Podman and Buildah: their configuration names the
// shim, and all that they store is in a directory of the test's.
func containersEnv(t *testing.T, s *shim) []string {
	t.Helper()
	env := clientEnv(t, s)
	home, run := value(env, "HOME"), value(env, "XDG_RUNTIME_DIR")
	for name, text := range map[string]string{
		"containers.conf": fmt.Sprintf("[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n"+
			"network_cmd_path = %q\n[containers]\nlog_driver = \"k8s-file\"\n", s.path),
		// The one storage driver that asks nothing of the kernel.
		"storage.conf": fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n",
			filepath.Join(home, "graph"), filepath.Join(run, "root")),
		".config/containers/policy.json": `{"default":[{"type":"insecureAcceptAnything"}]}`,
	} {
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return append(env, "CONTAINERS_CONF="+filepath.Join(home, "containers.conf"),
		"CONTAINERS_STORAGE_CONF="+filepath.Join(home, "storage.conf"))
}

// pod is a Podman with an image.
type pod struct {
	t    *testing.T
	shim *shim
	env  []string
}

const clientImage = "localhost/busybox"

func newPod(t *testing.T) *pod {
	t.Helper()
	needs(t, "podman", "runc", "conmon", "newuidmap")
	p := &pod{t: t, shim: newShim(t, os.Getenv("SLIPWAY_BIN"))}
	p.env = containersEnv(t, p.shim)
	t.Cleanup(func() {
		// Files of subordinate ids are only their owner's to remove; and a process of Podman's
		// keeps its namespaces.
		_, _ = clientTries(t, p.env, "podman", "system", "reset", "--force")
	})
	clientSays(t, p.env, "podman", "import", rootfs(t), clientImage)
	return p
}

// run runs an agent in a container with options.
func (p *pod) run(t *testing.T, options ...string) *agent {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"run", "--rm", "-i", "-e", helperEnv + "=agent", "-v", exe + ":/e2e:ro"}, options...)
	cmd := exec.Command("podman", append(args, clientImage, "/e2e")...)
	cmd.Env = p.env
	return startAgent(t, cmd)
}

// called checks how the container's slirp4netns was called, and that it is what the
// options say.
func (p *pod) called(t *testing.T, words ...string) {
	t.Helper()
	s := *p.shim
	s.t = t
	c := s.last(words...)
	if n := len(c.args); c.args[n-1] != "tap0" {
		t.Errorf("slirp4netns was called with %v", c.args)
	}
	s.confined(c)
}

func TestClientPodman(t *testing.T) {
	p := newPod(t)
	version := strings.TrimSpace(clientSays(t, p.env, "podman", "--version"))
	startResolver(t, clientsHost)
	if _, err := clientTries(t, p.env, "podman", "run", "--rm", "--network", "none", clientImage, "/bin/ls"); err != nil {
		// Its network is ready before the container is.
		_, _ = clientTries(t, p.env, "podman", "run", "--rm", "--network", "slirp4netns", clientImage, "/bin/ls")
		p.shim.handshake(err.Error(), "--mtu=65520", "-c", "-r ", "--netns-type=path ")
	}

	for _, test := range []struct {
		name    string
		options string   // of --network slirp4netns
		words   []string // in slirp4netns' arguments
		check   func(t *testing.T, a *agent)
	}{
		{"plain", "", []string{"--disable-host-loopback", "--mtu=65520", "--enable-sandbox", "--enable-seccomp", "--enable-ipv6", "-c", "--netns-type=path "}, podmanPlain},
		{"mtu", "mtu=9000", []string{"--mtu=9000"}, func(t *testing.T, a *agent) {
			if got := a.do("interface", "tap0"); !strings.HasPrefix(got, "9000 10.0.2.100/24") {
				t.Errorf("tap0 is %s", got)
			}
			reachesOut(t, a, resolver)
		}},
		{"cidr and allow_host_loopback", "cidr=10.9.8.0/24,allow_host_loopback=true", []string{"--mtu=65520", "--cidr=10.9.8.0/24"}, func(t *testing.T, a *agent) {
			if got := a.do("interface", "tap0"); !strings.HasPrefix(got, "65520 10.9.8.100/24") {
				t.Errorf("tap0 is %s", got)
			}
			reachesOut(t, a, "10.9.8.3")
			hasResolver(t, a)
			port := hostAnswer(t, "127.0.0.1")
			for _, network := range []string{"tcp", "udp"} {
				if said := a.do("hear", network, at("10.9.8.2", port)); from(said) != "127.0.0.1" {
					t.Errorf("the host's loopback sees %q by %s", said, network)
				}
			}
		}},
		{"enable_ipv6=true", "enable_ipv6=true", []string{"--enable-ipv6"}, podmanIPv6},
		{"enable_ipv6=false", "enable_ipv6=false", nil, func(t *testing.T, a *agent) {
			if got := a.do("interface", "tap0"); strings.Contains(got, "fd00::") {
				t.Errorf("tap0 is %s without IPv6", got)
			}
		}},
		{"outbound_addr", "outbound_addr=" + clientsOther, []string{"--outbound-addr=" + clientsOther}, func(t *testing.T, a *agent) {
			podmanFrom(t, a, clientsOther)
		}},
		{"outbound_addr of an interface", "outbound_addr=" + clientsCard, []string{"--outbound-addr=" + clientsCard}, func(t *testing.T, a *agent) {
			podmanFrom(t, a, clientsHost)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			network := "slirp4netns"
			if test.options != "" {
				network += ":" + test.options
			}
			a := p.run(t, "--network", network)
			p.called(t, test.words...)
			test.check(t, a)
			a.end()
		})
	}
	for _, handler := range []string{"rootlesskit", "slirp4netns"} {
		t.Run("port_handler="+handler, func(t *testing.T) { p.ports(t, handler) })
	}
	t.Run("bridge", p.bridge)
	p.shim.over()
	nothingLeft(t, p.shim.path, "rootlessport", "conmon")
	if !t.Failed() {
		ran("%s: --network slirp4netns with mtu, cidr, allow_host_loopback, enable_ipv6, outbound_addr, both port handlers; two containers of a bridge", version)
	}
}

// bridge is a network of Podman's own, of which all of a user's containers share one
// slirp4netns: it has no exit descriptor, and Podman kills it by its pid file after the
// last container.
func (p *pod) bridge(t *testing.T) {
	if found, _ := filepath.Glob("/usr/lib*/podman/netavark"); len(found) == 0 {
		t.Skip("bridges of Podman need netavark")
	}
	const network = "clients"
	clientSays(t, p.env, "podman", "network", "create", "--disable-dns", network)
	port := freeTCP(t)
	first := p.run(t, "--network", network, "-p", strconv.Itoa(port)+":8000")
	p.called(t, "--mtu=65520", "-c", "-r ", "tap0")
	calls := len(p.shim.calls())
	second := p.run(t, "--network", network)
	if got := len(p.shim.calls()); got != calls {
		t.Errorf("a second container of the network called slirp4netns %d times more", got-calls)
	}
	for _, a := range []*agent{first, second} {
		reachesOut(t, a, resolver)
		hasResolver(t, a)
	}
	first.do("answer", 8000)
	published(t, "tcp", at(clientsHost, port))
	first.end()
	// It was a child of the first container's Podman, and has to outlive it. What the second
	// one still reaches is not asked: netavark 1.4 sometimes takes its rules away as well.
	p.called(t, "tap0")
	second.end()
	p.shim.over()
}

func podmanPlain(t *testing.T, a *agent) {
	if got := a.do("interface", "tap0"); !strings.HasPrefix(got, "65520 10.0.2.100/24") {
		t.Errorf("tap0 is %s", got)
	}
	reachesOut(t, a, resolver)
	hasResolver(t, a)
	if r := a.try("hear", "tcp", at(gateway4, hostAnswer(t, "127.0.0.1"))); !strings.Contains(r.Err, "network is unreachable") {
		t.Errorf("the host's loopback, which is not allowed, answers %+v", r)
	}
}

// podmanIPv6: Podman sees to it that no duplicate address detection keeps a container
// waiting; its own tests want the address at once.
func podmanIPv6(t *testing.T, a *agent) {
	if got := a.do("interface", "tap0"); !strings.Contains(got, " fd00::") {
		t.Errorf("at its start the container's tap0 is %s, without an address of fd00::/64", got)
	}
	port := hostAnswer(t, clientsHost6)
	for _, network := range []string{"tcp", "udp"} {
		if said := a.do("hear", network, at(clientsHost6, port)); from(said) != clientsHost6 {
			t.Errorf("by IPv6 the host sees %q by %s", said, network)
		}
	}
}

// podmanFrom checks that the host sees the container as source.
func podmanFrom(t *testing.T, a *agent, source string) {
	t.Helper()
	port := hostAnswer(t, clientsHost)
	for _, network := range []string{"tcp", "udp"} {
		if said := a.do("hear", network, at(clientsHost, port)); from(said) != source {
			t.Errorf("the host sees %q by %s, not %s", said, network, source)
		}
	}
}

func (p *pod) ports(t *testing.T, handler string) {
	first := freePorts(t, 3)
	port := strconv.Itoa
	a := p.run(t, "--network", "slirp4netns:allow_host_loopback=true,port_handler="+handler,
		"-p", port(first)+":8000", "-p", port(first)+":8000/udp", "-p", port(first+1)+"-"+port(first+2)+":8001-8002")
	words := []string{"--mtu=65520", "-c"}
	if handler == "slirp4netns" {
		words = append(words, "--api-socket ")
	}
	p.called(t, words...)
	for _, inside := range []int{8000, 8001, 8002} {
		a.do("answer", inside)
	}
	for _, network := range []string{"tcp", "udp"} {
		for i, client := range portClients {
			if network == "udp" && i == 2 && handler == "slirp4netns" && isUpstream(t) {
				continue
			}
			// The handler of RootlessKit connects anew.
			if seen := published(t, network, at(client.host, first)); seen != client.seen && handler == "slirp4netns" {
				t.Errorf("%s to %s: the container sees %s, not %s", network, client.host, seen, client.seen)
			}
		}
	}
	for i := 1; i < 3; i++ {
		published(t, "tcp", at(clientsHost, first+i))
	}
	a.end()
	if said, _, err := hear("tcp", "", at(clientsHost, first)); err == nil && said != "" {
		t.Errorf("the container is gone and its port answers %q", said)
	}
}
