//go:build e2e && clients

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestClientBuildah builds an image whose RUN steps need the network.
func TestClientBuildah(t *testing.T) {
	needs(t, "buildah", "runc", "newuidmap")
	s := newShim(t, os.Getenv("SLIPWAY_BIN"))
	env := containersEnv(t, s)
	t.Cleanup(func() {
		_, _ = clientTries(t, env, "buildah", "unshare", "rm", "-rf", filepath.Join(value(env, "HOME"), "graph"))
	})
	startResolver(t, clientsHost)
	url, text := page(t)

	dir := shortDir(t)
	if err := os.Rename(rootfs(t), filepath.Join(dir, "rootfs.tar")); err != nil {
		t.Fatal(err)
	}
	containerfile := "FROM scratch\nADD rootfs.tar /\nRUN [\"/bin/ls\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Containerfile"), []byte(containerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := clientTries(t, env, "buildah", "build", "--isolation=rootless", "--network=none", dir); err != nil {
		_, _ = clientTries(t, env, "buildah", "build", "--isolation=rootless", dir)
		if len(s.calls()) == 0 {
			t.Skipf("Buildah calls slirp4netns once its runtime has made a container, which it cannot on this machine: %v", err)
		}
		s.handshake(err.Error(), "-c", "-r ")
	}
	containerfile = fmt.Sprintf("FROM scratch\nADD rootfs.tar /\nENV PATH=/bin:/usr/bin\n"+
		"RUN cat /etc/resolv.conf && nslookup -type=a www.example.com.\nRUN wget -q -O /page %s && cat /page\n", url)
	if err := os.WriteFile(filepath.Join(dir, "Containerfile"), []byte(containerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	version := strings.TrimSpace(clientSays(t, env, "buildah", "--version"))
	did := "RUN steps that ask the resolver and fetch a page"
	for _, network := range []struct {
		options string
		words   []string
	}{
		{"", []string{"--mtu 65520", "-c", "-r 3", "tap0"}},
		{"--network=slirp4netns:cidr=192.168.255.0/24,mtu=2000", []string{"--mtu 2000", "--cidr 192.168.255.0/24", "-c", "-r 3", "tap0"}},
	} {
		args := []string{"build", "--isolation=rootless", "--no-cache"}
		args = append(append(args, strings.Fields(network.options)...), dir)
		out, err := clientTries(t, env, "buildah", args...)
		if err != nil && network.options != "" && strings.Contains(err.Error(), "cannot use networks as rootless") {
			did += "; it does not have " + network.options
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out, text) || !strings.Contains(out, clientsHost) {
			t.Errorf("build %s says\n%s", network.options, out)
		}
		calls := s.calls()
		if len(calls) < 2 {
			t.Fatalf("two RUN steps called slirp4netns %d times", len(calls))
		}
		// Buildah of old writes an option and its value as two words.
		line := strings.ReplaceAll(" "+strings.Join(calls[len(calls)-1].args, " "), "=", " ")
		for _, w := range network.words {
			if !strings.Contains(line, " "+w) {
				t.Errorf("build %s: slirp4netns was called with%s, without %q", network.options, line, w)
			}
		}
	}
	s.over()
	nothingLeft(t, s.path)
	if !t.Failed() {
		ran("%s: %s", version, did)
	}
}
