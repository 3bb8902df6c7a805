package slirp4netns

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// parsed is what became of a command line.
type parsed struct {
	opts           Options
	exit           Exit
	ends           bool
	stdout, stderr string
}

func parseWords(t *testing.T, args ...string) parsed {
	t.Helper()
	var stdout, stderr bytes.Buffer
	p := Program{Name: "s4", Version: "v0.2.0", Commit: strings.Repeat("ab", 20), Stdout: &stdout, Stderr: &stderr}
	opts, err := p.Parse(args)
	r := parsed{opts: opts, stdout: stdout.String(), stderr: stderr.String()}
	if err != nil {
		if !errors.As(err, &r.exit) {
			t.Fatalf("Parse returned %T, want an Exit", err)
		}
		r.ends = true
	}
	return r
}

// defaults are the options of `s4 42 tap0`.
func defaults() Options {
	return Options{Kind: KindPID, PID: 42, TapName: "tap0", ExitFD: -1, ReadyFD: -1, MTU: 1500,
		Network: netip.MustParsePrefix("10.0.2.0/24")}
}

func with(change func(*Options)) Options {
	o := defaults()
	change(&o)
	return o
}

func TestOptions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const (
		ipv6Warning    = "WARNING: Support for IPv6 is experimental\n"
		seccompWarning = "WARNING: Support for seccomp is experimental\n"
		outWarning     = "WARNING: Support for --outbound-addr is experimental\n"
		out6Warning    = "WARNING: Support for --outbound-addr6 is experimental\n"
		manyWarning    = "WARNING: too many arguments\n"
	)
	for _, tt := range []struct {
		name   string
		args   []string
		want   Options
		stdout string
	}{
		{"defaults", []string{"42", "tap0"}, defaults(), ""},
		{"-c", []string{"-c", "42", "tap0"}, with(func(o *Options) { o.Configure = true }), ""},
		{"--configure", []string{"--configure", "42", "tap0"}, with(func(o *Options) { o.Configure = true }), ""},
		{"-e", []string{"-e", "3", "42", "tap0"}, with(func(o *Options) { o.ExitFD = 3 }), ""},
		{"--exit-fd", []string{"--exit-fd=4", "42", "tap0"}, with(func(o *Options) { o.ExitFD = 4 }), ""},
		{"-r", []string{"-r3", "42", "tap0"}, with(func(o *Options) { o.ReadyFD = 3 }), ""},
		{"--ready-fd", []string{"--ready-fd", "0", "42", "tap0"}, with(func(o *Options) { o.ReadyFD = 0 }), ""},
		{"empty word is 0", []string{"-r", "", "-e", "", "42", "tap0"}, with(func(o *Options) { o.ReadyFD, o.ExitFD = 0, 0 }), ""},
		{"-m", []string{"-m", "65520", "42", "tap0"}, with(func(o *Options) { o.MTU = 65520 }), ""},
		{"--mtu lowest", []string{"--mtu=1", "42", "tap0"}, with(func(o *Options) { o.MTU = 1 }), ""},
		{"--mtu highest", []string{"--mtu=65521", "42", "tap0"}, with(func(o *Options) { o.MTU = 65521 }), ""},
		{"--mtu with blank and sign", []string{"--mtu= +1600", "42", "tap0"}, with(func(o *Options) { o.MTU = 1600 }), ""},
		{"-6", []string{"-6", "42", "tap0"}, with(func(o *Options) { o.EnableIPv6 = true }), ipv6Warning},
		{"--enable-ipv6", []string{"--enable-ipv6", "42", "tap0"}, with(func(o *Options) { o.EnableIPv6 = true }), ipv6Warning},
		{"-a", []string{"-a", "/a b", "42", "tap0"}, with(func(o *Options) { o.APISocket = "/a b" }), ""},
		{"--api-socket", []string{"--api-socket=x", "42", "tap0"}, with(func(o *Options) { o.APISocket = "x" }), ""},
		{"--cidr", []string{"--cidr=10.0.135.128/25", "42", "tap0"},
			with(func(o *Options) { o.Network = netip.MustParsePrefix("10.0.135.128/25") }), ""},
		{"--disable-host-loopback", []string{"--disable-host-loopback", "42", "tap0"},
			with(func(o *Options) { o.DisableHostLoopback = true }), ""},
		{"--no-host-loopback", []string{"--no-host-loopback", "42", "tap0"}, with(func(o *Options) { o.DisableHostLoopback = true }),
			"WARNING: --no-host-loopback is deprecated and will be removed in future releases, please use --disable-host-loopback instead.\n"},
		{"--netns-type=pid", []string{"--netns-type=pid", "42", "tap0"}, defaults(), ""},
		{"--netns-type=path", []string{"--netns-type=path", path, "tap0"},
			with(func(o *Options) { o.Kind, o.PID, o.NetnsPath = KindPath, 0, path }), ""},
		{"--netns-type of any other name", []string{"--netns-type=bogus", path, "tap0"},
			with(func(o *Options) { o.Kind, o.PID, o.NetnsPath = KindPath, 0, path }), ""},
		{"--netns-type=tapfd", []string{"--netns-type=tapfd", "7"},
			with(func(o *Options) { o.Kind, o.PID, o.TapFD, o.TapName = KindTapFD, 0, 7, "" }), ""},
		{"--netns-type=tapfd with a name", []string{"--netns-type=tapfd", "7", "tap0"},
			with(func(o *Options) { o.Kind, o.PID, o.TapFD, o.TapName = KindTapFD, 0, 7, "" }), manyWarning},
		{"--userns-path", []string{"--userns-path", path, "42", "tap0"}, with(func(o *Options) { o.UsernsPath = path }), ""},
		{"--enable-sandbox", []string{"--enable-sandbox", "42", "tap0"}, with(func(o *Options) { o.EnableSandbox = true }), ""},
		{"--create-sandbox", []string{"--create-sandbox", "42", "tap0"}, with(func(o *Options) { o.EnableSandbox = true }),
			"WARNING: --create-sandbox is deprecated and will be removed in future releases, please use --enable-sandbox instead.\n"},
		{"--enable-seccomp", []string{"--enable-seccomp", "42", "tap0"}, with(func(o *Options) { o.EnableSeccomp = true }), seccompWarning},
		{"--outbound-addr", []string{"--outbound-addr=192.0.2.1", "42", "tap0"},
			with(func(o *Options) { o.OutboundAddr = netip.MustParseAddr("192.0.2.1") }), outWarning},
		{"--outbound-addr of an interface", []string{"--outbound-addr=lo", "42", "tap0"},
			with(func(o *Options) { o.OutboundAddr = netip.MustParseAddr("127.0.0.1") }), outWarning},
		{"--outbound-addr6", []string{"--outbound-addr6=2001:db8::1", "42", "tap0"},
			with(func(o *Options) { o.OutboundAddr6 = netip.MustParseAddr("2001:db8::1") }), out6Warning},
		{"--disable-dns", []string{"--disable-dns", "42", "tap0"}, with(func(o *Options) { o.DisableDNS = true }), ""},
		{"--macaddress", []string{"-c", "--macaddress=02:00:5E:00:53:01", "42", "tap0"},
			with(func(o *Options) { o.Configure, o.MAC = true, net.HardwareAddr{2, 0, 0x5e, 0, 0x53, 1} }), ""},
		{"--macaddress of fewer bytes", []string{"-c", "--macaddress=2:0:5e", "42", "tap0"},
			with(func(o *Options) { o.Configure, o.MAC = true, net.HardwareAddr{2, 0, 0x5e, 0, 0, 0} }), ""},
		{"--target-type=netns", []string{"--target-type=netns", "42", "tap0"}, defaults(), ""},
		{"too many operands", []string{"42", "tap0", "x", "y"}, defaults(), manyWarning},
		{"long name of a device", []string{"42", "0123456789abcdefgh"}, with(func(o *Options) { o.TapName = "0123456789abcde" }), ""},

		{"options after operands", []string{"-c", "42", "--api-socket", "X", "tap0", "-m", "1600"},
			with(func(o *Options) { o.Configure, o.APISocket, o.MTU = true, "X", 1600 }), ""},
		{"bundled", []string{"-c6m1600", "42", "tap0"}, with(func(o *Options) { o.Configure, o.EnableIPv6, o.MTU = true, true, 1600 }), ipv6Warning},
		{"bundled, argument apart", []string{"-cm", "1600", "42", "tap0"}, with(func(o *Options) { o.Configure, o.MTU = true, 1600 }), ""},
		{"abbreviated", []string{"--conf", "--disable-host", "--mt=1600", "--api", "X", "42", "tap0"},
			with(func(o *Options) { o.Configure, o.DisableHostLoopback, o.MTU, o.APISocket = true, true, 1600, "X" }), ""},
		{"the last wins", []string{"-m1", "--mtu=2", "-r3", "-r", "4", "42", "tap0"}, with(func(o *Options) { o.MTU, o.ReadyFD = 2, 4 }), ""},
		{"argument that looks like an option", []string{"-a", "-c", "--api-socket", "--", "42", "tap0"},
			with(func(o *Options) { o.APISocket = "--" }), ""},
		{"-- ends options", []string{"-c", "--", "42", "-m"}, with(func(o *Options) { o.Configure, o.TapName = true, "-m" }), ""},
		{"- is an operand", []string{"42", "-"}, with(func(o *Options) { o.TapName = "-" }), ""},
		{"every operand after --", []string{"42", "--", "--", "-c"}, with(func(o *Options) { o.TapName = "--" }), manyWarning},
		{"empty value", []string{"--api-socket=", "42", "tap0"}, defaults(), ""},
		{"value with =", []string{"--api-socket=a=b", "42", "tap0"}, with(func(o *Options) { o.APISocket = "a=b" }), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := parseWords(t, tt.args...)
			if got.ends {
				t.Fatalf("Parse: %v\n%s%s", got.exit, got.stdout, got.stderr)
			}
			if diff := cmp.Diff(tt.want, got.opts, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
			if got.stdout != tt.stdout || got.stderr != "" {
				t.Errorf("stdout %q, stderr %q; want stdout %q only", got.stdout, got.stderr, tt.stdout)
			}
		})
	}
}

