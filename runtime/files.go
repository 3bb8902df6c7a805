package runtime

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

// hostname is the container's name: as asked, the machine's where its network
// is the machine's, or twelve random digits as Docker's.
func (c Config) hostname() (string, error) {
	switch {
	case c.Hostname != "":
		return c.Hostname, nil
	case c.Network == HostNet:
		return os.Hostname()
	}
	var b [6]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("random host name: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// files generates what an image cannot know, by name below /etc. With the
// caller's network the machine's own files hold; otherwise the machine's
// resolv.conf would be wrong inside: 127.0.0.53 is another loopback there.
func (c Config) files(hostname string) map[string]string {
	f := map[string]string{"hostname": hostname + "\n"}
	if c.Network == HostNet {
		for _, name := range []string{"resolv.conf", "hosts"} {
			// A machine without the file has a container without it.
			if b, err := os.ReadFile("/etc/" + name); err == nil {
				f[name] = string(b)
			}
		}
		return f
	}
	var resolv, hosts strings.Builder
	resolv.WriteString("# made by slipway\n")
	for _, a := range c.DNS {
		fmt.Fprintf(&resolv, "nameserver %s\n", a)
	}
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	own := "127.0.0.1"
	if a := c.guest(); a.IsValid() {
		own = a.String()
	}
	fmt.Fprintf(&hosts, "%s %s\n", own, hostname)
	for _, h := range c.Hosts {
		fmt.Fprintf(&hosts, "%s %s\n", h.Addr, strings.Join(h.Names, " "))
	}
	f["resolv.conf"], f["hosts"] = resolv.String(), hosts.String()
	return f
}
