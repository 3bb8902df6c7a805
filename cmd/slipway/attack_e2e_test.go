//go:build e2e

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An attack is what a container's root tries against us. It returns what it got,
// or the reason why it got nothing. Every attack is also made where its guard is
// absent, and must succeed there: an attack that cannot work proves nothing.
type attack func(args []string) (string, error)

var attacks = map[string]attack{}

func init() {
	maps.Copy(attacks, map[string]attack{
		"ptrace":   attackPtrace,
		"seize":    attackSeize,
		"getfd":    attackGetFD,
		"vmread":   attackMemory,
		"procfile": attackProcFile,
		"kill":     attackKill,
		"killall":  attackKillAll,
		"pids":     attackPIDs,
		"spawn":    attackSpawn,
		"scan":     attackScan,
	})
	helpers["attack"] = attackServe
	helpers["block"] = func([]string) error {
		fmt.Println("blocking")
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
}

// attackServe reads attacks from standard input, one a line, and answers each.
func attackServe([]string) error {
	// The parent death signal, ptrace and namespaces belong to a thread.
	runtime.LockOSThread()
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		words := strings.Fields(in.Text())
		got, err := attacks[words[0]](words[1:])
		answer := "got " + got
		if err != nil {
			answer = "refused " + err.Error()
		}
		fmt.Println(strings.ReplaceAll(answer, "\n", " "))
	}
	return in.Err()
}

// attacker is a process that attacks on demand.
type attacker struct {
	*process
	in  io.WriteCloser
	out *os.File
	buf *bufio.Reader
}

// attackFrom starts an attacker by a command that ends up as the helper "attack".
func attackFrom(t *testing.T, cmd *exec.Cmd) *attacker {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd.Stdout = w
	a := &attacker{process: start(t, cmd), in: in, out: r, buf: bufio.NewReader(r)}
	w.Close()
	if got := a.line(); got != "ready" {
		t.Fatalf("the attacker says %q", got)
	}
	return a
}

// attackInside starts a container with all capabilities and an attacker in it.
func attackInside(t *testing.T, options ...string) *attacker {
	t.Helper()
	args := append([]string{"run", "--rm", "-i", "--cap-add", "all"}, withHelper(t, "attack")...)
	args = append(append(args, options...), "host", "/e2e")
	return attackFrom(t, exec.Command(os.Getenv("SLIPWAY_BIN"), args...))
}

func (a *attacker) line() string {
	a.t.Helper()
	if err := a.out.SetReadDeadline(time.Now().Add(3 * patience)); err != nil {
		a.t.Fatal(err)
	}
	s, err := a.buf.ReadString('\n')
	if err != nil {
		a.t.Fatalf("the attacker's answer: %v", err)
	}
	return strings.TrimSuffix(s, "\n")
}

// try makes one attack and reports whether it worked.
func (a *attacker) try(words ...any) (string, bool) {
	a.t.Helper()
	if _, err := fmt.Fprintln(a.in, words...); err != nil {
		a.t.Fatal(err)
	}
	answer := a.line()
	got, ok := strings.CutPrefix(answer, "got ")
	if !ok {
		return strings.TrimPrefix(answer, "refused "), false
	}
	return got, true
}

// works makes an attack where nothing guards against it.
func (a *attacker) works(words ...any) string {
	a.t.Helper()
	got, ok := a.try(words...)
	if !ok {
		a.t.Errorf("without the guard, %v was refused: %s", words, got)
	}
	return got
}

// refused makes an attack that must fail for one of these reasons.
func (a *attacker) refused(reasons []error, words ...any) {
	a.t.Helper()
	got, ok := a.try(words...)
	if ok {
		a.t.Errorf("%v succeeded: %s", words, got)
		return
	}
	if !slices.ContainsFunc(reasons, func(e error) bool { return strings.HasSuffix(got, e.Error()) }) {
		a.t.Errorf("%v was refused, but by %q and not by %q", words, got, reasons)
	}
}

// end ends the attacker, which must still be well.
func (a *attacker) end() {
	a.t.Helper()
	a.in.Close()
	if status := a.wait(); status != 0 {
		a.t.Errorf("the attacker ended with %d", status)
	}
}

func attackPID(args []string) (int, error) { return strconv.Atoi(args[0]) }

func attackPtrace(args []string) (string, error) {
	pid, err := attackPID(args)
	if err != nil {
		return "", err
	}
	if err := unix.PtraceAttach(pid); err != nil {
		return "", err
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
		return "", fmt.Errorf("attached, then: %w", err)
	}
	return "attached", unix.PtraceDetach(pid)
}

func attackSeize(args []string) (string, error) {
	pid, err := attackPID(args)
	if err != nil {
		return "", err
	}
	if err := unix.PtraceSeize(pid); err != nil {
		return "", err
	}
	var ws unix.WaitStatus
	if err := unix.PtraceInterrupt(pid); err != nil {
		return "", fmt.Errorf("seized, then: %w", err)
	}
	if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
		return "", fmt.Errorf("seized, then: %w", err)
	}
	return "seized", unix.PtraceDetach(pid)
}

