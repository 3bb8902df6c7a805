package runtime

import (
	"os"
	"strings"
)

const congestionControl = "/proc/sys/net/ipv4/tcp_congestion_control"

// unpace chooses how the container's TCP meets congestion. A new network namespace
// inherits the machine's choice, and where that is BBR, its pacing costs a third of
// the throughput on a link that is local and loses nothing; the flow's way across
// the network is the host's socket's business, which keeps the machine's choice.
// Sockets keep what they are born with, so this comes before the first.
//
// It is an improvement and not a need: where the kernel refuses, all stays as it
// was.
func unpace() {
	now, err := os.ReadFile(congestionControl)
	if err != nil || !strings.HasPrefix(string(now), "bbr") {
		return
	}
	for _, name := range []string{"cubic", "reno"} {
		// A module that is not loaded, or not allowed to everybody, is refused.
		if os.WriteFile(congestionControl, []byte(name), 0) == nil {
			return
		}
	}
}