// TestOutboundInterface6: upstream looks for the interface under the name that
// --outbound-addr gives.
func TestOutboundInterface6(t *testing.T) {
	want := ipv6.ofInterface("lo")
	if !want.IsValid() {
		t.Skip("lo has no IPv6 address")
	}
	got := parseWords(t, "--outbound-addr6=lo", "42", "tap0")
	if got.ends || got.opts.OutboundAddr6 != want || want != netip.IPv6Loopback() {
		t.Errorf("%+v, want %v", got, want)
	}
}

// TestRefusals is the table of errors: all exit with 1.
func TestRefusals(t *testing.T) {
	path := t.TempDir()
	const (
		mac  = `macaddress has to be a valid MAC address (hex string, 6 bytes, each byte separated by a ':').`
		pid  = "PID must be a positive integer\n"
		mtu  = "MTU must be a positive integer (< 65522)\n"
		net4 = "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24\n"
		out  = "outbound-addr has to be valid ipv4 address or interface name."
		out6 = "outbound-addr has to be valid ipv4 address or iterface name."
		macC = "--macaddr cannot be specified when --configure or -c is not specified\n"
		gone = "existing path expected when --netns-type=path: No such file or directory\n"
	)
	usage, silent := parseWords(t, "--help").stdout, ""
	for _, tt := range []struct {
		args   []string
		stderr string
		stdout string // after the warnings
	}{
		{nil, "", usage},
		{[]string{"42"}, "", usage},
		{[]string{"abc"}, "", usage},
		{[]string{"-c"}, "", usage},
		{[]string{"--", "--help"}, "", usage},
		{[]string{"-"}, "", usage},

		{[]string{"--bogus", "42", "tap0"}, "s4: unrecognized option '--bogus'\n", usage},
		{[]string{"--bogus=1"}, "s4: unrecognized option '--bogus=1'\n", usage},
		{[]string{"---"}, "s4: unrecognized option '---'\n", usage},
		{[]string{"42", "tap0", "--bogus"}, "s4: unrecognized option '--bogus'\n", usage},
		{[]string{"--Configure"}, "s4: unrecognized option '--Configure'\n", usage},
		{[]string{"-5"}, "s4: invalid option -- '5'\n", usage},
		{[]string{"-cZ6"}, "s4: invalid option -- 'Z'\n", usage},
		{[]string{"-\xff"}, "s4: invalid option -- '\xff'\n", usage},
		{[]string{"-m"}, "s4: option requires an argument -- 'm'\n", usage},
		{[]string{"-cm"}, "s4: option requires an argument -- 'm'\n", usage},
		{[]string{"--mtu"}, "s4: option '--mtu' requires an argument\n", usage},
		{[]string{"--mt"}, "s4: option '--mtu' requires an argument\n", usage},
		{[]string{"--configure=1"}, "s4: option '--configure' doesn't allow an argument\n", usage},
		{[]string{"--conf="}, "s4: option '--configure' doesn't allow an argument\n", usage},
		{[]string{"--enable"}, "s4: option '--enable' is ambiguous; possibilities: '--enable-ipv6' '--enable-sandbox' '--enable-seccomp'\n", usage},
		{[]string{"--e=1"}, "s4: option '--e=1' is ambiguous; possibilities: '--exit-fd' '--enable-ipv6' '--enable-sandbox' '--enable-seccomp'\n", usage},
		{[]string{"--outbound"}, "s4: option '--outbound' is ambiguous; possibilities: '--outbound-addr' '--outbound-addr6'\n", usage},
		{[]string{"--="}, "s4: option '--=' is ambiguous; possibilities: '--configure' '--exit-fd' '--ready-fd' '--mtu' '--cidr'" +
			" '--disable-host-loopback' '--no-host-loopback' '--netns-type' '--userns-path' '--api-socket' '--enable-ipv6'" +
			" '--enable-sandbox' '--create-sandbox' '--enable-seccomp' '--help' '--version' '--outbound-addr' '--outbound-addr6'" +
			" '--disable-dns' '--macaddress' '--target-type'\n", usage},

		{[]string{"-e", "x", "42", "tap0"}, "exit-fd must be a non-negative integer\n", usage},
		{[]string{"-e", "-1", "42", "tap0"}, "exit-fd must be a non-negative integer\n", usage},
		{[]string{"-r", "3x", "42", "tap0"}, "ready-fd must be a non-negative integer\n", usage},
		{[]string{"-r", "-1"}, "ready-fd must be a non-negative integer\n", usage},
		{[]string{"-r", "x", "--help"}, "ready-fd must be a non-negative integer\n", usage},
		{[]string{"-r", "4294967299", "42", "tap0"}, "ready-fd must be a non-negative integer\n", usage},
		{[]string{"-m", "0", "42", "tap0"}, mtu, usage},
		{[]string{"-m", "", "42", "tap0"}, mtu, usage},
		{[]string{"-m", "-5", "42", "tap0"}, mtu, usage},
		{[]string{"-m", "1500 ", "42", "tap0"}, mtu, usage},
		{[]string{"-m", "0x5dc", "42", "tap0"}, mtu, usage},
		{[]string{"-m", "1_500", "42", "tap0"}, mtu, usage},
		{[]string{"--mtu=65522", "42", "tap0"}, mtu, usage},

		{[]string{"0", "tap0"}, pid, usage},
		{[]string{"abc", "tap0"}, pid, usage},
		{[]string{"", "tap0"}, pid, usage},
		{[]string{"--", "-1", "tap0"}, pid, usage},
		{[]string{"99999999999", "tap0"}, pid, usage},
		{[]string{"0", "tap0", "x"}, pid, "WARNING: too many arguments\n" + usage},
		{[]string{"--netns-type=path", "/nosuch"}, "", usage},
		{[]string{"--netns-type=path", "/nosuch", "tap0"}, gone, usage},
		{[]string{"--netns-type=path", "", "tap0"}, gone, usage},
		{[]string{"--netns-type=bogus", "/nosuch", "tap0"}, gone, usage},
		{[]string{"--netns-type=tapfd"}, "", usage},
		{[]string{"--netns-type=tapfd", "x"}, "TAPFD must a file descriptor\n", usage},
		{[]string{"--netns-type=tapfd", "--", "-1"}, "TAPFD must a file descriptor\n", usage},
		{[]string{"--userns-path=/nosuch", "42", "tap0"}, "userns path doesn't exist: /nosuch\n", usage},
		{[]string{"--userns-path=", "42", "tap0"}, "userns path doesn't exist: \n", usage},
		{[]string{"--userns-path=/nosuch", "--macaddress=1", "--target-type=x", "0"}, "userns path doesn't exist: /nosuch\n", usage},
		{[]string{"--macaddress=x", "0", "tap0"}, macC, usage},
		{[]string{"--macaddress=", "42", "tap0"}, macC, usage},
		{[]string{"--macaddress=x", "--target-type=x"}, macC, usage},

		{[]string{"--target-type=x", "0", "tap0"}, "--target-type must be either \"netns\" or \"bess\"\n", usage},
		{[]string{"--target-type=", "42", "tap0"}, "--target-type must be either \"netns\" or \"bess\"\n", usage},
		{[]string{"--target-type=bess"}, "", usage},
		{[]string{"--target-type=bess", "a", "b"}, "too many arguments\n", usage},
		{[]string{"--target-type=bess", "-c", "--netns-type=pid", "a"}, "--configure conflicts with --target-type=bess\n", usage},
		{[]string{"--target-type=bess", "--netns-type=pid", "--userns-path", path, "a"}, "--netns-type conflicts with --target-type=bess\n", usage},
		{[]string{"--target-type=bess", "--userns-path", path, "a"}, "--userns-path conflicts with --target-type=bess\n", usage},
		{[]string{"--target-type=bess", "a"}, "--target-type=bess is not supported by slipway, use --target-type=netns\n", silent},

		{[]string{"--cidr=", "42", "tap0"}, "invalid CIDR: \n", silent},
		{[]string{"--cidr=10.0.2.0", "42", "tap0"}, "invalid CIDR: 10.0.2.0\n", silent},
		{[]string{"--cidr=10.0.2/24", "42", "tap0"}, "invalid CIDR: 10.0.2/24\n", silent},
		{[]string{"--cidr=10.0.2.0/", "42", "tap0"}, "invalid CIDR: 10.0.2.0/\n", silent},
		{[]string{"--cidr=10.0.2.0/240", "42", "tap0"}, "invalid CIDR: 10.0.2.0/240\n", silent},
		{[]string{"--cidr=10.0.2.0/24\n", "42", "tap0"}, "invalid CIDR: 10.0.2.0/24\n\n", silent},
		{[]string{"--cidr=1000.0.2.0/24", "42", "tap0"}, "invalid CIDR: 1000.0.2.0/24\n", silent},
		{[]string{"--cidr=fd00::/64", "42", "tap0"}, "invalid CIDR: fd00::/64\n", silent},
		{[]string{"--cidr=300.0.2.0/99", "42", "tap0"}, "invalid network address: 300.0.2.0\n", silent},
		{[]string{"--cidr=10.0.02.0/24", "42", "tap0"}, "invalid network address: 10.0.02.0\n", silent},
		{[]string{"--cidr=10.0.2.0/0", "42", "tap0"}, "prefix length needs to be 1-25\n", silent},
		{[]string{"--cidr=10.0.2.100/26", "42", "tap0"}, "prefix length needs to be 1-25\n", silent},
		{[]string{"--cidr=10.0.2.100/24", "42", "tap0"}, net4, silent},
		{[]string{"--cidr=192.168.1.0/1", "42", "tap0"}, net4, silent},
		{[]string{"--cidr=x", "0", "tap0"}, pid, usage},

		{[]string{"--outbound-addr=", "42", "tap0"}, out, "WARNING: Support for --outbound-addr is experimental\n"},
		{[]string{"--outbound-addr=nosuch0", "-c", "--macaddress=x", "42", "tap0"}, out, "WARNING: Support for --outbound-addr is experimental\n"},
		{[]string{"--outbound-addr=::1", "42", "tap0"}, out, "WARNING: Support for --outbound-addr is experimental\n"},
		{[]string{"--outbound-addr6=127.0.0.1", "42", "tap0"}, out6, "WARNING: Support for --outbound-addr6 is experimental\n"},
		{[]string{"--outbound-addr6=nosuch0", "42", "tap0"}, out6, "WARNING: Support for --outbound-addr6 is experimental\n"},
		{[]string{"--outbound-addr6=fe80::1%lo", "42", "tap0"}, out6, "WARNING: Support for --outbound-addr6 is experimental\n"},
		{[]string{"--cidr=x", "--outbound-addr=x", "-c", "--macaddress=x", "42", "tap0"}, "invalid CIDR: x\n",
			"WARNING: Support for --outbound-addr is experimental\n"},

		{[]string{"-c", "--macaddress=x", "42", "tap0"}, "\"x\" is an invalid MAC address.\n" + mac, silent},
		{[]string{"-c", "--macaddress=", "42", "tap0"}, "\"\" is an invalid MAC address.\n" + mac, silent},
		{[]string{"-c", "--macaddress=02::1", "42", "tap0"}, "\"02::1\" is an invalid MAC address.\n" + mac, silent},
		{[]string{"-c", "--macaddress=100:0:0:0:0:1", "42", "tap0"}, "\"100:0:0:0:0:1\" is an invalid MAC address.\n" + mac, silent},
		{[]string{"-c", "--macaddress=02-00-00-00-00-01", "42", "tap0"}, "\"02-00-00-00-00-01\" is an invalid MAC address.\n" + mac, silent},
		{[]string{"-c", "--macaddress=2:0:0:0:0:1:2", "42", "tap0"}, "\"2:0:0:0:0:1:2\" is an invalid MAC address.  Is it too long?\n" + mac, silent},
		{[]string{"-c", "--macaddress=2:0:0:0:0:1:", "42", "tap0"}, "\"2:0:0:0:0:1:\" is an invalid MAC address.  Is it too long?\n" + mac, silent},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			got := parseWords(t, tt.args...)
			if !got.ends || got.exit != 1 {
				t.Errorf("ends %v with %d, want exit status 1", got.ends, got.exit)
			}
			if diff := cmp.Diff(tt.stderr, got.stderr); diff != "" {
				t.Errorf("stderr (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.stdout, got.stdout); diff != "" {
				t.Errorf("stdout (-want +got):\n%s", diff)
			}
		})
	}
}

