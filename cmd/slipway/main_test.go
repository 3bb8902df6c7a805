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
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	got := heeded(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if diff := cmp.Diff([]os.Signal{syscall.SIGINT, syscall.SIGTERM}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
