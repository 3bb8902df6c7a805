// Package doctor says what this machine lacks for rootless containers, why it
// matters, and the command that mends it. What can only be tried in a user
// namespace comes as Findings; the rest is tried here.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"slipway/runtime/rootfs"
)

// Status of a check.
type Status string

// What a check can come to.
const (
	OK   Status = "ok"
	Warn Status = "warn" // something is slower or missing
	Fail Status = "fail" // containers do not start, or have no network
)

// Check is one finding.
type Check struct {
	ID     string `json:"id"`
	Status Status `json:"status"`
	Detail string `json:"detail"`        // what was found
	Why    string `json:"why,omitempty"` // what it means, unless ok
	Fix    string `json:"fix,omitempty"` // what to run, unless ok
}

// Report is all of them.
type Report struct {
	Checks []Check `json:"checks"`
}

// Failed reports whether something needed is missing.
func (r Report) Failed() bool {
	for _, c := range r.Checks {
		if c.Status == Fail {
			return true
		}
	}
	return false
}

// Write prints the report for a person.
func (r Report) Write(w io.Writer) error {
	var b strings.Builder
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-4s  %-8s  %s\n", c.Status, c.ID, c.Detail)
		if c.Why != "" {
			fmt.Fprintf(&b, "                why: %s\n", c.Why)
		}
		if c.Fix != "" {
			fmt.Fprintf(&b, "                fix: %s\n", c.Fix)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Findings are what was tried in a throw-away user namespace. An error is what
// went wrong, nil is success.
type Findings struct {
	Namespaces error  // making the namespaces; nothing else was tried then
	IDs        error  // writing the id maps
	NotTried   bool   // because of IDs, the following were not tried
	Single     string // why only one id could be mapped, "" when there are more
	Mounts     error
	Overlay    error // wraps rootfs.ErrNoUserXattr where only that is missing
	PingInside error // ping_group_range of the container
	TUN        error
	// Offload names the offloads that the device has, OffloadReason says why
	// there are none.
	Offload, OffloadReason string
}

// Machine is where the checks look.
type Machine struct {
	Sysctl     string // /proc/sys
	ResolvConf string // /etc/resolv.conf
	Executable string // slipway's own path
	// Timeout of one DNS query.
	Timeout time.Duration
}

// Here is this machine.
func Here() Machine {
	exe, err := os.Executable()
	if err != nil {
		exe = "/usr/local/bin/slipway"
	}
	return Machine{Sysctl: "/proc/sys", ResolvConf: "/etc/resolv.conf", Executable: exe, Timeout: 2 * time.Second}
}

// Examine makes the report.
func Examine(ctx context.Context, m Machine, f Findings) Report {
	checks := []Check{m.userns(f)}
	if f.Namespaces == nil {
		checks = append(checks, ids(f))
		if !f.NotTried {
			checks = append(checks, tun(f), mounts(f), overlay(f))
		}
	}
	return Report{append(checks, ping(f), m.ports(), m.resolver(ctx))}
}

// userns tells the ways in which a machine forbids user namespaces apart.
func (m Machine) userns(f Findings) Check {
	c := Check{ID: "userns", Status: OK, Detail: "user, mount, pid and network namespaces can be made"}
	restricted := m.sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1"
	// AppArmor lets the namespace be made and takes the capabilities in it away.
	blocked := f.Namespaces
	if blocked == nil && restricted && f.Mounts != nil {
		blocked = f.Mounts
	}
	if blocked == nil {
		return c
	}
	c.Status, c.Detail = Fail, blocked.Error()
	switch {
	case m.sysctl("user/max_user_namespaces") == "0":
		c.Why = "user namespaces are switched off (user.max_user_namespaces is 0); every container needs one"
		c.Fix = "echo user.max_user_namespaces=15000 | sudo tee /etc/sysctl.d/90-userns.conf && sudo sysctl --system"
	case m.sysctl("kernel/unprivileged_userns_clone") == "0" && os.Geteuid() != 0:
		c.Why = "user namespaces are for root only (kernel.unprivileged_userns_clone is 0)"
		c.Fix = "echo kernel.unprivileged_userns_clone=1 | sudo tee /etc/sysctl.d/90-userns.conf && sudo sysctl --system"
	case restricted && os.Geteuid() != 0:
		c.Why = "AppArmor lets only programs with a profile use user namespaces (kernel.apparmor_restrict_unprivileged_userns is 1)"
		c.Fix = fmt.Sprintf(`printf 'abi <abi/4.0>,\ninclude <tunables/global>\nprofile slipway %s flags=(unconfined) {\n  userns,\n}\n' | sudo tee /etc/apparmor.d/slipway && sudo apparmor_parser -r /etc/apparmor.d/slipway`, m.Executable)
	case errors.Is(blocked, unix.ENOSPC):
		c.Why = "the limit of user namespaces is reached"
		c.Fix = "sudo sysctl -w user.max_user_namespaces=15000"
	default:
		c.Why = "every container needs a user namespace; inside another container seccomp or its runtime may forbid it"
		c.Fix = "run slipway on the host, or give the container around it --security-opt seccomp=unconfined"
	}
	return c
}

func ids(f Findings) Check {
	switch {
	case f.IDs != nil:
		return Check{
			ID: "ids", Status: Fail, Detail: f.IDs.Error(),
			Why: "newuidmap and newgidmap refuse the ranges of /etc/subuid and /etc/subgid",
			Fix: "make deps, or: sudo chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap; and see that no two users share a range",
		}
	case f.Single != "":
		reason, fix, _ := strings.Cut(f.Single, "; run: ")
		return Check{
			ID: "ids", Status: Warn, Detail: reason,
			Why: "only user id 0 exists in a container: -u, and images with other users' files, do not work, and supplementary groups stay", Fix: fix,
		}
	}
	return Check{ID: "ids", Status: OK, Detail: "a range of user and group ids can be mapped"}
}

func tun(f Findings) Check {
	if f.TUN == nil && f.OffloadReason == "" {
		return Check{ID: "tun", Status: OK, Detail: "TAP device made, offloads: " + f.Offload}
	}
	if f.TUN == nil {
		return Check{
			ID: "tun", Status: Warn, Detail: "TAP device made, without offloads: " + f.OffloadReason,
			Why: "large transfers are several times slower at MTU 1500", Fix: "use a kernel that offers TUNSETOFFLOAD (any since 2.6.27, not in a sandbox)",
		}
	}
	c := Check{ID: "tun", Status: Fail, Detail: f.TUN.Error(), Why: "a container's private network is a TAP device; --network none and host work without"}
	switch {
	case errors.Is(f.TUN, unix.ENOENT), errors.Is(f.TUN, unix.ENODEV), errors.Is(f.TUN, unix.ENXIO):
		c.Fix = "sudo modprobe tun; in a container, start it with --device /dev/net/tun"
	case errors.Is(f.TUN, unix.EACCES):
		c.Fix = `sudo chmod 0666 /dev/net/tun && echo 'KERNEL=="tun", MODE="0666"' | sudo tee /etc/udev/rules.d/90-tun.rules (this grants nothing by itself: a TAP still needs CAP_NET_ADMIN over its network)`
	case errors.Is(f.TUN, unix.EPERM):
		c.Fix = "the device cgroup of a container around slipway forbids it: start that container with --device /dev/net/tun"
	default:
		c.Fix = "sudo modprobe tun"
	}
	return c
}

func mounts(f Findings) Check {
	if f.Mounts == nil {
		return Check{ID: "mounts", Status: OK, Detail: "proc, tmpfs and mount attributes work in a user namespace"}
	}
	return Check{
		ID: "mounts", Status: Fail, Detail: f.Mounts.Error(),
		Why: "a container's root file system is made of these; Linux 5.12 or newer is needed, and a /proc that is not partly hidden",
		Fix: "use a newer kernel; inside another container: start that one with --security-opt systempaths=unconfined",
	}
}

func overlay(f Findings) Check {
	switch {
	case f.Mounts != nil:
		return Check{ID: "overlay", Status: Fail, Detail: "not tried: mounts do not work", Fix: "see mounts"}
	case f.Overlay == nil:
		return Check{ID: "overlay", Status: OK, Detail: "overlay with user extended attributes on tmpfs works"}
	case errors.Is(f.Overlay, rootfs.ErrNoUserXattr):
		return Check{
			ID: "overlay", Status: Warn, Detail: f.Overlay.Error(),
			Why: "programs that replace whole directories below /etc, /var or of a dir: image get EIO", Fix: "use Linux 6.6 or newer",
		}
	}
	return Check{
		ID: "overlay", Status: Fail, Detail: f.Overlay.Error(),
		Why: "the images host and dir: lie under a writable overlay; oci: works without", Fix: "sudo modprobe overlay (Linux 5.11 or newer)",
	}
}

// ping tries an unprivileged ICMP socket of the machine, by which a container's
// echo requests leave (icmp(7)).
func ping(f Findings) Check {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err == nil {
		unix.Close(fd)
	}
	switch {
	case err != nil:
		return Check{
			ID: "ping", Status: Warn, Detail: fmt.Sprintf("ICMP socket: %v", err), Why: "ping from a container reaches only the gateway",
			Fix: `echo 'net.ipv4.ping_group_range=0 2147483647' | sudo tee /etc/sysctl.d/90-ping.conf && sudo sysctl --system`,
		}
	case f.PingInside != nil:
		return Check{
			ID: "ping", Status: Warn, Detail: fmt.Sprintf("in the container: %v", f.PingInside), Why: "ping in a container needs CAP_NET_RAW",
			Fix: "use --cap-add net_raw, or a machine that lets /proc/sys be written in a network namespace of its own",
		}
	}
	return Check{ID: "ping", Status: OK, Detail: "ICMP echo can be relayed"}
}

// ports tries to bind a low port.
func (m Machine) ports() Check {
	first := 1024
	if n, err := strconv.Atoi(m.sysctl("net/ipv4/ip_unprivileged_port_start")); err == nil {
		first = n
	}
	for port := 1023; port > 1000; port-- {
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		switch {
		case err == nil:
			l.Close()
			return Check{ID: "ports", Status: OK, Detail: "ports below 1024 can be published"}
		case errors.Is(err, unix.EACCES):
			return Check{
				ID: "ports", Status: Warn, Detail: fmt.Sprintf("ports below %d cannot be published", first), Why: "they are root's (net.ipv4.ip_unprivileged_port_start)",
				Fix: "echo net.ipv4.ip_unprivileged_port_start=80 | sudo tee /etc/sysctl.d/90-ports.conf && sudo sysctl --system; or publish a higher port",
			}
		case !errors.Is(err, unix.EADDRINUSE):
			return Check{ID: "ports", Status: Warn, Detail: err.Error(), Why: "listening on 127.0.0.1 failed", Fix: "ip link set lo up"}
		}
	}
	return Check{ID: "ports", Status: OK, Detail: fmt.Sprintf("ports from %d on can be published", first)}
}

// resolver asks each name server of the machine a question.
func (m Machine) resolver(ctx context.Context) Check {
	c := Check{
		ID: "resolver", Status: Warn, Why: "names are looked up in a container by asking these servers",
		Fix: "put a reachable nameserver into /etc/resolv.conf, or mend the one there is",
	}
	b, err := os.ReadFile(m.ResolvConf)
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	var servers []netip.Addr
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil && len(servers) < 3 { // MAXNS, resolver(3)
				servers = append(servers, a)
			}
		}
	}
	if len(servers) == 0 {
		c.Detail = m.ResolvConf + " names no server"
		return c
	}
	results := make(chan error, len(servers))
	for _, a := range servers {
		go func() { results <- ask(ctx, netip.AddrPortFrom(a, 53), m.Timeout) }()
	}
	var last error
	answered := 0
	for range servers {
		if err := <-results; err == nil {
			answered++
		} else {
			last = err
		}
	}
	if answered == 0 {
		c.Detail = fmt.Sprintf("no answer from %v: %v", servers, last)
		return c
	}
	return Check{ID: "resolver", Status: OK, Detail: fmt.Sprintf("%d of %d name servers answer: %v", answered, len(servers), servers)}
}

// ask sends one DNS question for the root's name servers; any answer will do.
func ask(ctx context.Context, server netip.AddrPort, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", server.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 1, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeNS, Class: dnsmessage.ClassINET}},
	}
	packed, err := q.Pack()
	if err != nil {
		return err
	}
	if _, err := conn.Write(packed); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 512))
	return err
}

func (m Machine) sysctl(name string) string {
	b, err := os.ReadFile(m.Sysctl + "/" + name)
	if err != nil {
		return "" // this kernel does not have it
	}
	return strings.TrimSpace(string(b))
}
