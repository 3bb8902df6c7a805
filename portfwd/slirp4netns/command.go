package slirp4netns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Exit is the status to end with. Whatever there was to say has been said.
type Exit int

func (e Exit) Error() string { return "exit status " + strconv.Itoa(int(e)) }

// Program is what a command line is read for.
type Program struct {
	Name    string // argv[0]
	Version string // Slipway's
	Commit  string // "": unknown
	Stdout  io.Writer
	Stderr  io.Writer
}

// command is a command line that is being read.
type command struct {
	*Program
	opts     Options
	operands []string

	// As given, and nil where not; judged in order once every word has been read.
	cidr, outbound, outbound6, mac, netnsType, usernsPath, targetType *string
}

// errUsage asks for the usage, on stdout, after what stderr has been told.
var errUsage = errors.New("usage")

// Parse reads the words after argv[0]. Its error is always an Exit, which is 0 where
// the command line asked for nothing but a text.
func (p *Program) Parse(args []string) (Options, error) {
	c := &command{Program: p, opts: Options{ExitFD: -1, ReadyFD: -1, MTU: defaultMTU, Network: defaultNetwork}}
	err := c.read(args)
	if err == nil {
		err = c.validate()
	}
	var exit Exit
	switch {
	case err == nil:
		return c.opts, nil
	case errors.As(err, &exit):
		return Options{}, exit
	case errors.Is(err, errUsage):
		fmt.Fprint(p.Stdout, p.usage())
	}
	return Options{}, Exit(1)
}

// refuse says why on stderr. What it returns ends the program.
func (c *command) refuse(format string, args ...any) error {
	fmt.Fprintf(c.Stderr, format+"\n", args...)
	return Exit(1)
}

// misuse is refuse with the usage after it.
func (c *command) misuse(format string, args ...any) error {
	fmt.Fprintf(c.Stderr, format+"\n", args...)
	return errUsage
}

func (c *command) warn(text string) { fmt.Fprintln(c.Stdout, "WARNING: "+text) }

// options in the order that an ambiguous one is explained in.
var options = []option{
	{"configure", 'c', none, func(c *command, _ string) error { c.opts.Configure = true; return nil }},
	{"exit-fd", 'e', required, func(c *command, v string) (err error) { c.opts.ExitFD, err = c.fd("exit-fd", v); return err }},
	{"ready-fd", 'r', required, func(c *command, v string) (err error) { c.opts.ReadyFD, err = c.fd("ready-fd", v); return err }},
	{"mtu", 'm', required, (*command).setMTU},
	{"cidr", 0, required, func(c *command, v string) error { c.cidr = &v; return nil }},
	{"disable-host-loopback", 0, none, func(c *command, _ string) error { c.opts.DisableHostLoopback = true; return nil }},
	{"no-host-loopback", 0, none, func(c *command, _ string) error {
		c.warn("--no-host-loopback is deprecated and will be removed in future releases, please use --disable-host-loopback instead.")
		c.opts.DisableHostLoopback = true
		return nil
	}},
	{"netns-type", 0, required, func(c *command, v string) error { c.netnsType = &v; return nil }},
	{"userns-path", 0, required, func(c *command, v string) error { c.usernsPath = &v; return nil }},
	{"api-socket", 'a', required, func(c *command, v string) error { c.opts.APISocket = v; return nil }},
	{"enable-ipv6", '6', none, func(c *command, _ string) error {
		c.warn("Support for IPv6 is experimental")
		c.opts.EnableIPv6 = true
		return nil
	}},
	{"enable-sandbox", 0, none, func(c *command, _ string) error { c.opts.EnableSandbox = true; return nil }},
	{"create-sandbox", 0, none, func(c *command, _ string) error {
		c.warn("--create-sandbox is deprecated and will be removed in future releases, please use --enable-sandbox instead.")
		c.opts.EnableSandbox = true
		return nil
	}},
	{"enable-seccomp", 0, none, func(c *command, _ string) error {
		c.warn("Support for seccomp is experimental")
		c.opts.EnableSeccomp = true
		return nil
	}},
	{"help", 'h', none, func(c *command, _ string) error { fmt.Fprint(c.Stdout, c.usage()); return Exit(0) }},
	{"version", 'v', none, func(c *command, _ string) error { fmt.Fprint(c.Stdout, c.version()); return Exit(0) }},
	{"outbound-addr", 0, required, func(c *command, v string) error {
		c.warn("Support for --outbound-addr is experimental")
		c.outbound = &v
		return nil
	}},
	{"outbound-addr6", 0, required, func(c *command, v string) error {
		c.warn("Support for --outbound-addr6 is experimental")
		c.outbound6 = &v
		return nil
	}},
	{"disable-dns", 0, none, func(c *command, _ string) error { c.opts.DisableDNS = true; return nil }},
	{"macaddress", 0, required, func(c *command, v string) error { c.mac = &v; return nil }},
	{"target-type", 0, required, func(c *command, v string) error { c.targetType = &v; return nil }},
}

