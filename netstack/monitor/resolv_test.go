package monitor

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseResolvConf(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, conf string
		want       []string
	}{
		{"empty", "", []string{"127.0.0.1:53"}},
		{"usual", "# made by hand\nsearch example.com\nnameserver 192.0.2.1\nnameserver\t2001:db8::1\noptions edns0\n", []string{"192.0.2.1:53", "[2001:db8::1]:53"}},
		{"stub", "nameserver 127.0.0.53 # local\n", []string{"127.0.0.53:53"}},
		{"scoped", "nameserver fe80::1%lo\nnameserver fe80::2%7\n", []string{"[fe80::1%" + strconv.Itoa(lo.Index) + "]:53", "[fe80::2%7]:53"}},
		{"mapped", "nameserver ::ffff:192.0.2.1", []string{"192.0.2.1:53"}},
		{"bad lines", "nameserver\nnameserver example.com\nnameserver fe80::1%nosuch0\n;nameserver 192.0.2.9\nnameservers 192.0.2.8\nnameserver 192.0.2.7\n", []string{"192.0.2.7:53"}},
		{"many", strings.Repeat("nameserver 192.0.2.1\n", 100), slicesRepeat("192.0.2.1:53", maxResolvers)},
		{"long line", "nameserver 192.0.2.1\n" + strings.Repeat("x", 1<<17), []string{"192.0.2.1:53"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, texts(parseResolvConf([]byte(tt.conf)))); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func slicesRepeat(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

func texts(list []netip.AddrPort) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

// The host roams: the file is replaced, emptied, removed, written again.
func TestResolversChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	r := resolvers{path: path}
	steps := []struct {
		name string
		do   func() error
		want string
	}{
		{"missing", func() error { return nil }, "127.0.0.1:53"},
		{"made", func() error { return os.WriteFile(path, []byte("nameserver 192.0.2.1\n"), 0o600) }, "192.0.2.1:53"},
		{"unchanged", func() error { return nil }, "192.0.2.1:53"},
		{"replaced, same size", func() error {
			if err := os.WriteFile(path+"~", []byte("nameserver 192.0.2.2\n"), 0o600); err != nil {
				return err
			}
			return os.Rename(path+"~", path)
		}, "192.0.2.2:53"},
		{"written", func() error { return os.WriteFile(path, []byte("nameserver 2001:db8::1\n"), 0o600) }, "[2001:db8::1]:53"},
		{"removed", func() error { return os.Remove(path) }, "127.0.0.1:53"},
		{"made again", func() error { return os.WriteFile(path, []byte("nameserver 192.0.2.3\n"), 0o600) }, "192.0.2.3:53"},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatal(err)
		}
		list, err := r.current()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(texts(list), " "); got != s.want {
			t.Errorf("%s: got %s, want %s", s.name, got, s.want)
		}
	}
}
