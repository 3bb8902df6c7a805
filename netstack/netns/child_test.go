package netns

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReap(t *testing.T) {
	tests := []struct {
		name  string
		argv  []string
		limit time.Duration
		want  error
	}{
		{"ends by itself", []string{"true"}, 10 * time.Second, nil},
		{"takes too long", []string{"sleep", "60"}, 20 * time.Millisecond, os.ErrDeadlineExceeded},
		{"killed", []string{"sh", "-c", "kill -9 $$"}, 10 * time.Second, errKilled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path, err := exec.LookPath(tt.argv[0])
			if err != nil {
				t.Skip(err)
			}
			pidfd := -1
			p, err := os.StartProcess(path, tt.argv, &os.ProcAttr{Sys: &syscall.SysProcAttr{PidFD: &pidfd, Pdeathsig: syscall.SIGKILL}})
			if err != nil {
				t.Fatal(err)
			}
			pid := p.Pid
			own, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			p.Release()
			if err := reap(pid, own, tt.limit); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("process %d is still there: %v", pid, err)
			}
		})
	}
}

func TestMerge(t *testing.T) {
	got := merge([]PortRange{{90, 99}, {1, 1}, {80, 89}, {2, 5}, {4, 4}, {65535, 65535}, {65530, 65535}})
	want := []PortRange{{1, 5}, {80, 99}, {65530, 65535}}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}
