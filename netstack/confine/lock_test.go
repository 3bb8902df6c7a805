package confine_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"slipway/netstack/confine"
)

// role is the argument by which the test binary is the process that is locked.
const role = "locked"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case role:
			locked()
			return
		case roleMonitor:
			monitor()
			return
		case roleInRoot:
			fmt.Println("here")
			return
		}
	}
	os.Exit(m.Run())
}

// report is what the locked process says: the outcome of each thing it tried.
type report struct {
	Lock    string
	Works   map[string]string // "" when it worked
	Refused map[string]string // the error, "" when it was not refused
}

// locked locks itself down, tries everything, prints a report, and lives until its
// standard input ends.
func locked() {
	other := os.Getppid()
	file, _ := os.CreateTemp("", "locked") // open across the lock-down
	os.Remove(file.Name())
	dir, _ := os.Open("/")
	for range 4 {
		go func() { runtime.LockOSThread(); select {} }()
	}
	var r report
	if err := confine.Lock(); err != nil {
		r.Lock = err.Error()
	}
	for range 2 { // threads that are made afterwards
		go func() { runtime.LockOSThread(); select {} }()
	}
	if r.Lock != "" {
		json.NewEncoder(os.Stdout).Encode(r)
		os.Exit(1)
	}
	r.Works = outcomes(working(file))
	r.Refused = outcomes(forbidden(other, file, dir))
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		os.Exit(3)
	}
	io.Copy(io.Discard, os.Stdin)
}

func outcomes(tries map[string]func() error) map[string]string {
	m := map[string]string{}
	for name, try := range tries {
		m[name] = ""
		if err := try(); err != nil {
			m[name] = err.Error()
			var e syscall.Errno
			if errors.As(err, &e) {
				m[name] = unix.ErrnoName(e)
			}
		}
	}
	return m
}

func working(file *os.File) map[string]func() error {
	tcp := func(network, address string) func() error {
		return func() error {
			lc := net.ListenConfig{}
			lc.SetMultipathTCP(false)
			l, err := lc.Listen(context.Background(), network, address)
			if err != nil {
				return err
			}
			defer l.Close()
			d := net.Dialer{}
			d.SetMultipathTCP(false)
			c, err := d.Dial(network, l.Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			s, err := l.Accept()
			if err != nil {
				return err
			}
			defer s.Close()
			return talk(c, s)
		}
	}
	udp := func(network, address string) func() error {
		return func() error {
			a, err := net.ListenPacket(network, address)
			if err != nil {
				return err
			}
			defer a.Close()
			b, err := net.Dial(network, a.LocalAddr().String())
			if err != nil {
				return err
			}
			defer b.Close()
			if _, err := b.Write([]byte("x")); err != nil {
				return err
			}
			a.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, _, err = a.ReadFrom(make([]byte, 8))
			return err
		}
	}
	return map[string]func() error{
		"tcp4": tcp("tcp4", "127.0.0.1:0"),
		"tcp6": ignoreNoIPv6(tcp("tcp6", "[::1]:0")),
		"udp4": udp("udp4", "127.0.0.1:0"),
		"udp6": ignoreNoIPv6(udp("udp6", "[::1]:0")),
		"ping socket": func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
			if errors.Is(err, unix.EACCES) { // net.ipv4.ping_group_range; the filter would say EPERM
				return nil
			}
			return errors.Join(err, unix.Close(fd))
		},
		"splice": func() error {
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
				return err
			}
			defer unix.Close(p[0])
			defer unix.Close(p[1])
			var q [2]int
			if err := unix.Pipe2(q[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
				return err
			}
			defer unix.Close(q[0])
			defer unix.Close(q[1])
			if _, err := unix.Write(p[1], []byte("abc")); err != nil {
				return err
			}
			if n, err := unix.Splice(p[0], nil, q[1], nil, 3, unix.SPLICE_F_NONBLOCK); n != 3 {
				return fmt.Errorf("spliced %d: %w", n, err)
			}
			if _, err := unix.FcntlInt(uintptr(q[0]), unix.F_SETPIPE_SZ, 1<<16); err != nil {
				return err
			}
			n, err := unix.IoctlGetInt(q[0], unix.TIOCINQ)
			if n != 3 {
				return fmt.Errorf("FIONREAD %d: %w", n, err)
			}
			return nil
		},
		"goroutines, threads, garbage": func() error {
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					runtime.LockOSThread() // the thread ends with the goroutine
					b := make([][]byte, 0, 64)
					for range 64 {
						b = append(b, make([]byte, 64<<10))
					}
					runtime.KeepAlive(b)
					if i%4 == 0 {
						runtime.GC()
					}
				})
			}
			wg.Wait()
			debug.FreeOSMemory()
			return nil
		},
		"timers": func() error {
			<-time.After(time.Millisecond)
			return nil
		},
		"an open file": func() error {
			_, err := file.Write([]byte("x"))
			return err
		},
		"its own limits": func() error {
			var l unix.Rlimit
			return unix.Getrlimit(unix.RLIMIT_NOFILE, &l)
		},
	}
}