func attackGetFD(args []string) (string, error) {
	pid, err := attackPID(args)
	if err != nil {
		return "", err
	}
	p, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(p)
	fd, err := unix.PidfdGetfd(p, 0, 0)
	if err != nil {
		return "", err
	}
	return "descriptor 0", unix.Close(fd)
}

// attackMemory reads where the linker puts a Go program: the access is checked
// before the address.
func attackMemory(args []string) (string, error) {
	pid, err := attackPID(args)
	if err != nil {
		return "", err
	}
	buf := make([]byte, 4)
	local := []unix.Iovec{{Base: &buf[0], Len: 4}}
	if _, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: attackImage(), Len: 4}}, 0); err != nil {
		return "", err
	}
	return fmt.Sprintf("%q", buf), nil
}

// attackImage is where the first segment of a static Go program lies.
func attackImage() uintptr {
	if runtime.GOARCH == "arm64" {
		return 0x10000
	}
	return 0x400000
}

// Root may list the numbers in /proc/PID/fd of whatever process of root: what
// counts is what is behind them.
var attackProcFiles = []string{"fd/0", "fdinfo/0", "mem", "root", "cwd", "environ", "maps", "ns/net", "exe"}

// attackProcFile opens /proc/PID/NAME, and reads it.
func attackProcFile(args []string) (string, error) {
	path := "/proc/" + args[0] + "/" + args[1]
	flags := unix.O_RDONLY
	switch args[1] {
	case "mem":
		flags = unix.O_RDWR
	case "ns/net", "exe", "fd/0":
		return os.Readlink(path)
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.IsDir() {
		names, err := f.Readdirnames(3)
		return fmt.Sprint(names), err
	}
	if args[1] == "mem" {
		_, err := f.ReadAt(make([]byte, 4), int64(attackImage()))
		return "memory", err
	}
	// Of a zombie these files can be opened, and are empty.
	n, err := f.Read(make([]byte, 16))
	return fmt.Sprint(n, " bytes"), err
}

func attackKill(args []string) (string, error) {
	pid, err := attackPID(args)
	if err != nil {
		return "", err
	}
	return "killed", unix.Kill(pid, unix.SIGKILL)
}

// attackKillAll kills every process that it may but itself (kill(2)).
func attackKillAll([]string) (string, error) {
	return "killed", unix.Kill(-1, unix.SIGKILL)
}

// attackPIDs lists the processes that can be seen, beside the attacker.
func attackPIDs([]string) (string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return "", err
	}
	var seen []string
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			seen = append(seen, e.Name())
		}
	}
	if len(seen) == 0 {
		return "", errors.New("no other process")
	}
	return strings.Join(seen, " "), nil
}

// attackSpawn starts an ordinary process and returns its pid: a victim without a
// guard.
func attackSpawn([]string) (string, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{helperEnv + "=block"}
	if _, err := cmd.StdinPipe(); err != nil {
		return "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return "", err
	}
	return strconv.Itoa(cmd.Process.Pid), nil
}

// attackScan attacks, over and over, every process whose parent or command line is
// given, but not those named: `scan SIGHTINGS ppid|argv0 VALUE [BUT…]`. It ends when
// something worked, or when as many attacks were refused for lack of permission,
// each on a process that therefore was there.
func attackScan(args []string) (string, error) {
	want, err := strconv.Atoi(args[0])
	if err != nil {
		return "", err
	}
	refused := map[string]bool{}
	for deadline := time.Now().Add(2 * patience); time.Now().Before(deadline); {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			pid := e.Name()
			if pid[0] < '0' || pid[0] > '9' || slices.Contains(args[3:], pid) || !attackMatches(pid, args[1], args[2]) {
				continue
			}
			for _, name := range []string{"getfd", "vmread", "seize", "fd/0", "mem", "root", "environ", "maps"} {
				words, f := []string{pid}, attacks[name]
				if f == nil {
					words, f = []string{pid, name}, attackProcFile
				}
				got, err := f(words)
				if err == nil {
					return name + " of process " + pid + ": " + got, nil
				}
				if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
					refused[pid+" "+name] = true
				}
			}
		}
		if len(refused) >= want {
			return "", unix.EPERM
		}
	}
	return "", fmt.Errorf("%d attacks in all, wanted %d", len(refused), want)
}

func attackMatches(pid, what, value string) bool {
	if what == "argv0" {
		b, err := os.ReadFile("/proc/" + pid + "/cmdline")
		return err == nil && strings.HasPrefix(string(b), value)
	}
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	return len(f) > 1 && f[1] == value
}

var (
	invisible = []error{unix.ESRCH, unix.ENOENT}
	forbidden = []error{unix.EPERM, unix.EACCES}
)

