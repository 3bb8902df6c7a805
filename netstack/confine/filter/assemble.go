// Package filter compiles seccomp policies of github.com/elastic/go-seccomp-bpf and
// loads them.
//
// It stands in for that library's own assembler and loader, which cannot be trusted
// with conditions on arguments (v1.6.0): after such a condition fails, the
// accumulator holds a piece of the argument and not the call's number any more, so
// every later rule compares the wrong thing; long jumps are resolved wrongly once
// instructions have been inserted; and TSYNC's way to fail, a positive result, is
// taken for success. The library's types, names and tables are used as they are.
package filter

import (
	"errors"
	"fmt"
	"strings"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data, include/uapi/linux/seccomp.h. The low half of an
// argument comes first on the architectures of Slipway.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

// maxInstructions is BPF_MAXINSNS of include/uapi/linux/bpf_common.h.
const maxInstructions = 4096

// maxNames is how many names share one return: a conditional jump spans 255
// instructions.
const maxNames = 200

// Assemble compiles a policy for this program's architecture. Groups are tried in
// order, within a group the names before the names with conditions; the first that
// matches decides. Calls of another architecture get the default action, those of
// x32 are ENOSYS. The errno of seccomp.ActionErrno is EPERM.
//
// Errors: an unknown name, operation or argument, and a policy that is too long.
func Assemble(p seccomp.Policy) ([]bpf.Instruction, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("seccomp policy: %w", err)
	}
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("seccomp policy: %w", err)
	}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(info.ID), SkipTrue: 1},
		verdict(p.DefaultAction),
		loadNumber,
	}
	if info.ID == arch.X86_64.ID {
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(arch.X32.SeccompMask), SkipTrue: 1},
			bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	}
	for _, g := range p.Syscalls {
		code, err := group(g, info)
		if err != nil {
			return nil, fmt.Errorf("seccomp policy: %w", err)
		}
		program = append(program, code...)
	}
	program = append(program, verdict(p.DefaultAction))
	if len(program) > maxInstructions {
		return nil, fmt.Errorf("seccomp policy: %d instructions, at most %d", len(program), maxInstructions)
	}
	return program, nil
}

// loadNumber puts the call's number into the accumulator, where every rule expects
// it and leaves it.
var loadNumber = bpf.LoadAbsolute{Off: offsetNumber, Size: 4}

func verdict(a seccomp.Action) bpf.Instruction {
	if a == seccomp.ActionErrno {
		a |= seccomp.Action(unix.EPERM)
	}
	return bpf.RetConstant{Val: uint32(a)}
}

func group(g seccomp.SyscallGroup, info *arch.Info) ([]bpf.Instruction, error) {
	var code []bpf.Instruction
	names := g.Names
	for len(names) > 0 {
		n := min(len(names), maxNames)
		for i, name := range names[:n] {
			nr, err := number(name, info)
			if err != nil {
				return nil, err
			}
			// To the return behind the chunk, over its remaining names and the jump.
			code = append(code, bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipTrue: uint8(n - i)})
		}
		code = append(code, bpf.Jump{Skip: 1}, verdict(g.Action))
		names = names[n:]
	}
	for _, c := range g.NamesWithCondtions {
		block, err := conditional(c, g.Action, info)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
		code = append(code, block...)
	}
	return code, nil
}

func number(name string, info *arch.Info) (uint32, error) {
	nr, ok := info.SyscallNames[name]
	if !ok {
		return 0, fmt.Errorf("architecture %s has no call %q", info.Name, name)
	}
	return uint32(nr | info.SeccompMask), nil
}

// conditional is the code for one name whose conditions must all hold:
//
//	if number != nr, to the end
//	the conditions, each of them: if it fails, to the reload
//	return the action
//	reload the number
func conditional(c seccomp.NameWithConditions, action seccomp.Action, info *arch.Info) ([]bpf.Instruction, error) {
	nr, err := number(c.Name, info)
	if err != nil {
		return nil, err
	}
	if problems := c.Conditions.Validate(); len(problems) > 0 {
		return nil, errors.New(strings.Join(problems, ", "))
	}
	var body []instruction
	for _, condition := range c.Conditions {
		code, err := test(condition)
		if err != nil {
			return nil, err
		}
		body = append(body, code...)
	}
	length := len(body) + 2 // with the return and the reload
	if length > 255 {
		return nil, fmt.Errorf("%d conditions, more than one rule can hold", len(c.Conditions))
	}
	out := []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: uint8(length)}}
	for i, in := range body {
		toReload := uint8(len(body) - i) // over the rest and the return
		out = append(out, in.resolve(toReload))
	}
	return append(out, verdict(action), loadNumber), nil
}

