package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func dnsServer(b *bed, e ends, _ Cell) command {
	return command{b.generate(e.server, "dns-server", anyAddress(otherPort)), serving}
}

func dnsClient(b *bed, e ends, c Cell, t timing) []string {
	return b.generate(e.client, append(append([]string{"dns"}, askArgs(e, t)...), strconv.Itoa(c.Streams))...)
}

// serveDNS answers every question with one address for documentation, RFC 5737, until
// the process is killed.
func serveDNS(addr string, out io.Writer) error {
	conn, err := net.ListenPacket("udp4", addr)
	if err != nil {
		return fmt.Errorf("%w: %w", errGenerate, err)
	}
	defer conn.Close()
	if err := announce(out); err != nil {
		return err
	}
	query := make([]byte, 512) // RFC 1035 section 4.2.1
	for {
		n, from, err := conn.ReadFrom(query)
		if err != nil {
			return fmt.Errorf("%w: %w", errGenerate, err)
		}
		answer, err := answerOf(query[:n])
		if err != nil {
			continue // not a query
		}
		if _, err := conn.WriteTo(answer, from); err != nil {
			return fmt.Errorf("%w: %w", errGenerate, err)
		}
	}
}

func answerOf(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	if m.Response || len(m.Questions) != 1 {
		return nil, errors.New("no single question")
	}
	m.Response, m.RecursionAvailable = true, true
	m.Answers = []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60},
		Body:   &dnsmessage.AResource{A: netip.MustParseAddr("192.0.2.53").As4()},
	}}
	return m.Pack()
}

// generateQueries asks a resolver, each asker from a socket of its own. An answer that
// does not come in a second counts as failed.
func generateQueries(dest netip.AddrPort, duration time.Duration, atOnce int) (*generated, error) {
	a := &askers{duration: duration}
	return a.run(atOnce, func() (func() (int, error), func(), error) {
		conn, err := net.Dial("udp4", dest.String())
		if err != nil {
			return nil, nil, err
		}
		q := dnsmessage.Message{
			Header: dnsmessage.Header{RecursionDesired: true},
			Questions: []dnsmessage.Question{{
				Name: dnsmessage.MustNewName("www.example.com."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
			}},
		}
		answer := make([]byte, 512)
		return func() (int, error) {
			q.ID++
			query, err := q.Pack()
			if err != nil {
				return 0, err
			}
			if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
				return 0, err
			}
			if _, err := conn.Write(query); err != nil {
				return 0, err
			}
			for {
				n, err := conn.Read(answer)
				if err != nil {
					return 0, err
				}
				var got dnsmessage.Message
				if err := got.Unpack(answer[:n]); err != nil || !got.Response || len(got.Answers) != 1 {
					return 0, fmt.Errorf("an answer that is none: %x", answer[:n])
				}
				if got.ID == q.ID { // else late: that of a query that counts as failed
					return len(query) + n, nil
				}
			}
		}, func() { conn.Close() }, nil
	}), nil
}
