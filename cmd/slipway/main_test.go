package main

import (
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestHeeded: what the program was told to ignore it goes on to ignore.
func TestHeeded(t *testing.T) {
	signal.Ignore(syscall.SIGUSR2)
	defer signal.Reset(syscall.SIGUSR2)
	got := heeded(syscall.SIGUSR1, syscall.SIGTERM, syscall.SIGUSR2)
	if diff := cmp.Diff([]os.Signal{syscall.SIGUSR1, syscall.SIGTERM}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