// TestAttackProcessesFromTheContainer: the container's pid namespace holds none of
// ours, so that nothing of them can be named in there.
func TestAttackProcessesFromTheContainer(t *testing.T) {
	t.Parallel()
	a := attackInside(t)
	launcher := a.Process.Pid
	monitor, engine := child(t, launcher, " monitor"), child(t, launcher, " engine")

	a.refused([]error{errors.New("no other process")}, "pids")
	for _, pid := range []int{launcher, monitor, engine} {
		for _, name := range []string{"ptrace", "seize", "getfd", "vmread", "kill"} {
			a.refused(invisible, name, pid)
		}
		for _, file := range attackProcFiles {
			a.refused(invisible, "procfile", pid, file)
		}
	}
	// The same on an ordinary process of the container.
	victim := a.works("spawn")
	if got := a.works("pids"); got != victim {
		t.Errorf("the attacker sees the processes %q, want its child %s", got, victim)
	}
	for _, name := range []string{"ptrace", "seize", "getfd", "vmread"} {
		a.works(name, victim)
	}
	for _, file := range attackProcFiles {
		a.works("procfile", victim, file)
	}
	a.works("kill", victim)
	a.works("spawn")
	a.works("killall") // and its child, but none of ours
	if now := child(t, launcher, " engine"); now != engine {
		t.Errorf("the engine is now process %d, was %d", now, engine)
	}
	a.end()
}

// attackBeside starts an attacker as root of new user and network namespaces that
// sees all processes of the machine, and gives it a network.
func attackBeside(t *testing.T, options ...string) (a *attacker, attach *process) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=attack")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	a = attackFrom(t, cmd)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	c := exec.Command(os.Getenv("SLIPWAY_BIN"), append([]string{"attach", "--ready-fd", "3", "--pid", strconv.Itoa(a.Process.Pid)}, options...)...)
	c.ExtraFiles = []*os.File{w}
	attach = start(t, c)
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatalf("attach does not get ready: %v", err)
	}
	return a, attach
}

// TestAttackVisibleProcesses: whoever shares our pid namespace and our user, and is
// root of the user namespace that we serve, gets nothing out of our processes. (It
// can kill them: they are its own user's.)
func TestAttackVisibleProcesses(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	a, attach := attackBeside(t, "-p", "127.0.0.1:"+port+":80", "--publish-path", "kernel")
	monitor := attach.Process.Pid
	engine := child(t, monitor, " engine")
	other := slipway(t, "run", "--rm", "host", "sh", "-c", "echo up; exec sleep 613")
	other.says("up")
	guarded := slipway(t, "run", "--rm", "--network", "none", "host", "sh", "-c", "echo up; exec sleep 614")
	guarded.says("up")

	for name, pid := range map[string]int{
		"monitor": monitor, "engine": engine, "launcher of another": other.Process.Pid,
		"monitor of another": child(t, other.Process.Pid, " monitor"), "engine of another": child(t, other.Process.Pid, " engine"),
		"workload of another": child(t, other.Process.Pid, "sleep 613"),
		"guard":               child(t, guarded.Process.Pid, "slipway-guard stage"),
	} {
		t.Run(name, func(t *testing.T) {
			a := &attacker{process: &process{Cmd: a.Cmd, t: t}, in: a.in, out: a.out, buf: a.buf}
			for _, name := range []string{"ptrace", "seize", "getfd", "vmread"} {
				a.refused(forbidden, name, pid)
			}
			for _, file := range attackProcFiles {
				a.refused(forbidden, "procfile", pid, file)
			}
		})
	}

	// The children that the monitor clones into the attacker's namespaces live for
	// milliseconds: connections make it clone them.
	stop := make(chan struct{})
	hammered := make(chan struct{})
	go func() {
		defer close(hammered)
		for {
			select {
			case <-stop:
				return
			default:
				attackConnect("127.0.0.1:" + port)
			}
		}
	}()
	a.refused(forbidden, "scan", 30, "ppid", monitor, engine)
	close(stop)
	<-hammered

	// So do containers' stages before they become the workload.
	done := make(chan struct{})
	stop = make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = exec.Command(os.Getenv("SLIPWAY_BIN"), "run", "--rm", "--network", "none", "host", "true").Run()
			}
		}
	}()
	a.refused(forbidden, "scan", 30, "argv0", "slipway-", child(t, guarded.Process.Pid, "slipway-guard stage"))
	close(stop)
	<-done

	// A process that goes the monitor's way into the namespaces but is dumpable there.
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nsenter", "-t", strconv.Itoa(a.Process.Pid), "-U", "-n", "--preserve-credentials", exe)
	cmd.Env = append(os.Environ(), helperEnv+"=block")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	victim := start(t, cmd)
	victim.says("blocking")
	for _, name := range []string{"ptrace", "seize", "getfd", "vmread"} {
		a.works(name, victim.Process.Pid)
	}
	for _, file := range attackProcFiles {
		a.works("procfile", victim.Process.Pid, file)
	}
	if got := a.works("scan", 30, "ppid", os.Getpid(), a.Process.Pid, monitor, other.Process.Pid, guarded.Process.Pid); !strings.Contains(got, strconv.Itoa(victim.Process.Pid)) {
		t.Errorf("the scan found %q, not the process %d", got, victim.Process.Pid)
	}
	a.end()
}

// attackConnect makes one connection, which ends as it likes.
func attackConnect(addr string) {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	_, _ = c.Read(make([]byte, 1))
}
