package monitor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// resolvConf is where the host's resolvers are listed (resolv.conf(5)).
const resolvConf = "/etc/resolv.conf"

// Bounds of what is taken from resolv.conf.
const (
	maxResolvers  = 8
	maxResolvConf = 64 << 10 // bytes
)

// resolvers reads the host's resolvers, again whenever the file has changed: a
// laptop roams. It is used by one goroutine.
type resolvers struct {
	path string
	seen os.FileInfo
	list []netip.AddrPort
}

// current returns the resolvers that hold now.
func (r *resolvers) current() ([]netip.AddrPort, error) {
	fi, err := os.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		r.seen = nil
		return parseResolvConf(nil), nil
	}
	if err != nil {
		return nil, fmt.Errorf("resolvers: %w", err)
	}
	if r.seen != nil && os.SameFile(fi, r.seen) && fi.ModTime().Equal(r.seen.ModTime()) && fi.Size() == r.seen.Size() {
		return r.list, nil
	}
	f, err := os.Open(r.path)
	if err != nil {
		return nil, fmt.Errorf("resolvers: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return nil, fmt.Errorf("resolvers: read %s: %w", r.path, err)
	}
	r.seen, r.list = fi, parseResolvConf(b)
	return r.list, nil
}

// parseResolvConf returns the nameserver lines' addresses, with port 53. Without
// any it is the local host, as in the C library. The zone of a link-local address
// is an interface index: the engine cannot look up names of interfaces.
func parseResolvConf(b []byte) []netip.AddrPort {
	var out []netip.AddrPort
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() && len(out) < maxResolvers {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(fields[1])
		if err != nil {
			continue
		}
		a = a.Unmap()
		if a.Zone() != "" {
			index, err := zoneIndex(a.Zone())
			if err != nil {
				continue
			}
			a = a.WithZone(strconv.Itoa(index))
		}
		out = append(out, netip.AddrPortFrom(a, 53))
	}
	if len(out) == 0 {
		out = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return out
}
