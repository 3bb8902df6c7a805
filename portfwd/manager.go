package portfwd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"slipway/netstack/relay"
)

// Stack is the network on the other side of the container's TAP;
// [slipway/netstack.Stack] is one.
type Stack interface {
	// ForwardTCP connects to dst inside the container as src, and relays client until
	// both directions have ended, which closes client, or until ctx ends. The flow is
	// counted in bytes. An error that wraps ECONNREFUSED, the container's refusal,
	// leaves client open for another try.
	ForwardTCP(ctx context.Context, client *net.TCPConn, src, dst netip.AddrPort, bytes *relay.Bytes) error
	// PublishUDP serves copies of sockets until the Closer is closed. Datagrams go to to4
	// or to6, whichever is of the client's family. A Closer with the Stats of
	// [slipway/netstack/udp.Publication] tells what the port carried.
	PublishUDP(sockets []*os.File, to4, to6 netip.AddrPort) (io.Closer, error)
}

// Limits of a Manager; a zero field takes the default.
type Limits struct {
	// Connections is how many connections of all TCP ports are served at once. The last
	// tenth is not for a client address that has the others. More wait, see the package
	// comment. Default DefaultConnections.
	Connections int
	// Sockets is how many sockets of each family are kept ready in the namespace, at
	// most 512. Default 64, and up to eight times as many while clients come in a rush.
	Sockets int
	// Connect is how long a client waits for its turn, and then how long the container has
	// to answer. Default 10 s.
	Connect time.Duration
}

// Files is how many descriptors the connections of TCP ports take by the kernel path, those
// that wait for their turn included.
func (l Limits) Files() int {
	n := cmp.Or(l.Connections, DefaultConnections)
	return 2*n + room(n)
}

// maxSockets is what one call of Namespace.Sockets may be asked for.
const maxSockets = 512

// maxLoops bounds the threads of the kernel path.
const maxLoops = 8

// Config is what a Manager needs; of Guest4 and Guest6 at least one.
type Config struct {
	Stack     Stack
	Namespace Namespace
	// Kernel takes the kernel path for TCP, which needs Namespace and the rules of
	// netns.KeepReplies; otherwise TCP goes by Stack, as UDP does in any case.
	Kernel             bool
	Guest4, Guest6     netip.Addr     // the container's addresses
	Gateway4, Gateway6 netip.Addr     // shown for clients that may not appear as themselves
	Prefixes           []netip.Prefix // the container's networks
	Limits             Limits
	// Raise says how a person raises Limits.Connections, for the log.
	Raise string
	Log   *slog.Logger // nil: none
}

// Port is one published port, as List shows it.
type Port struct {
	Spec  Spec
	Bound []netip.AddrPort // with the port that the kernel chose
	Path  string           // PathKernel or PathTAP
	Stats Stats
}

// String returns the port as Docker shows it: 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp.
func (p Port) String() string { return arrow(p.Spec, p.Bound) }

// The ways from a listener to the container, see the package comment.
const (
	PathKernel = "kernel"
	PathTAP    = "tap"
)

// Stats are numbers of one port since it was added.
type Stats struct {
	Flows     uint64 // connections made by the kernel path, or given to the stack by the other; UDP: sessions
	Open      uint64 // clients being served now; UDP: sessions
	ToGuest   uint64 // bytes, while they move
	FromGuest uint64

	Refused      uint64 // the container refused: nobody listens there
	TimedOut     uint64 // the container did not answer in Limits.Connect, or no socket came
	Failed       uint64 // other failures to connect
	Limited      uint64 // reset for want of a place, see Limits.Connections
	AcceptErrors uint64 // no descriptors or memory; the client stayed in the backlog
}

// ErrClosed is what Add returns after Close.
var ErrClosed = errors.New("port manager closed")

// Manager serves published ports. It is safe for concurrent use.
type Manager struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	pools   map[int]*pool // of the kernel path, by address family
	places  *places       // of TCP
	limited atomic.Uint64 // clients that were reset for want of a place
	crowded sync.Once     // a client found none

	acceptErrors atomic.Uint64 // of all ports

	mu     sync.Mutex // guards what follows
	closed bool
	last   int // id given last
	// splicer serves the kernel path. It is there from the first port on, before the pools
	// are filled.
	splicer *relay.Splicer
	ports   []*port
}

