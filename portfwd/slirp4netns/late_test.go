package slirp4netns

import (
	"strings"
	"testing"
)

func TestLate(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts Options
		want string
	}{
		{"nothing", Options{MTU: 1500, APISocket: strings.Repeat("x", 107)}, ""},
		{"a long path", Options{MTU: 1500, APISocket: strings.Repeat("x", 108)}, "the specified API socket path is too long (>= 108)"},
		{"the least MTU", Options{MTU: 68}, ""},
		{"an MTU that no stack takes", Options{MTU: 67}, "slirp_new failed"},
		{"one that the kernel will refuse", Options{MTU: 67, Configure: true}, ""},
	} {
		got := ""
		if err := tt.opts.Late(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