func ignoreNoIPv6(try func() error) func() error {
	return func() error {
		err := try()
		if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
			return nil
		}
		return err
	}
}

func talk(a, b net.Conn) error {
	for _, c := range []net.Conn{a, b} {
		c.SetDeadline(time.Now().Add(5 * time.Second))
	}
	if _, err := a.Write([]byte("slipway")); err != nil {
		return err
	}
	buf := make([]byte, 7)
	if _, err := io.ReadFull(b, buf); err != nil {
		return err
	}
	if string(buf) != "slipway" {
		return fmt.Errorf("got %q", buf)
	}
	return nil
}

func forbidden(other int, file, dir *os.File) map[string]func() error {
	socket := func(family, typ, proto int) func() error {
		return func() error {
			fd, err := unix.Socket(family, typ, proto)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
	}
	raw := func(trap uintptr, args ...uintptr) func() error {
		return func() error {
			var a [6]uintptr
			copy(a[:], args)
			if _, _, e := unix.Syscall6(trap, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
				return e
			}
			return nil
		}
	}
	var buf [256]byte
	at := uintptr(unsafe.Pointer(&buf[0]))
	return map[string]func() error{
		"exec":                 func() error { return syscall.Exec("/bin/true", []string{"true"}, nil) },
		"fork and exec":        func() error { return exec.Command("/bin/true").Run() },
		"execveat":             raw(unix.SYS_EXECVEAT, 0, at, at, 0, unix.AT_EMPTY_PATH),
		"open to read":         func() error { _, err := os.Open("/etc/passwd"); return err },
		"open proc":            func() error { _, err := os.Open("/proc/self/status"); return err },
		"open to write":        func() error { _, err := os.Create("/tmp/locked"); return err },
		"open below a dir":     func() error { _, err := unix.Openat(int(dir.Fd()), "etc", unix.O_RDONLY, 0); return err },
		"openat2":              func() error { _, err := unix.Openat2(int(dir.Fd()), "etc", &unix.OpenHow{}); return err },
		"stat":                 func() error { _, err := os.Stat("/etc"); return err },
		"list":                 func() error { _, err := dir.ReadDir(1); return err },
		"unlink":               func() error { return os.Remove("/tmp/nonexistent") },
		"chmod":                func() error { return file.Chmod(0o777) },
		"unix socket":          socket(unix.AF_UNIX, unix.SOCK_STREAM, 0),
		"socketpair":           func() error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
		"netlink socket":       socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE),
		"packet socket":        socket(unix.AF_PACKET, unix.SOCK_RAW, 0),
		"raw socket":           socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
		"multipath tcp":        socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP),
		"sctp":                 socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP),
		"vsock":                socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0),
		"kernel crypto":        socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0),
		"ptrace":               func() error { return unix.PtraceAttach(other) },
		"ptrace me":            raw(unix.SYS_PTRACE, unix.PTRACE_TRACEME),
		"setns":                func() error { return unix.Setns(int(file.Fd()), 0) },
		"unshare":              func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"unshare files":        func() error { return unix.Unshare(unix.CLONE_FILES) },
		"fork":                 raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD)),
		"clone into namespace": raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_NEWUSER),
		"clone3":               raw(unix.SYS_CLONE3, at, 64),
		"pidfd_open":           func() error { _, err := unix.PidfdOpen(other, 0); return err },
		"pidfd_getfd":          func() error { _, err := unix.PidfdGetfd(int(file.Fd()), 0, 0); return err },
		"process_vm_readv":     raw(unix.SYS_PROCESS_VM_READV, uintptr(other), at, 1, at, 1, 0),
		"io_uring":             raw(unix.SYS_IO_URING_SETUP, 1, at),
		"bpf":                  raw(unix.SYS_BPF, 0, at, 64),
		"perf":                 raw(unix.SYS_PERF_EVENT_OPEN, at, 0, 0, ^uintptr(0), 0),
		"userfaultfd":          raw(unix.SYS_USERFAULTFD, 0),
		"keys":                 raw(unix.SYS_KEYCTL, 0),
		"mount":                func() error { return unix.Mount("none", "/mnt", "tmpfs", 0, "") },
		"chroot":               func() error { return unix.Chroot("/") },
		"kill another":         func() error { return unix.Kill(other, 0) },
		"kill all":             func() error { return unix.Kill(-1, 0) },
		"tgkill another":       func() error { return unix.Tgkill(other, other, 0) },
		"signal by owner":      func() error { _, err := unix.FcntlInt(file.Fd(), unix.F_SETOWN, other); return err },
		"limits of another":    func() error { return unix.Prlimit(other, unix.RLIMIT_NOFILE, nil, &unix.Rlimit{}) },
		"dumpable":             func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
		"code at run time": func() error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			return err
		},
		"terminal input": func() error { return unix.IoctlSetPointerInt(0, unix.TIOCSTI, 0) },
		"setuid":         raw(unix.SYS_SETUID, 0),
	}
}