// read takes every word in, and judges those options that are judged one by one.
func (c *command) read(args []string) error {
	s := scanner{argv0: c.Name, options: options, rest: args}
	for {
		o, value, err := s.next()
		switch {
		case errors.Is(err, io.EOF):
			c.operands = s.operands
			return nil
		case err != nil:
			return c.misuse("%v", err)
		}
		if err := o.set(c, value); err != nil {
			return err
		}
	}
}

// number reads what strtol(3) reads to the end: blanks and a sign may come first, and
// the empty word is 0. Other than upstream, more than 32 bits do not fit.
func number(word string) (int, bool) {
	if word == "" {
		return 0, true
	}
	n, err := strconv.ParseInt(strings.TrimLeft(word, " \t\n\v\f\r"), 10, 32)
	return int(n), err == nil
}

func (c *command) fd(option, value string) (int, error) {
	n, ok := number(value)
	if !ok || n < 0 {
		return -1, c.misuse("%s must be a non-negative integer", option)
	}
	return n, nil
}

func (c *command) setMTU(value string) error {
	n, ok := number(value)
	if !ok || n <= 0 || n > maxMTU {
		return c.misuse("MTU must be a positive integer (< %d)", maxMTU+1)
	}
	c.opts.MTU = n
	return nil
}

// validate judges the rest, in upstream's order: first what gets the usage, then what
// does not.
func (c *command) validate() error {
	for _, step := range []func(*command) error{
		(*command).target, (*command).network, (*command).outbounds, (*command).hardware,
	} {
		if err := step(c); err != nil {
			return err
		}
	}
	return nil
}

// target judges the operands and what says how to take them.
func (c *command) target() error {
	if c.usernsPath != nil {
		if err := exists(*c.usernsPath); err != nil {
			return c.misuse("userns path doesn't exist: %s", *c.usernsPath)
		}
		c.opts.UsernsPath = *c.usernsPath
	}
	if c.mac != nil && !c.opts.Configure {
		return c.misuse("--macaddr cannot be specified when --configure or -c is not specified")
	}
	if c.targetType != nil && *c.targetType != "netns" {
		return c.bess()
	}
	kind := KindPID
	if c.netnsType != nil {
		kind = Kind(*c.netnsType)
	}
	want := 2
	if kind == KindTapFD {
		want = 1
	}
	if len(c.operands) < want {
		return errUsage
	}
	if len(c.operands) > want {
		c.warn("too many arguments")
	}
	if want == 2 {
		c.opts.TapName = c.operands[1]
		c.opts.TapName = c.opts.TapName[:min(len(c.opts.TapName), maxTapName)]
	}
	return c.namespace(kind, c.operands[0])
}

// namespace judges the first operand.
func (c *command) namespace(kind Kind, operand string) error {
	switch kind {
	case KindPID:
		pid, ok := number(operand)
		if !ok || pid <= 0 {
			return c.misuse("PID must be a positive integer")
		}
		c.opts.PID = pid
	case KindTapFD:
		fd, ok := number(operand)
		if !ok || fd < 0 {
			return c.misuse("TAPFD must a file descriptor")
		}
		c.opts.TapFD = fd
	default:
		kind = KindPath // whatever else it is called
		if err := exists(operand); err != nil {
			return c.misuse("%s", Perror("existing path expected when --netns-type=path", err))
		}
		c.opts.NetnsPath = operand
	}
	c.opts.Kind = kind
	return nil
}

// bess refuses every target type but netns, for the reason that upstream would give if
// it has one.
func (c *command) bess() error {
	const conflict = "%s conflicts with --target-type=bess"
	switch {
	case *c.targetType != "bess":
		return c.misuse(`--target-type must be either "netns" or "bess"`)
	case len(c.operands) == 0:
		return errUsage
	case len(c.operands) > 1:
		return c.misuse("too many arguments")
	case c.opts.Configure:
		return c.misuse(conflict, "--configure")
	case c.netnsType != nil:
		return c.misuse(conflict, "--netns-type")
	case c.usernsPath != nil:
		return c.misuse(conflict, "--userns-path")
	}
	return c.refuse("--target-type=bess is not supported by slipway, use --target-type=netns")
}

func exists(path string) error {
	_, err := os.Stat(path)
	return err
}

// Perror is the line that perror(3) prints for the system error within err.
func Perror(prefix string, err error) string {
	text := err.Error()
	var errno syscall.Errno
	if errors.As(err, &errno) {
		// Go's table is glibc's with the first letter made small.
		text = errno.Error()
		text = strings.ToUpper(text[:1]) + text[1:]
	}
	return prefix + ": " + text
}