// instruction is an instruction of a condition. A jump goes skip instructions ahead
// or to the place for a condition that failed.
type instruction struct {
	bpf.Instruction
	trueFails, falseFails bool
}

func (in instruction) resolve(toReload uint8) bpf.Instruction {
	j, ok := in.Instruction.(bpf.JumpIf)
	if !ok {
		return in.Instruction
	}
	if in.trueFails {
		j.SkipTrue = toReload
	}
	if in.falseFails {
		j.SkipFalse = toReload
	}
	return j
}

// test compares an argument of 64 bits in two halves. It runs on to the next
// condition when it holds.
func test(c seccomp.Condition) ([]instruction, error) {
	low := instruction{Instruction: bpf.LoadAbsolute{Off: offsetArgs + 8*c.Argument, Size: 4}}
	high := instruction{Instruction: bpf.LoadAbsolute{Off: offsetArgs + 8*c.Argument + 4, Size: 4}}
	vlow, vhigh := uint32(c.Value), uint32(c.Value>>32)
	// failUnless goes on when the comparison is true, failIf when it is false, and
	// skipIf leaves the rest of this condition out when it is true.
	failUnless := func(cond bpf.JumpTest, v uint32) instruction {
		return instruction{Instruction: bpf.JumpIf{Cond: cond, Val: v}, falseFails: true}
	}
	failIf := func(cond bpf.JumpTest, v uint32) instruction {
		return instruction{Instruction: bpf.JumpIf{Cond: cond, Val: v}, trueFails: true}
	}
	skipIf := func(cond bpf.JumpTest, v uint32, n uint8) instruction {
		return instruction{Instruction: bpf.JumpIf{Cond: cond, Val: v, SkipTrue: n}}
	}
	switch c.Operation {
	case seccomp.Equal:
		return []instruction{high, failUnless(bpf.JumpEqual, vhigh), low, failUnless(bpf.JumpEqual, vlow)}, nil
	case seccomp.NotEqual:
		return []instruction{high, skipIf(bpf.JumpNotEqual, vhigh, 2), low, failIf(bpf.JumpEqual, vlow)}, nil
	case seccomp.GreaterThan:
		return []instruction{high, skipIf(bpf.JumpGreaterThan, vhigh, 3), failUnless(bpf.JumpEqual, vhigh), low, failUnless(bpf.JumpGreaterThan, vlow)}, nil
	case seccomp.GreaterOrEqual:
		return []instruction{high, skipIf(bpf.JumpGreaterThan, vhigh, 3), failUnless(bpf.JumpEqual, vhigh), low, failUnless(bpf.JumpGreaterOrEqual, vlow)}, nil
	case seccomp.LessThan:
		return []instruction{high, skipIf(bpf.JumpLessThan, vhigh, 3), failUnless(bpf.JumpEqual, vhigh), low, failUnless(bpf.JumpLessThan, vlow)}, nil
	case seccomp.LessOrEqual:
		return []instruction{high, skipIf(bpf.JumpLessThan, vhigh, 3), failUnless(bpf.JumpEqual, vhigh), low, failUnless(bpf.JumpLessOrEqual, vlow)}, nil
	case seccomp.BitsSet:
		return []instruction{high, skipIf(bpf.JumpBitsSet, vhigh, 2), low, failUnless(bpf.JumpBitsSet, vlow)}, nil
	case seccomp.BitsNotSet:
		return []instruction{high, failIf(bpf.JumpBitsSet, vhigh), low, failIf(bpf.JumpBitsSet, vlow)}, nil
	}
	return nil, fmt.Errorf("unknown operation %q", c.Operation)
}
