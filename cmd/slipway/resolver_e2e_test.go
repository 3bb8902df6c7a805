//go:build e2e

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// fakeResolver answers every question, by UDP and TCP, with its own address.
type fakeResolver struct {
	udp net.PacketConn
	tcp net.Listener
}

func startResolver(t *testing.T, addr string) *fakeResolver {
	t.Helper()
	udp, err := net.ListenPacket("udp", at(addr, 53))
	if err != nil {
		t.Fatal(err)
	}
	r := &fakeResolver{udp: udp, tcp: hostListen(t, "tcp", at(addr, 53))}
	t.Cleanup(r.stop)
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := r.udp.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = r.udp.WriteTo(answerAs(addr, b[:n]), from)
			}
		}
	}()
	go func() {
		for {
			c, err := r.tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if q, err := readMessage(c); err == nil {
					_ = writeMessage(c, answerAs(addr, q))
				}
			}()
		}
	}()
	return r
}

func (r *fakeResolver) stop() {
	r.udp.Close()
	r.tcp.Close()
}

// answerAs is the answer to query of the resolver at addr; nil to what is no query.
func answerAs(addr string, query []byte) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil
	}
	m.Response = true
	m.Answers = []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1},
		Body:   &dnsmessage.AResource{A: answerOf(addr)},
	}}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// answerOf is the address of a resolver, for one of IPv6 an IPv4 address in its place.
func answerOf(addr string) [4]byte {
	if a := netip.MustParseAddr(addr); a.Is4() {
		return a.As4()
	}
	return [4]byte{192, 0, 2, 6}
}

// readMessage and writeMessage frame messages as RFC 1035 section 4.2.2 says.
func readMessage(r io.Reader) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeMessage(w io.Writer, m []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...))
	return err
}

// agentQuery: query NETWORK ADDR [WITHIN] asks a resolver, and returns the address that
// it answers. It asks once: what looks like failover is not its own.
func agentQuery(args []string) (string, error) {
	q, err := (&dnsmessage.Message{
		Header: dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName("www.example.com."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
		}},
	}).Pack()
	if err != nil {
		return "", err
	}
	within := 10 * time.Second
	if len(args) > 2 {
		if within, err = time.ParseDuration(args[2]); err != nil {
			return "", err
		}
	}
	c, err := net.DialTimeout(args[0], args[1], within)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	b := make([]byte, 1<<16)
	if strings.HasPrefix(args[0], "tcp") {
		if err := writeMessage(c, q); err != nil {
			return "", err
		}
		b, err = readMessage(c)
	} else {
		if _, err := c.Write(q); err != nil {
			return "", err
		}
		var n int
		n, err = c.Read(b)
		b = b[:n]
	}
	if err != nil {
		return "", err
	}
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		return "", err
	}
	if m.ID != 4711 || len(m.Answers) != 1 {
		return "", fmt.Errorf("the answer is %+v", m)
	}
	a, ok := m.Answers[0].Body.(*dnsmessage.AResource)
	if !ok {
		return "", fmt.Errorf("the answer is %+v", m)
	}
	return netip.AddrFrom4(a.A).String(), nil
}

// TestResolvers: questions go to the host's resolvers of the moment, by UDP and TCP,
// to the next one when the first is dead, and they do so without --host-access.
func TestResolvers(t *testing.T) {
	if !onPrivateHost(t) {
		return
	}
	const first, second, silent, other = "127.0.0.53", "127.0.0.54", "127.0.0.55", "127.0.0.56"
	one := startResolver(t, first)
	startResolver(t, second)
	startResolver(t, other)
	setResolvConf(t, "search example.com\nnameserver "+first+"\nnameserver "+second+"\n")
	socket := metricsSocket(t)
	a := newAgent(t, "--metrics", "unix:"+socket)
	asked := 0
	ask := func(network, addr string) reply {
		asked++
		return a.try("query", network, addr)
	}
	asks := func(want string, within time.Duration) {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			for _, addr := range []string{"10.0.2.3:53", "[fd00::3]:53"} {
				if r := ask(network, addr); r.Text != want || r.Took > within {
					t.Errorf("%s %s: %q, %q after %s; want %s within %s", network, addr, r.Text, r.Err, r.Took, want, within)
				}
			}
		}
	}
	asks(first, atOnce)

	one.stop() // its port is closed: an ICMP error
	asks(second, atOnce)

	// The host moves to another network, where the first resolver never answers.
	c, err := net.ListenPacket("udp", at(silent, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	setResolvConf(t, "nameserver "+silent+"\nnameserver "+other+"\n")
	eventually(t, patience, "an answer of the new resolver", func() bool { return ask("udp", "10.0.2.3:53").Text == other })
	asks(other, atOnce) // what is dead is asked last for a while

	m := scrape(t, socket)
	if m["slipway_dns_queries_total"] != strconv.Itoa(asked) || m["slipway_dns_failures_total"] != "0" {
		t.Errorf("%s questions and %s failures were counted, want %d and 0", m["slipway_dns_queries_total"], m["slipway_dns_failures_total"], asked)
	}
	// Nobody is left.
	setResolvConf(t, "nameserver "+first+"\n")
	eventually(t, patience, "a refusal", func() bool { return ask("tcp", "10.0.2.3:53").Errno == unix.ECONNREFUSED })
	if m := scrape(t, socket); m["slipway_dns_failures_total"] != "1" {
		t.Errorf("%s failures were counted, want 1", m["slipway_dns_failures_total"])
	}
}
