package filter

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// packet is struct seccomp_data in the byte order of the interpreter, which is the
// network's.
func packet(info *arch.Info, nr uint32, args [6]uint64) []byte {
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b[offsetNumber:], nr)
	binary.BigEndian.PutUint32(b[offsetArch:], uint32(info.ID))
	for i, a := range args {
		binary.BigEndian.PutUint32(b[offsetArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(b[offsetArgs+8*i+4:], uint32(a>>32))
	}
	return b
}

// decide is what the policy means, without BPF.
func decide(p seccomp.Policy, info *arch.Info, nr uint32, args [6]uint64) uint32 {
	for _, g := range p.Syscalls {
		for _, name := range g.Names {
			if uint32(info.SyscallNames[name]) == nr {
				return result(g.Action)
			}
		}
		for _, n := range g.NamesWithCondtions {
			if uint32(info.SyscallNames[n.Name]) == nr && !slices.ContainsFunc(n.Conditions, func(c seccomp.Condition) bool { return !holds(c, args) }) {
				return result(g.Action)
			}
		}
	}
	return result(p.DefaultAction)
}

func result(a seccomp.Action) uint32 {
	if a == seccomp.ActionErrno {
		return uint32(a) | uint32(unix.EPERM)
	}
	return uint32(a)
}

func holds(c seccomp.Condition, args [6]uint64) bool {
	a, v := args[c.Argument], c.Value
	switch c.Operation {
	case seccomp.Equal:
		return a == v
	case seccomp.NotEqual:
		return a != v
	case seccomp.GreaterThan:
		return a > v
	case seccomp.GreaterOrEqual:
		return a >= v
	case seccomp.LessThan:
		return a < v
	case seccomp.LessOrEqual:
		return a <= v
	case seccomp.BitsSet:
		return a&v != 0
	case seccomp.BitsNotSet:
		return a&v == 0
	}
	panic("unknown operation")
}

// Random policies decide random calls as they read. The values are few and equal
// to numbers of calls, so that a rule that compares the wrong thing is noticed.
func TestAssembleMeans(t *testing.T) {
	info, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"read", "write", "close", "socket", "clone", "fcntl", "ioctl", "mmap", "mprotect", "kill", "prctl", "futex"}
	value := func() uint64 {
		v := uint64(info.SyscallNames[names[r.IntN(len(names))]])
		switch r.IntN(4) {
		case 0:
			v |= 1 << 32
		case 1:
			v ^= ^uint64(0)
		case 2:
			v += uint64(r.IntN(3)) - 1
		}
		return v
	}
	actions := []seccomp.Action{seccomp.ActionAllow, seccomp.ActionErrno, seccomp.ActionKillProcess}
	for range 300 {
		p := seccomp.Policy{DefaultAction: actions[r.IntN(3)]}
		for range 1 + r.IntN(6) {
			g := seccomp.SyscallGroup{Action: actions[r.IntN(3)]}
			for range r.IntN(4) {
				g.Names = append(g.Names, names[r.IntN(len(names))])
			}
			for range r.IntN(4) {
				n := seccomp.NameWithConditions{Name: names[r.IntN(len(names))]}
				for range r.IntN(4) {
					n.Conditions = append(n.Conditions, seccomp.Condition{Argument: uint32(r.IntN(6)), Operation: seccomp.Operations[r.IntN(len(seccomp.Operations))], Value: value()})
				}
				g.NamesWithCondtions = append(g.NamesWithCondtions, n)
			}
			p.Syscalls = append(p.Syscalls, g)
		}
		vm := compile(t, p)
		for range 200 {
			nr := uint32(info.SyscallNames[names[r.IntN(len(names))]])
			args := [6]uint64{value(), value(), value(), value(), value(), value()}
			got, err := vm.Run(packet(info, nr, args))
			if err != nil {
				t.Fatal(err)
			}
			if want := decide(p, info, nr, args); uint32(got) != want {
				t.Fatalf("call %d %#x of %+v: %#x, want %#x", nr, args, p, got, want)
			}
		}
	}
}

func compile(t *testing.T, p seccomp.Policy) *bpf.VM {
	t.Helper()
	code, err := Assemble(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bpf.Assemble(code); err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// A group of more names than one jump spans.
func TestManyNames(t *testing.T) {
	info, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	g := seccomp.SyscallGroup{Action: seccomp.ActionAllow}
	for _, name := range info.SyscallNumbers {
		if name != "reboot" {
			g.Names = append(g.Names, name)
		}
	}
	slices.Sort(g.Names)
	p := seccomp.Policy{DefaultAction: seccomp.ActionErrno, Syscalls: []seccomp.SyscallGroup{g}}
	vm := compile(t, p)
	for nr, name := range info.SyscallNumbers {
		got, err := vm.Run(packet(info, uint32(nr), [6]uint64{}))
		if err != nil {
			t.Fatal(err)
		}
		if want := decide(p, info, uint32(nr), [6]uint64{}); uint32(got) != want {
			t.Errorf("%s: %#x, want %#x", name, got, want)
		}
	}
}

func TestAssembleErrors(t *testing.T) {
	allow := func(n ...seccomp.NameWithConditions) seccomp.Policy {
		return seccomp.Policy{DefaultAction: seccomp.ActionErrno, Syscalls: []seccomp.SyscallGroup{{Action: seccomp.ActionAllow, NamesWithCondtions: n}}}
	}
	var long seccomp.ArgumentConditions
	for range 100 {
		long = append(long, seccomp.Condition{Operation: seccomp.Equal})
	}
	var many []seccomp.NameWithConditions
	for range 600 {
		many = append(many, seccomp.NameWithConditions{Name: "read", Conditions: long[:2]})
	}
	tests := []struct {
		name, want string
		p          seccomp.Policy
	}{
		{"empty", "must not be empty", seccomp.Policy{DefaultAction: seccomp.ActionErrno}},
		{"name", `no call "frobnicate"`, allow(seccomp.NameWithConditions{Name: "frobnicate"})},
		{"argument", "argument must be", allow(seccomp.NameWithConditions{Name: "read", Conditions: seccomp.ArgumentConditions{{Argument: 6, Operation: seccomp.Equal}}})},
		{"operation", `unknown operation "Like"`, allow(seccomp.NameWithConditions{Name: "read", Conditions: seccomp.ArgumentConditions{{Operation: "Like"}}})},
		{"long rule", "100 conditions", allow(seccomp.NameWithConditions{Name: "read", Conditions: long})},
		{"long policy", fmt.Sprintf("at most %d", maxInstructions), allow(many...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Assemble(tt.p); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
