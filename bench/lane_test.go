package bench

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeathExplains: what a driver's death brings about is seen before the death itself, the
// more so while a process that it left has its output open. The row names the death.
func TestDeathExplains(t *testing.T) {
	p, err := launch([]string{"sh", "-c", "sleep 60 & echo ready; wait"}, nil, "ready")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	if err := p.await(t.Context(), p.output.seen); err != nil {
		t.Fatal(err)
	}
	reset := errors.New("connection reset by peer")
	l := &lane{drivers: []*process{p}}
	if err := l.because(reset); !errors.Is(err, reset) {
		t.Errorf("while the driver runs: %v, want %v", err, reset)
	}
	if err := unix.Kill(p.pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := l.because(reset); !strings.Contains(err.Error(), "sh ended: signal: killed") {
		t.Errorf("after the driver was killed: %v, want its end", err)
	}
}
