//go:build e2e

package main

import "testing"

func TestRunExitStatus(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want int
	}{
		{[]string{"run", "--rm", "host", "true"}, 0},
		{[]string{"run", "--rm", "host", "sh", "-c", "exit 7"}, 7},
		{[]string{"run", "--rm", "host", "sh", "-c", "kill -9 $$"}, 0}, // pid 1 does not take it from inside
		{[]string{"run", "--rm", "host", "nosuchprogram"}, 127},
		{[]string{"run", "--rm", "host", "/etc/hostname"}, 126},
		{[]string{"run", "--nosuchflag", "host", "true"}, 125},
		{[]string{"run", "--rm", "nosuchimage", "true"}, 125},
	} {
		if got := slipway(t, tt.args...).wait(); got != tt.want {
			t.Errorf("slipway %q: exit status %d, want %d", tt.args, got, tt.want)
		}
	}
}
