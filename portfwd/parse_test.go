package portfwd

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var compareAddr = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})

func tcp(ip string, host, container uint16) Spec {
	return spec(TCP, ip, host, container)
}

func spec(proto Proto, ip string, host, container uint16) Spec {
	s := Spec{Proto: proto, HostPort: host, ContainerPort: container}
	if ip != "" {
		s.HostIP = netip.MustParseAddr(ip)
	}
	return s
}

var good = []struct {
	values string // separated by spaces
	want   []Spec
}{
	{"", nil},
	{"80", []Spec{tcp("", 0, 80)}},
	{":80", []Spec{tcp("", 0, 80)}},
	{"0:80", []Spec{tcp("", 0, 80)}},
	{"8080:80", []Spec{tcp("", 8080, 80)}},
	{"8080:80/tcp", []Spec{tcp("", 8080, 80)}},
	{"8080:80/TCP", []Spec{tcp("", 8080, 80)}},
	{"53:53/udp", []Spec{spec(UDP, "", 53, 53)}},
	{"127.0.0.1:8080:80", []Spec{tcp("127.0.0.1", 8080, 80)}},
	{"127.0.0.2::80", []Spec{tcp("127.0.0.2", 0, 80)}},
	{"0.0.0.0:8080:80", []Spec{tcp("0.0.0.0", 8080, 80)}},
	{"[::1]:8080:80", []Spec{tcp("::1", 8080, 80)}},
	{"::1:8080:80", []Spec{tcp("::1", 8080, 80)}},
	{"[::]::80/udp", []Spec{spec(UDP, "::", 0, 80)}},
	{"[::ffff:127.0.0.1]:8080:80", []Spec{tcp("127.0.0.1", 8080, 80)}},
	{"8000-8002:80-82", []Spec{tcp("", 8000, 80), tcp("", 8001, 81), tcp("", 8002, 82)}},
	{"80-81", []Spec{tcp("", 0, 80), tcp("", 0, 81)}},
	{"8000-8000:80", []Spec{tcp("", 8000, 80)}},
	{"65535:65535", []Spec{tcp("", 65535, 65535)}},
	// The same port for another protocol, address or family is another socket.
	{"53:53 53:53/udp", []Spec{tcp("", 53, 53), spec(UDP, "", 53, 53)}},
	{"127.0.0.1:80:80 127.0.0.2:80:80 [::1]:80:80", []Spec{tcp("127.0.0.1", 80, 80), tcp("127.0.0.2", 80, 80), tcp("::1", 80, 80)}},
	{"0.0.0.0:80:80 [::]:80:80", []Spec{tcp("0.0.0.0", 80, 80), tcp("::", 80, 80)}},
	{"80 80", []Spec{tcp("", 0, 80), tcp("", 0, 80)}},
}

var bad = []struct {
	values string
	want   error
	says   string // what the text has to name
}{
	{":", ErrSyntax, `":"`},
	{"8080:", ErrSyntax, "8080:"},
	{"http", ErrSyntax, "http"},
	{"abc:80", ErrSyntax, "abc"},
	{"65536:80", ErrSyntax, "65536"},
	{"80:65536", ErrSyntax, "65536"},
	{"80:0", ErrSyntax, "container port 0"},
	{"-1:80", ErrSyntax, "-1"},
	{"8010-8000:80-90", ErrSyntax, "8010-8000"},
	{"8000-8010:80-85", ErrSyntax, "8000-8010"},
	{"8000-8010:80", ErrSyntax, "same length"},
	{"8000:80-85", ErrSyntax, "80-85"},
	{"0-2:80-82", ErrSyntax, "begins with 0"},
	{"300.0.0.1:80:80", ErrSyntax, "300.0.0.1"},
	{"localhost:80:80", ErrSyntax, "localhost"},
	{"[::1:80:80", ErrSyntax, "[::1"},
	{"[]:80:80", ErrSyntax, "[]"},
	{"[fe80::1%eth0]:80:80", ErrSyntax, "fe80::1%eth0"},
	{"224.0.0.1:80:80", ErrSyntax, "224.0.0.1"},
	{"[ff02::1]:80:80", ErrSyntax, "ff02::1"},
	{"255.255.255.255:80:80", ErrSyntax, "255.255.255.255"},
	{"80:80/icmp", ErrSyntax, "icmp"},
	{"80:80/tcp/udp", ErrSyntax, "tcp/udp"},
	{"80:80/sctp", ErrUnsupported, "sctp"},
	{"8080:80 8080:81", ErrConflict, "8080:80/tcp and 8080:81/tcp"},
	{"8080:80 127.0.0.1:8080:81", ErrConflict, "8080:80/tcp and 127.0.0.1:8080:81/tcp"},
	{"127.0.0.1:8080:81 8080:80", ErrConflict, "127.0.0.1:8080:81/tcp and 8080:80/tcp"},
	{"[::1]:8080:81/udp [::]:8080:80/udp", ErrConflict, "[::1]:8080:81/udp and [::]:8080:80/udp"},
	{"[::]:8080:80 [::1]:8080:81", ErrConflict, "[::]:8080:80/tcp and [::1]:8080:81/tcp"},
	{"127.0.0.1:8080:80 127.0.0.1:8080:80", ErrConflict, "127.0.0.1:8080:80/tcp"},
	{"1-16385", ErrTooMany, "16384"},
	{"1-16384:1-16384 1:1/udp", ErrTooMany, "16385"},
}