// TestHelp holds the words that clients search for.
func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"-h"}, {"--help"}, {"--he", "--bogus"}, {"-ch"}} {
		got := parseWords(t, args...)
		if !got.ends || got.exit != 0 || got.stderr != "" {
			t.Errorf("%q: ends %v with %d and stderr %q, want 0 and none", args, got.ends, got.exit, got.stderr)
		}
		if !strings.HasPrefix(got.stdout, "Usage: s4 [OPTION]... PID|PATH|FD [TAPNAME]\n") {
			t.Errorf("%q: first line of %q", args, got.stdout)
		}
		if !regexp.MustCompile(`(?m)(^|\W)--netns-type(\W|$)`).MatchString(got.stdout) {
			t.Error("no word --netns-type")
		}
		for _, o := range options {
			deprecated := o.name == "no-host-loopback" || o.name == "create-sandbox"
			if strings.Contains(got.stdout, "--"+o.name) == deprecated {
				t.Errorf("--%s: listed %v, deprecated %v", o.name, !deprecated, deprecated)
			}
			if o.short != 0 && !strings.Contains(got.stdout, "\n-"+string(o.short)+", --"+o.name) {
				t.Errorf("-%c is not beside --%s", o.short, o.name)
			}
		}
	}
	if got := parseWords(t, "-6", "--help"); !strings.HasPrefix(got.stdout, "WARNING: Support for IPv6 is experimental\nUsage: ") {
		t.Errorf("-6 --help prints %q", got.stdout)
	}
}

