package metrics

import (
	"maps"
	"slices"
)

// Limits of what one scrape can hold, far above what Slipway counts: a mistake in
// what is counted must not fill the memory of the one who watches.
const (
	maxReasons  = 64   // values of one "reason" or "limit" label
	maxPorts    = 4096 // published ports with labels of their own
	maxNetstack = 1024 // counters of gVisor
	maxName     = 100  // bytes of a name that comes from outside of this package
)

// overflow is the label of everything beyond a limit, summed up.
const overflow = "other"

// isName says whether a word can stand in the name of a metric, or be a reason.
func isName(s string) bool {
	if len(s) == 0 || len(s) > maxName || s[0] >= '0' && s[0] <= '9' {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_':
		default:
			return false
		}
	}
	return true
}

// bounded keeps the sum of a map but not more keys than the limit, in alphabetical
// order, and none that is not a plain word.
func bounded(in map[string]uint64, limit int) map[string]uint64 {
	if len(in) < limit && allNames(in) {
		return in // as always, so far
	}
	out := make(map[string]uint64, min(len(in), limit))
	for _, key := range slices.Sorted(maps.Keys(in)) {
		if _, known := out[key]; !isName(key) || !known && len(out) >= limit-1 {
			out[overflow] += in[key]
			continue
		}
		out[key] += in[key]
	}
	return out
}

func allNames(in map[string]uint64) bool {
	for key := range in {
		if !isName(key) {
			return false
		}
	}
	return true
}

// portLabels are what tells one published port from another.
type portLabels struct {
	protocol, listen, path string
	containerPort          uint16
}

// boundedPorts adds up ports with equal labels, and all beyond the limit under one.
func boundedPorts(in []Port, limit int) map[portLabels]Port {
	out := make(map[portLabels]Port, min(len(in), limit))
	for _, p := range in {
		labels := portLabels{protocol: p.Protocol, listen: p.Listen, path: p.Path, containerPort: p.ContainerPort}
		if _, known := out[labels]; !known && len(out) >= limit-1 {
			labels = portLabels{protocol: overflow, listen: overflow, path: overflow}
		}
		sum := out[labels]
		sum.Open += p.Open
		sum.Total += p.Total
		sum.Refused += p.Refused
		sum.FromBytes += p.FromBytes
		sum.ToBytes += p.ToBytes
		out[labels] = sum
	}
	return out
}