func TestParse(t *testing.T) {
	for _, tc := range good {
		t.Run(tc.values, func(t *testing.T) {
			got, err := Parse(strings.Fields(tc.values))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, compareAddr); diff != "" {
				t.Errorf("Parse(%q) (-want +got):\n%s", tc.values, diff)
			}
		})
	}
	for _, tc := range bad {
		t.Run(tc.values, func(t *testing.T) {
			got, err := Parse(strings.Fields(tc.values))
			if !errors.Is(err, tc.want) || got != nil {
				t.Fatalf("Parse(%q): %v, %v, want %v", tc.values, got, err, tc.want)
			}
			if !strings.Contains(err.Error(), tc.says) || strings.ContainsRune(err.Error(), '\n') {
				t.Errorf("Parse(%q): %v: want one line that names %q", tc.values, err, tc.says)
			}
			values := strings.Fields(tc.values)
			if last := values[len(values)-1]; !strings.Contains(err.Error(), strconv.Quote(last)) {
				t.Errorf("Parse(%q): %v: does not name the value %q", tc.values, err, last)
			}
		})
	}
	if _, err := Parse([]string{""}); !errors.Is(err, ErrSyntax) {
		t.Errorf("Parse of an empty value: %v, want %v", err, ErrSyntax)
	}
	if specs, err := Parse([]string{"1-16384:1-16384"}); err != nil || len(specs) != MaxPorts {
		t.Errorf("Parse of %d ports: %d, %v", MaxPorts, len(specs), err)
	}
}

