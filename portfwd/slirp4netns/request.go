package slirp4netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
)

// maxRequest is where a request becomes too large.
const maxRequest = 4096

// ErrNoForward is what Forwards.Remove answers to an ID that is not there.
var ErrNoForward = errors.New("no such forward")

// badRequest is what the client is told; cause, which may be nil, stays here.
type badRequest struct {
	desc  string
	cause error
}

func (b *badRequest) Error() string {
	if b.cause == nil {
		return b.desc
	}
	return fmt.Sprintf("%s: %v", b.desc, b.cause)
}

func (b *badRequest) Unwrap() error { return b.cause }

const unparsable = "cannot parse JSON"

func bad(desc string) error { return &badRequest{desc: desc} }

var (
	errTooLarge = bad("too large message")
	errParse    = bad(unparsable)
	errObject   = bad("json_object() failed")
)

// errIncomplete: more may follow that makes a value of it.
var errIncomplete = errors.New("incomplete")

// object is a JSON object by its exact keys: encoding/json would match the fields of a
// struct in any case of letters.
type object map[string]json.RawMessage

// parse returns the first value of b, which must be an object. What follows it is
// ignored.
func parse(b []byte) (object, error) {
	var value json.RawMessage
	err := json.NewDecoder(bytes.NewReader(b)).Decode(&value)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, errIncomplete
	case err != nil:
		return nil, errParse
	}
	var o object
	if err := json.Unmarshal(value, &o); err != nil || o == nil {
		return nil, errObject
	}
	return o, nil
}

// has tells that the key is there and not null.
func (o object) has(key string) bool {
	v, ok := o[key]
	return ok && string(v) != "null"
}

func (o object) text(key string) (string, bool) {
	var s string
	if !o.has(key) || json.Unmarshal(o[key], &s) != nil {
		return "", false
	}
	return s, true
}

// whole returns a number without a fraction from 0 to limit.
func (o object) whole(key string, limit int) (int, bool) {
	var f float64
	if !o.has(key) || json.Unmarshal(o[key], &f) != nil || f != math.Trunc(f) || f < 0 || f > float64(limit) {
		return 0, false
	}
	return int(f), true
}

// addr returns an address of family f: def where the key is missing, the text is empty,
// or the address is the unspecified one.
func (o object) addr(key string, f family, def netip.Addr) (netip.Addr, bool) {
	if !o.has(key) {
		return def, def.IsValid()
	}
	s, ok := o.text(key)
	if ok && s == "" {
		return def, def.IsValid()
	}
	a, err := netip.ParseAddr(s)
	if !ok || err != nil || !f.has(a) || a.Is4In6() || a.Zone() != "" {
		return netip.Addr{}, false
	}
	if a.IsUnspecified() {
		return def, def.IsValid()
	}
	return a, true
}

// handle runs one request and returns what answers it.
func (s *Server) handle(ctx context.Context, req object) (any, error) {
	execute, ok := req.text("execute")
	if !ok {
		return nil, bad("no execute found")
	}
	var args object
	if json.Unmarshal(req["arguments"], &args) != nil {
		args = nil // as if there were none
	}
	switch execute {
	case "add_hostfwd":
		return s.add(ctx, args)
	case "list_hostfwd":
		return s.list(), nil
	case "remove_hostfwd":
		return s.remove(args)
	}
	return nil, bad("unknown execute")
}

func (s *Server) add(ctx context.Context, args object) (any, error) {
	forward, err := s.forward(args)
	if err != nil {
		return nil, err
	}
	started, err := s.cfg.Forwards.Add(ctx, forward)
	if err != nil {
		return nil, &badRequest{"add_hostfwd: slirp_add_hostfwd failed", err}
	}
	added := added{ID: started.ID}
	if forward.Host.Port() == 0 {
		added.HostPort = started.Host.Port()
	}
	return reply{Return: added}, nil
}

// forward reads the arguments of add_hostfwd. Other than upstream it wants a proto,
// which it crashed without, and a whole port, of which it took the lowest 16 bits.
func (s *Server) forward(args object) (Forward, error) {
	wrong := func(key string) error { return bad("add_hostfwd: bad arguments." + key) }

	name, ok := args.text("proto")
	proto := Proto(name)
	f := proto.family()
	if !ok || f == 0 {
		return Forward{}, wrong("proto")
	}
	anyHost, guest := netip.IPv4Unspecified(), s.cfg.Guest
	if f == ipv6 {
		anyHost, guest = netip.IPv6Unspecified(), s.cfg.Guest6
	}
	hostAddr, ok := args.addr("host_addr", f, anyHost)
	if !ok {
		return Forward{}, wrong("host_addr")
	}
	hostPort, ok := args.whole("host_port", math.MaxUint16)
	if !ok {
		return Forward{}, wrong("host_port")
	}
	guestAddr, ok := args.addr("guest_addr", f, guest)
	if !ok {
		return Forward{}, wrong("guest_addr")
	}
	guestPort, ok := args.whole("guest_port", math.MaxUint16)
	if !ok || guestPort == 0 {
		return Forward{}, wrong("guest_port")
	}
	return Forward{
		Proto: proto,
		Host:  netip.AddrPortFrom(hostAddr, uint16(hostPort)),
		Guest: netip.AddrPortFrom(guestAddr, uint16(guestPort)),
	}, nil
}

// list answers in both shapes that clients know: upstream's manual has the entries
// inside "return", its program outside.
func (s *Server) list() any {
	forwards := s.cfg.Forwards.List()
	all := entries{Entries: make([]entry, len(forwards))}
	for i, f := range forwards {
		all.Entries[i] = entry{
			ID: f.ID, Proto: f.Proto,
			HostAddr: f.Host.Addr(), HostPort: f.Host.Port(),
			GuestAddr: f.Guest.Addr(), GuestPort: f.Guest.Port(),
		}
	}
	return listed{Return: all, entries: all}
}

func (s *Server) remove(args object) (any, error) {
	id, ok := args.whole("id", math.MaxInt32)
	if !ok {
		return nil, bad("remove_hostfwd: bad arguments.id")
	}
	if err := s.cfg.Forwards.Remove(id); err != nil {
		desc := "remove_hostfwd: slirp_remove_hostfwd failed"
		if errors.Is(err, ErrNoForward) {
			desc = "remove_hostfwd: bad arguments.id"
		}
		return nil, &badRequest{desc, err}
	}
	return reply{Return: struct{}{}}, nil
}

// The replies. Their order of keys is upstream's.
type (
	reply struct {
		Return any `json:"return"`
	}
	added struct {
		ID       int    `json:"id"`
		HostPort uint16 `json:"host_port,omitempty"`
	}
	listed struct {
		Return entries `json:"return"`
		entries
	}
	entries struct {
		Entries []entry `json:"entries"`
	}
	entry struct {
		ID        int        `json:"id"`
		Proto     Proto      `json:"proto"`
		HostAddr  netip.Addr `json:"host_addr"`
		HostPort  uint16     `json:"host_port"`
		GuestAddr netip.Addr `json:"guest_addr"`
		GuestPort uint16     `json:"guest_port"`
	}
	failure struct {
		Error struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
)
