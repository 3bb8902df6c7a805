package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"slipway/netstack/monitor"
	"slipway/runtime/rootfs"
	"slipway/runtime/streams"
)

// Network is what a container is connected to.
type Network string

// The networks there are.
const (
	Private Network = "private" // a network of its own, through Slipway's monitor and engine
	None    Network = "none"    // loopback only
	HostNet Network = "host"    // the caller's network namespace
)

const (
	pathEnv     = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	maxHostname = 64 // HOST_NAME_MAX, gethostname(2)
)

// Docker's exit statuses for a container that does not come to run.
const (
	exitErr  = 125
	exitPerm = 126
	exitNone = 127
)

// ParseNetwork reads the value of --network.
func ParseNetwork(s string) (Network, error) {
	switch n := Network(s); n {
	case Private, None, HostNet:
		return n, nil
	}
	return "", fmt.Errorf("unknown network %q; use private, none or host", s)
}

// Volume is a directory or file of the machine in the container.
type Volume = rootfs.Volume

// ParseVolume reads SOURCE:TARGET[:ro|rw]. The source must exist: making it
// would leave a directory behind that nobody asked for.
func ParseVolume(s string) (Volume, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return Volume{}, fmt.Errorf("volume %q: want SOURCE:TARGET[:ro]", s)
	}
	v := Volume{Source: parts[0], Target: parts[1]}
	if len(parts) == 3 {
		for o := range strings.SplitSeq(parts[2], ",") {
			switch o {
			case "ro":
				v.ReadOnly = true
			case "rw":
			default:
				return Volume{}, fmt.Errorf("volume %q: unknown option %q; there is ro and rw", s, o)
			}
		}
	}
	if !filepath.IsAbs(v.Source) && !strings.HasPrefix(v.Source, ".") {
		return Volume{}, fmt.Errorf("volume %q: %q is no path, and named volumes are not supported yet; begin it with / or ./", s, v.Source)
	}
	if !filepath.IsAbs(v.Target) {
		return Volume{}, fmt.Errorf("volume %q: the target must be an absolute path", s)
	}
	source, err := filepath.Abs(v.Source)
	if err == nil {
		source, err = filepath.EvalSymlinks(source)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return Volume{}, fmt.Errorf("volume %q: %w; run: mkdir -p %s", s, err, v.Source)
	}
	if err != nil {
		return Volume{}, fmt.Errorf("volume %q: %w", s, err)
	}
	v.Source, v.Target = source, filepath.Clean(v.Target)
	return v, nil
}

// HostEntry is a line of the container's /etc/hosts.
type HostEntry struct {
	Addr  netip.Addr
	Names []string
}

// Config describes one container. Image is required; the zero value of the
// rest is what Docker's defaults are.
type Config struct {
	Image    string   // host, dir:PATH or oci:PATH[:TAG]
	Args     []string // command and arguments; empty means the image's own
	Env      []string // NAME=VALUE; NAME alone takes the caller's value
	Workdir  string   // absolute; "" means the image's
	User     string   // user[:group], names or numbers; "" means the image's
	Hostname string   // "" means a random one, or the machine's with Network host
	Volumes  []Volume
	Network  Network
	ReadOnly bool // write-protect the root file system
	CapAdd   []string
	CapDrop  []string

	TTY         bool // give the workload a terminal
	Interactive bool // keep standard input

	DNS   []netip.Addr // name servers of Network private
	Hosts []HostEntry  // added to /etc/hosts
	// Net is the network of Network private, without its namespaces.
	Net *monitor.Config
	// Announce, when not nil, is told what the network came to be.
	Announce func(monitor.Ready)

	Stdin, Stdout, Stderr *os.File
	// Log takes notices: what is less than asked for, and why.
	Log *slog.Logger
}

// environment merges the image's environment with the caller's and fills in
// what Docker does. A name without a value has the caller's, which is for the
// caller to give away and not for an image to take.
func (c Config) environment(image []string, hostname string) []string {
	env := []string{pathEnv, "HOSTNAME=" + hostname}
	if c.TTY {
		env = append(env, "TERM=xterm")
	}
	image = slices.DeleteFunc(slices.Clone(image), func(kv string) bool { return !strings.Contains(kv, "=") })
	for _, kv := range append(image, c.Env...) {
		name, _, ok := strings.Cut(kv, "=")
		if !ok {
			value, set := os.LookupEnv(name)
			if !set {
				continue
			}
			kv = name + "=" + value
		}
		env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		env = append(env, kv)
	}
	return env
}

// check finds what no later step would report as well.
func (c Config) check() error {
	for _, kv := range c.Env {
		if name, _, _ := strings.Cut(kv, "="); name == "" || strings.ContainsRune(kv, 0) {
			return fmt.Errorf("environment variable %q: want NAME=VALUE or NAME", kv)
		}
	}
	if c.Workdir != "" && !filepath.IsAbs(c.Workdir) {
		return fmt.Errorf("working directory %q: must be an absolute path", c.Workdir)
	}
	if len(c.Hostname) > maxHostname || strings.ContainsAny(c.Hostname, " \t\n/") {
		return fmt.Errorf("host name %q: at most %d characters, no blanks", c.Hostname, maxHostname)
	}
	if c.Network == Private && c.Net == nil {
		return errors.New("network private without its configuration")
	}
	if c.TTY && c.Interactive && !isTerminal(c.Stdin) {
		return errors.New("-t with -i: standard input is not a terminal; leave out -t")
	}
	if c.Interactive && c.Stdin != nil {
		return streams.CheckInput(c.Stdin)
	}
	return nil
}