func TestSpecForms(t *testing.T) {
	for _, tc := range []struct {
		spec          Spec
		value, people string
		addrs         []netip.AddrPort
	}{
		{tcp("", 8080, 80), "8080:80/tcp", "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp",
			[]netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:8080"), netip.MustParseAddrPort("[::]:8080")}},
		{spec(UDP, "", 0, 53), ":53/udp", "0.0.0.0:0->53/udp, [::]:0->53/udp",
			[]netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:0"), netip.MustParseAddrPort("[::]:0")}},
		{tcp("127.0.0.1", 0, 80), "127.0.0.1::80/tcp", "127.0.0.1:0->80/tcp",
			[]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}},
		{tcp("::1", 8080, 80), "[::1]:8080:80/tcp", "[::1]:8080->80/tcp",
			[]netip.AddrPort{netip.MustParseAddrPort("[::1]:8080")}},
	} {
		if got := tc.spec.String(); got != tc.value {
			t.Errorf("String: %q, want %q", got, tc.value)
		}
		if got := tc.spec.Arrow(); got != tc.people {
			t.Errorf("Arrow: %q, want %q", got, tc.people)
		}
		if diff := cmp.Diff(tc.addrs, tc.spec.Addrs(), compareAddr); diff != "" {
			t.Errorf("Addrs of %v (-want +got):\n%s", tc.spec, diff)
		}
	}
}

// expected reads one value by the grammar of the documentation, a second time and
// in another way than Parse. ok is false for what Parse shall refuse.
func expected(value string) (specs []Spec, ok bool) {
	m := grammar.FindStringSubmatch(value)
	if m == nil {
		return nil, false
	}
	ip, host, container, proto := m[1]+m[2], m[3], m[4], strings.ToLower(m[5])
	var addr netip.Addr
	if ip != "" {
		var err error
		if addr, err = netip.ParseAddr(ip); err != nil || addr.Zone() != "" || addr.IsMulticast() || addr.Unmap().String() == "255.255.255.255" {
			return nil, false
		}
	}
	if proto == "" {
		proto = "tcp"
	}
	c1, c2, ok1 := bounds(container)
	h1, h2, ok2 := 0, 0, true
	if host != "" {
		h1, h2, ok2 = bounds(host)
	}
	n := c2 - c1 + 1
	if !ok1 || !ok2 || c1 == 0 || n > MaxPorts || host != "" && h2-h1+1 != n || host != "" && h1 == 0 && n > 1 {
		return nil, false
	}
	for i := range n {
		s := Spec{Proto: Proto(proto), HostIP: addr.Unmap(), HostPort: uint16(h1), ContainerPort: uint16(c1 + i)}
		if host != "" {
			s.HostPort += uint16(i)
		}
		specs = append(specs, s)
	}
	return specs, true
}

var grammar = regexp.MustCompile(`^(?:(?:(?:\[([^\[\]]+)\]|([^\[\]]*)):)?([0-9+-]*):)?([0-9+-]+)(?:/((?i:tcp|udp)?))?$`)

// bounds reads "N" or "N-M"; as Parse does, it takes a plus sign.
func bounds(s string) (first, last int, ok bool) {
	a, b, ranged := strings.Cut(s, "-")
	if !ranged {
		b = a
	}
	first, err1 := strconv.Atoi(a)
	last, err2 := strconv.Atoi(b)
	return first, last, err1 == nil && err2 == nil && first >= 0 && last >= first && last <= 65535
}

func FuzzParse(f *testing.F) {
	for _, tc := range good {
		f.Add(tc.values)
	}
	for _, tc := range bad {
		f.Add(tc.values)
	}
	f.Fuzz(func(t *testing.T, text string) {
		values := strings.Split(text, " ")
		got, err := Parse(values)
		var want []Spec
		all := true
		for _, v := range values {
			specs, ok := expected(v)
			want, all = append(want, specs...), all && ok
		}
		if err != nil {
			if got != nil {
				t.Errorf("Parse(%q): %v and %v", values, got, err)
			}
			if all && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrTooMany) {
				t.Errorf("Parse(%q): %v, want %v", values, err, want)
			}
			if errors.Is(err, ErrConflict) && !clash(want) {
				t.Errorf("Parse(%q): %v, but nothing clashes", values, err)
			}
			return
		}
		if !all {
			t.Fatalf("Parse(%q): %v, want an error", values, got)
		}
		if diff := cmp.Diff(want, got, compareAddr); diff != "" {
			t.Fatalf("Parse(%q) (-want +got):\n%s", values, diff)
		}
		if len(got) > MaxPorts {
			t.Fatalf("Parse(%q): %d ports, at most %d", values, len(got), MaxPorts)
		}
		got = got[max(0, len(got)-100):] // the rest would only take time
		if clash(got) {
			t.Fatalf("Parse(%q): some clash: %v", values, got)
		}
		again := make([]string, len(got))
		for i, s := range got {
			again[i] = s.String()
		}
		if reparsed, err := Parse(again); err != nil || !cmp.Equal(got, reparsed, compareAddr, cmpopts.EquateEmpty()) {
			t.Fatalf("Parse(%q): %v, %v, want %v", again, reparsed, err, got)
		}
	})
}

// clash compares every two specs: no two sockets may want the same address.
func clash(specs []Spec) bool {
	seen := map[string][]netip.Addr{}
	for _, s := range specs {
		if s.HostPort == 0 {
			continue
		}
		for _, a := range s.Addrs() {
			key := fmt.Sprint(s.Proto, a.Port(), a.Addr().Is4())
			for _, other := range seen[key] {
				if other == a.Addr() || other.IsUnspecified() || a.Addr().IsUnspecified() {
					return true
				}
			}
			seen[key] = append(seen[key], a.Addr())
		}
	}
	return false
}
