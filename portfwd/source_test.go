package portfwd

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestSource: who may appear as themselves, and who is shown as the gateway.
func TestSource(t *testing.T) {
	cfg := Config{Guest4: guest4, Guest6: guest6, Gateway4: gateway4, Gateway6: gateway6, Prefixes: prefixes}
	outside := Config{Guest4: netip.MustParseAddr("203.0.113.9"), Gateway4: gateway4}
	for _, tc := range []struct {
		cfg     *Config
		client  string
		gateway netip.Addr
		want    string
	}{
		{&cfg, "198.51.100.7:4000", gateway4, "198.51.100.7:4000"},
		{&cfg, "[::ffff:198.51.100.7]:4000", gateway4, "198.51.100.7:4000"},
		{&cfg, "192.168.1.5:4000", gateway4, "192.168.1.5:4000"},
		{&cfg, "10.0.3.1:4000", gateway4, "10.0.3.1:4000"},
		{&cfg, "127.0.0.1:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "127.9.9.9:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "[::ffff:127.0.0.1]:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "169.254.1.1:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "10.0.2.100:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "10.0.2.77:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "0.0.0.0:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "0.1.2.3:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "224.0.0.1:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "240.0.0.1:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "255.255.255.255:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "[2001:db8::7]:4000", gateway6, "[2001:db8::7]:4000"},
		{&cfg, "[fd01::7]:4000", gateway6, "[fd01::7]:4000"},
		{&cfg, "[::1]:4000", gateway6, "[fd00::2]:4000"},
		{&cfg, "[::]:4000", gateway6, "[fd00::2]:4000"},
		{&cfg, "[fe80::1%eth0]:4000", gateway6, "[fd00::2]:4000"},
		{&cfg, "[ff02::1]:4000", gateway6, "[fd00::2]:4000"},
		{&cfg, "[fd00::100]:4000", gateway6, "[fd00::2]:4000"},
		{&cfg, "[fd00::77]:4000", gateway6, "[fd00::2]:4000"},
		{&cfg, "[::127.0.0.1]:4000", gateway6, "[fd00::2]:4000"},
		{&cfg, "[::ffff:198.51.100.7]:4000", gateway6, "[fd00::2]:4000"},
		// Of the other family: there is no such address there.
		{&cfg, "[2001:db8::7]:4000", gateway4, "10.0.2.2:4000"},
		{&cfg, "198.51.100.7:4000", gateway6, "[fd00::2]:4000"},
		// The container's own address outside of every prefix.
		{&outside, "203.0.113.9:4000", gateway4, "10.0.2.2:4000"},
		{&outside, "203.0.113.8:4000", gateway4, "203.0.113.8:4000"},
	} {
		if got := tc.cfg.source(netip.MustParseAddrPort(tc.client), tc.gateway); got.String() != tc.want {
			t.Errorf("source(%s) with gateway %v: %v, want %s", tc.client, tc.gateway, got, tc.want)
		}
	}
}

func TestRoutes(t *testing.T) {
	both := Config{Guest4: guest4, Guest6: guest6, Gateway4: gateway4, Gateway6: gateway6, Prefixes: prefixes}
	only4, only6 := both, both
	only4.Guest6, only4.Gateway6 = netip.Addr{}, netip.Addr{}
	only6.Guest4, only6.Gateway4 = netip.Addr{}, netip.Addr{}
	for _, tc := range []struct {
		name   string
		cfg    *Config
		client string
		want   []string
	}{
		{"IPv4", &both, "198.51.100.7:4000", []string{"198.51.100.7:4000>10.0.2.100:80"}},
		{"mapped", &both, "[::ffff:198.51.100.7]:4000", []string{"198.51.100.7:4000>10.0.2.100:80"}},
		{"IPv6", &both, "[2001:db8::7]:4000", []string{"[2001:db8::7]:4000>[fd00::100]:80", "10.0.2.2:4000>10.0.2.100:80"}},
		{"IPv4 to IPv4 only", &only4, "198.51.100.7:4000", []string{"198.51.100.7:4000>10.0.2.100:80"}},
		{"IPv6 to IPv4 only", &only4, "[2001:db8::7]:4000", []string{"10.0.2.2:4000>10.0.2.100:80"}},
		{"IPv4 to IPv6 only", &only6, "198.51.100.7:4000", []string{"[fd00::2]:4000>[fd00::100]:80"}},
		{"IPv6 to IPv6 only", &only6, "[2001:db8::7]:4000", []string{"[2001:db8::7]:4000>[fd00::100]:80"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			ways := tc.cfg.routes(netip.MustParseAddrPort(tc.client), Spec{ContainerPort: 80})
			for _, w := range ways.Way[:ways.N] {
				got = append(got, w.From.String()+">"+w.To.String())
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("routes(%s) (-want +got):\n%s", tc.client, diff)
			}
		})
	}
}
