package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"
)

func connectClient(b *bed, e ends, c Cell, t timing) []string {
	return b.generate(e.client, append(append([]string{"connect"}, askArgs(e, t)...), strconv.Itoa(c.Streams))...)
}

// generateConnects connects, asks once, and closes, over and over.
func generateConnects(dest netip.AddrPort, duration time.Duration, atOnce int) (*generated, error) {
	a := &askers{duration: duration}
	return a.run(atOnce, func() (func() (int, error), func(), error) {
		request := make([]byte, echoSize)
		request[0] = echoClose
		answer := make([]byte, echoSize+1)
		return func() (int, error) {
			conn, err := net.DialTimeout("tcp4", dest.String(), patience)
			if err != nil {
				return 0, err
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
				return 0, err
			}
			if _, err := conn.Write(request); err != nil {
				return 0, err
			}
			n, err := io.ReadFull(conn, answer) // one more: the server closes
			if !errors.Is(err, io.ErrUnexpectedEOF) || n != echoSize {
				return 0, fmt.Errorf("got %d bytes, want %d and the end: %w", n, echoSize, err)
			}
			return 2 * echoSize, nil
		}, func() {}, nil
	}), nil
}
