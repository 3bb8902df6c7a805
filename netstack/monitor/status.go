package monitor

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/procfs"

	"slipway/netstack/netns"
)

// Status is what the engine cannot see from where it is locked up. What cannot be
// told is nil.
type Status struct {
	// DeviceDrops counts the frames of the container that the kernel dropped at the
	// device: its queue was full, or there was no engine. The container can delete the
	// device, and the counter with it.
	DeviceDrops *uint64 `json:"device_drops,omitempty"`
	Monitor     *Usage  `json:"monitor,omitempty"`
	Engine      *Usage  `json:"engine,omitempty"`
}

// Usage is what a process uses.
type Usage struct {
	CPU      time.Duration `json:"cpu"`      // user and system, since it started
	Resident uint64        `json:"resident"` // bytes of memory
}

// clockTick is the unit of CPU times in /proc, USER_HZ of every architecture of Linux
// that Go runs on (proc_pid_stat(5)).
const clockTick = 10 * time.Millisecond

// usageOf reads /proc, which may be mounted so that it tells nothing (hidepid).
func usageOf(proc procfs.Proc, err error) *Usage {
	if err != nil {
		return nil
	}
	stat, err := proc.Stat()
	if err != nil {
		return nil
	}
	return &Usage{CPU: time.Duration(stat.UTime+stat.STime) * clockTick, Resident: uint64(stat.ResidentMemory())}
}

func (m *monitor) replyStatus(e *engine, msg *message) error {
	if !m.cfg.Status {
		return fmt.Errorf("%w: the status asked for", errProtocol)
	}
	s := Status{Monitor: usageOf(procfs.Self()), Engine: usageOf(procfs.NewProc(e.cmd.Process.Pid))}
	if m.link != nil {
		if n, err := netns.Dropped(m.link, m.cfg.Link.Name); err == nil {
			s.DeviceDrops = &n
		}
	}
	return e.conn.send(kindStatus, msg.id, s, nil)
}

// statusAge is how long an answer of Status is used again.
const statusAge = time.Second

// Status asks the monitor what only it can see, at most a second ago. Only where Config.Status is set; asked
// for otherwise, the monitor ends the engine.
func (c *Client) Status(ctx context.Context) (Status, error) {
	c.mu.Lock()
	s, at := c.status, c.statusAt
	c.mu.Unlock()
	if !at.IsZero() && time.Since(at) < statusAge {
		return s, nil
	}
	msg, err := c.request(ctx, kindStatus, nil)
	if err != nil {
		return Status{}, fmt.Errorf("status: %w", err)
	}
	defer msg.closeFiles()
	s = Status{}
	if err := msg.decode(&s); err != nil {
		return Status{}, fmt.Errorf("status: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status, c.statusAt = s, time.Now()
	return s, nil
}