func TestVersion(t *testing.T) {
	for _, args := range [][]string{{"-v"}, {"--version"}, {"-vh"}} {
		got := parseWords(t, args...)
		want := "slirp4netns version 1.3.3+slipway0.2.0\n" +
			"commit: " + strings.Repeat("ab", 20) + "\n" +
			"libslirp: 4.9.4 (slipway netstack)\n" +
			"SLIRP_CONFIG_VERSION_MAX: 6\n" +
			"libseccomp: 2.5.4 (slipway filter)\n"
		if got.exit != 0 || !got.ends || got.stdout != want || got.stderr != "" {
			t.Errorf("%q: %+v, want %q", args, got, want)
		}
	}
	if text := (&Program{Version: "0.1.0-dev"}).version(); strings.Contains(text, "commit") || strings.Count(text, "version") != 1 {
		t.Errorf("without a commit: %q", text)
	}
}

func TestBanner(t *testing.T) {
	o := defaults()
	want := `Starting slirp
* MTU:             1500
* Network:         10.0.2.0
* Netmask:         255.255.255.0
* Gateway:         10.0.2.2
* DNS:             10.0.2.3
* DHCP begin:      10.0.2.15
* DHCP end:        10.0.2.30
* Recommended IP:  10.0.2.100
WARNING: 127.0.0.1:* on the host is accessible as 10.0.2.2 (set --disable-host-loopback to prohibit connecting to 127.0.0.1:*)
`
	if diff := cmp.Diff(want, o.Banner()); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	o = parseWords(t, "-c", "--mtu=65520", "--cidr=10.0.135.128/25", "--disable-host-loopback", "--api-socket=/tmp/api.sock",
		"--outbound-addr=127.0.0.1", "--outbound-addr6=::1", "--macaddress=02:00:00:00:00:01", "42", "tap0").opts
	want = `Starting slirp
* MTU:             65520
* Network:         10.0.135.128
* Netmask:         255.255.255.128
* Gateway:         10.0.135.130
* DNS:             10.0.135.131
* DHCP begin:      10.0.135.143
* DHCP end:        10.0.135.158
* Recommended IP:  10.0.135.228
* API Socket:      /tmp/api.sock
* Outbound IPv4:    127.0.0.1
* Outbound IPv6:    ::1
* MAC address:     02:00:00:00:00:01
`
	if diff := cmp.Diff(want, o.Banner()); diff != "" {
		t.Errorf("all (-want +got):\n%s", diff)
	}
}

func TestPerror(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&os.SyscallError{Syscall: "setns", Err: syscall.EPERM}, "x: Operation not permitted"},
		{syscall.EBUSY, "x: Device or resource busy"},
		{syscall.EADDRNOTAVAIL, "x: Cannot assign requested address"},
		{errors.New("no system call"), "x: no system call"},
	} {
		if got := Perror("x", tt.err); got != tt.want {
			t.Errorf("Perror(%v) = %q, want %q", tt.err, got, tt.want)
		}
	}
}
