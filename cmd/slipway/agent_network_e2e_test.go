//go:build e2e

package main

import (
	"context"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// agentHear: hear NETWORK ADDR is what an answer at ADDR says.
func agentHear(args []string) (string, error) {
	said, _, err := hear(args[0], "", args[1])
	return said, err
}

// agentAnswer: answer PORT tells every client who it seems to be, by TCP and UDP, until
// the agent ends.
func agentAnswer(args []string) (string, error) {
	port := args[0]
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return "", err
	}
	c, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		l.Close()
		return "", err
	}
	go answerStreams(l)
	go func() { _ = answerPackets(c, port) }()
	return "", nil
}

func answerStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go answerConn(c, "tcp")
	}
}

// agentInterface: interface NAME is the interface's MTU and then its addresses, but for
// those that cannot be used before duplicate address detection is over.
func agentInterface(args []string) (string, error) {
	l, err := netlink.LinkByName(args[0])
	if err != nil {
		return "", err
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return "", err
	}
	words := []string{strconv.Itoa(l.Attrs().MTU)}
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE == 0 {
			words = append(words, a.IPNet.String())
		}
	}
	return strings.Join(words, " "), nil
}

// agentResolve: resolve NAME asks the resolvers of /etc/resolv.conf for the name's
// IPv4 addresses.
func agentResolve(args []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", args[0])
	if err != nil {
		return "", err
	}
	words := make([]string, 0, len(addrs))
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, " "), nil
}
