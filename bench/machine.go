package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// machine is the CPU time of the whole machine since it was started, proc_stat(5).
type machine struct {
	busy   time.Duration // user, nice, system, irq, softirq
	stolen time.Duration // steal
}

func readMachine() (machine, error) {
	text, err := os.ReadFile(procfs + "/stat")
	if err != nil {
		return machine{}, fmt.Errorf("read the machine's CPU time: %w", err)
	}
	return parseMachine(string(text))
}

// parseMachine reads the first line of /proc/stat. Guest time is in user time already.
func parseMachine(text string) (machine, error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	const user, nice, system, irq, softirq, steal = 1, 2, 3, 6, 7, 8
	if len(fields) <= steal || fields[0] != "cpu" {
		return machine{}, fmt.Errorf("parse /proc/stat: first line %.80q", line)
	}
	var ticks [steal + 1]uint64
	for i := user; i <= steal; i++ {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return machine{}, fmt.Errorf("parse /proc/stat: %w", err)
		}
		ticks[i] = n
	}
	of := func(n uint64) time.Duration { return time.Duration(n) * (time.Second / userHZ) }
	return machine{
		busy:   of(ticks[user] + ticks[nice] + ticks[system] + ticks[irq] + ticks[softirq]),
		stolen: of(ticks[steal]),
	}, nil
}

// resident memory in bytes of a process and those that belong to it.
func resident(procfs string, root int) (uint64, error) {
	found, err := tree(procfs, root)
	if err != nil {
		return 0, err
	}
	var sum uint64
	for _, s := range found {
		text, err := os.ReadFile(filepath.Join(procfs, strconv.Itoa(s.id.pid), "statm"))
		if err != nil {
			continue // ended since
		}
		fields := strings.Fields(string(text))
		if len(fields) < 2 {
			return 0, fmt.Errorf("parse statm %.40q", text)
		}
		pages, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("parse statm: %w", err)
		}
		sum += pages * uint64(os.Getpagesize())
	}
	return sum, nil
}

// linkBytes that have passed the devices of a process' network namespace, both ways,
// loopback left out, proc_pid_net(5).
func linkBytes(procfs string, pid int) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(procfs, strconv.Itoa(pid), "net/dev"))
	if err != nil {
		return 0, fmt.Errorf("read the counters of the container's devices: %w", err)
	}
	return parseLinkBytes(string(text))
}

func parseLinkBytes(text string) (uint64, error) {
	var sum uint64
	for line := range strings.Lines(text) {
		name, counters, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "lo" {
			continue
		}
		fields := strings.Fields(counters)
		const received, sent = 0, 8
		if len(fields) <= sent {
			return 0, fmt.Errorf("parse the counters of %s: %d fields", name, len(fields))
		}
		for _, i := range []int{received, sent} {
			n, err := strconv.ParseUint(fields[i], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("parse the counters of %s: %w", name, err)
			}
			sum += n
		}
	}
	return sum, nil
}

// reading of all that is counted, at one moment.
type reading struct {
	at      time.Time
	driver  usage
	machine machine
	rss     uint64
	link    uint64 // bytes that have passed the container's devices
}

func (l *lane) read() (reading, error) {
	r := reading{at: time.Now(), driver: usage{}}
	for _, p := range l.drivers {
		u, err := cpuUsage(procfs, p.pid())
		if err != nil {
			return r, err
		}
		for id, used := range u {
			r.driver[id] = used
		}
		rss, err := resident(procfs, p.pid())
		if err != nil {
			return r, err
		}
		r.rss += rss
	}
	var errLink, errMachine error
	if l.container > 0 {
		r.link, errLink = linkBytes(procfs, l.container)
	}
	r.machine, errMachine = readMachine()
	return r, errors.Join(errLink, errMachine)
}

// since an earlier reading: what the sample says of it.
func (r reading) since(before reading, s *Sample) error {
	cpu, err := r.driver.since(before.driver)
	if err != nil {
		return err
	}
	s.Elapsed = r.at.Sub(before.at).Seconds()
	s.CPUSeconds = cpu.Seconds()
	s.SystemCPUSeconds = (r.machine.busy - before.machine.busy).Seconds()
	s.StealSeconds = (r.machine.stolen - before.machine.stolen).Seconds()
	s.RSS = r.rss
	return nil
}