func TestLock(t *testing.T) {
	users := map[string]*syscall.Credential{"caller": nil}
	if os.Getuid() == 0 {
		users["ordinary user"] = &syscall.Credential{Uid: 231073, Gid: 231073}
	}
	for name, credential := range users {
		t.Run(name, func(t *testing.T) { testLock(t, credential) })
	}
}

func testLock(t *testing.T, credential *syscall.Credential) {
	path := "/proc/self/exe"
	if credential != nil {
		path = publicCopy(t)
	}
	cmd := exec.Command(path, role)
	cmd.Dir = "/"
	cmd.Env = []string{"TMPDIR=/tmp"}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: credential}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Process.Kill(); cmd.Wait() })
	var r report
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatalf("no report: %v", err)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		t.Fatal(err)
	}
	if builtWithCgo {
		if !strings.Contains(r.Lock, "CGO_ENABLED=0") {
			t.Errorf("Lock in a cgo build: %q, want an error that says how to build", r.Lock)
		}
		return
	}
	if r.Lock != "" {
		t.Fatalf("Lock: %s", r.Lock)
	}
	for what, err := range r.Works {
		if err != "" {
			t.Errorf("%s: %s, want it to work", what, err)
		}
	}
	for what, err := range r.Refused {
		if err != "EPERM" {
			t.Errorf("%s: %q, want EPERM", what, err)
		}
	}
	privileged := credential == nil && capable(t)
	want := map[string]string{
		"CapInh": zero, "CapPrm": zero, "CapEff": zero, "CapAmb": zero, "NoNewPrivs": "1", "Seccomp": "2",
	}
	if privileged {
		want["CapBnd"] = zero
	}
	status := statuses(t, cmd.Process.Pid, 7)
	for k, v := range want {
		if got := status[k]; len(got) != 1 || got[0] != v {
			t.Errorf("%s of the threads is %q, want %s", k, got, v)
		}
	}
}

const zero = "0000000000000000"

// capable reports whether this process may empty its bounding set.
func capable(t *testing.T) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SETPCAP) != 0
}

// publicCopy copies the test binary to where an ordinary user may execute it.
func publicCopy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "slipway-confine")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "confine.test")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, self, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// A process that is not dumpable keeps its files from another process of its user.
func TestNonDumpable(t *testing.T) {
	if err := confine.NonDumpable(); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	got, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || got != 0 {
		t.Errorf("dumpable is %d (%v)", got, err)
	}
}