// New returns a Manager without ports. Close it.
func New(cfg Config) *Manager {
	if cfg.Limits.Connections <= 0 {
		cfg.Limits.Connections = DefaultConnections
	}
	if cfg.Limits.Sockets <= 0 {
		cfg.Limits.Sockets = 64
	}
	if cfg.Limits.Connect <= 0 {
		cfg.Limits.Connect = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{cfg: cfg, pools: map[int]*pool{}}
	m.places = newPlaces(cfg.Limits.Connections, m.sayFull, m.freed)
	size := min(cfg.Limits.Sockets, maxSockets)
	if cfg.Kernel && cfg.Guest4.IsValid() {
		m.pools[syscall.AF_INET] = newPool(cfg.Namespace, syscall.AF_INET, size, m.refilled, cfg.Log)
	}
	if cfg.Kernel && cfg.Guest6.IsValid() {
		m.pools[syscall.AF_INET6] = newPool(cfg.Namespace, syscall.AF_INET6, size, m.refilled, cfg.Log)
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Take implements relay.Sockets.
func (m *Manager) Take(family int) (fd int, ok bool) { return m.pools[family].take() }

func (m *Manager) refilled() { m.splicer.Refilled() }

// full returns nil unless all places of TCP are taken, otherwise a channel that is closed
// when one is free again; the Splicer is told then as well.
func (m *Manager) full() <-chan struct{} {
	more := m.places.none()
	if more != nil {
		m.sayFull(netip.Addr{})
	}
	return more
}

func (m *Manager) freed() {
	if m.splicer != nil {
		m.splicer.Freed()
	}
}

// sayFull says, once, that Limits.Connections hold a client up.
func (m *Manager) sayFull(client netip.Addr) {
	m.crowded.Do(func() {
		args := []any{"limit", m.cfg.Limits.Connections, "open", m.places.open.Load()}
		if client.IsValid() {
			args = append(args, "client", client)
		}
		if m.cfg.Raise != "" {
			args = append(args, "fix", m.cfg.Raise)
		}
		m.cfg.Log.Warn("published ports have as many connections as they may: new ones wait", args...)
	})
}

// start begins what the kernel path needs, where that is wanted. m.mu is held.
func (m *Manager) start() (err error) {
	if m.splicer != nil || !m.cfg.Kernel {
		return nil
	}
	// Half of the CPUs are left to clients and servers: where there are two, one loop serves
	// streams and requests faster than two do, at a third less CPU time.
	m.splicer, err = relay.NewSplicer(relay.SplicerConfig{
		Loops: min(runtime.GOMAXPROCS(0)/2, maxLoops), Sockets: m, Connect: m.cfg.Limits.Connect,
	})
	if err != nil {
		return err
	}
	for _, sockets := range m.pools {
		m.tasks.Go(func() { sockets.fill(m.ctx) })
	}
	return nil
}

// Add begins to serve s on sockets: listening TCP sockets, or bound UDP sockets,
// one for each of s.Addrs, or fewer where the host lacks a family. It takes the
// sockets over, also when it fails. The id is for Remove.
func (m *Manager) Add(s Spec, sockets []*os.File) (id int, err error) {
	ids, err := m.AddAll([]Spec{s}, [][]*os.File{sockets})
	if err != nil {
		return 0, err
	}
	return ids[0], nil
}

// AddAll is Add for many ports, sockets[i] being those of specs[i]. Where one cannot be
// served, none stays.
func (m *Manager) AddAll(specs []Spec, sockets [][]*os.File) (ids []int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	closeSockets := func() {
		for _, s := range sockets {
			closeAll(s)
		}
	}
	switch {
	case len(specs) != len(sockets):
		closeSockets()
		return nil, fmt.Errorf("publish: %d ports with the sockets of %d", len(specs), len(sockets))
	case m.closed:
		closeSockets()
		return nil, fmt.Errorf("publish: %w", ErrClosed)
	}
	if slices.ContainsFunc(specs, func(s Spec) bool { return s.Proto == TCP }) {
		if err := m.start(); err != nil {
			closeSockets()
			return nil, fmt.Errorf("publish: %w", err)
		}
	}
	made := make([]*port, len(specs))
	errs := make([]error, len(specs))
	// Most of it is the kernel's part, in which each CPU can do some.
	var workers sync.WaitGroup
	for first := 0; first < len(specs); first += addPiece {
		workers.Go(func() {
			for i := first; i < min(first+addPiece, len(specs)); i++ {
				made[i], errs[i] = m.add(specs[i], sockets[i])
			}
		})
	}
	workers.Wait()
	if err := cmp.Or(errs...); err != nil { // the first of many that have the same cause
		for _, p := range made {
			if p != nil {
				_ = p.close() // what was wrong in the first place says more
			}
		}
		return nil, err
	}
	for _, p := range made {
		m.last++
		p.id = m.last
		ids = append(ids, p.id)
		m.cfg.Log.Debug("published", "port", arrow(p.spec, p.bound), "path", p.path)
	}
	m.ports = append(m.ports, made...)
	return ids, nil
}

// addPiece is how many ports are worth a goroutine of their own.
const addPiece = 256

// add makes a port that is not in the list yet. m.mu is held, and what the kernel path
// needs has begun. Several goroutines may be in it.
func (m *Manager) add(s Spec, sockets []*os.File) (p *port, err error) {
	switch {
	case len(sockets) == 0:
		err = errors.New("no socket to serve it on")
	case s.Proto == TCP:
		p, err = m.addTCP(s, sockets)
	case s.Proto == UDP:
		p, err = m.addUDP(s, sockets)
	default:
		closeAll(sockets)
		err = fmt.Errorf("%w: %s", ErrUnsupported, s.Proto)
	}
	if err != nil {
		return nil, fmt.Errorf("publish %v: %w", s, err)
	}
	return p, nil
}

// ErrUnknown is what Remove returns for an id that Add has not given, or that was
// removed before.
var ErrUnknown = errors.New("no such port")

// Remove ends the listeners of a port. TCP connections that are open go on; UDP has
// none, and its sessions end.
func (m *Manager) Remove(id int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.ports, func(p *port) bool { return p.id == id })
	if i < 0 {
		return fmt.Errorf("port %d: %w", id, ErrUnknown)
	}
	p := m.ports[i]
	m.ports = slices.Delete(m.ports, i, i+1)
	return p.close()
}

func (m *Manager) addTCP(s Spec, sockets []*os.File) (*port, error) {
	defer closeAll(sockets) // the port works on copies
	p := &port{m: m, spec: s, path: PathTAP}
	p.ctx, p.cancel = context.WithCancel(m.ctx)
	serve := p.serveTAP
	if m.cfg.Kernel {
		p.path, serve = PathKernel, p.serveKernel
	}
	for _, f := range sockets {
		if err := serve(f); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	return p, nil
}

func (m *Manager) addUDP(s Spec, sockets []*os.File) (*port, error) {
	defer closeAll(sockets) // PublishUDP works on copies
	p := &port{m: m, spec: s, path: PathTAP}
	for _, f := range sockets {
		c, err := net.FilePacketConn(f)
		if err != nil {
			return nil, err
		}
		_ = c.Close() // a copy, for its address
		udp, ok := c.LocalAddr().(*net.UDPAddr)
		if !ok {
			return nil, fmt.Errorf("%v is not a UDP socket", c.LocalAddr())
		}
		p.bound = append(p.bound, udp.AddrPort())
	}
	guest4, guest6 := m.cfg.Guest4, m.cfg.Guest6
	switch ip := s.ContainerIP; {
	case ip.Is4():
		guest4, guest6 = ip, netip.Addr{}
	case ip.IsValid():
		guest4, guest6 = netip.Addr{}, ip
	}
	var to4, to6 netip.AddrPort
	if guest4.IsValid() {
		to4 = netip.AddrPortFrom(guest4, s.ContainerPort)
	}
	if guest6.IsValid() {
		to6 = netip.AddrPortFrom(guest6, s.ContainerPort)
	}
	var err error
	p.udp, err = m.cfg.Stack.PublishUDP(sockets, to4, to6)
	return p, err
}

// List returns the ports in the order in which they were added.
func (m *Manager) List() []Port {
	m.mu.Lock()
	ports := slices.Clone(m.ports)
	m.mu.Unlock()
	list := make([]Port, len(ports))
	for i, p := range ports {
		list[i] = Port{Spec: p.spec, Bound: slices.Clone(p.bound), Path: p.path, Stats: p.stats()}
	}
	return list
}

// SocketFailures is how often the namespace failed to give sockets for the kernel path.
func (m *Manager) SocketFailures() uint64 {
	var n uint64
	for _, sockets := range m.pools {
		n += sockets.failed.Load()
	}
	return n
}

// Queue is how it stands with the clients of TCP ports that found no place.
type Queue struct {
	Waiting int    // at the moment, without those in the kernel's backlog
	Waited  uint64 // that wait or have waited
	Reset   uint64 // for whom there was no room, or who waited in vain
}

// Queue returns how it stands with the clients of TCP ports that found no place.
func (m *Manager) Queue() Queue {
	waiting, waited := m.places.numbers()
	return Queue{Waiting: waiting, Waited: waited, Reset: m.limited.Load()}
}

// AcceptErrors is how often no client could be accepted for want of descriptors or memory.
func (m *Manager) AcceptErrors() uint64 { return m.acceptErrors.Load() }

// Close ends all listeners, resets what is open, and returns when nothing of the
// Manager runs any more.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	m.cancel()
	var errs []error
	if m.splicer != nil {
		m.splicer.Close()
	}
	for _, p := range m.ports {
		errs = append(errs, p.close())
	}
	m.tasks.Wait()
	return errors.Join(errs...)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
