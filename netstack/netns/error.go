package netns

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// The steps of an Error.
const (
	StepOpen       = "open"           // a namespace file
	StepNamespace  = "namespace"      // a file that is no namespace, or one of another kind
	StepMap        = "map memory"     // the page shared with the child
	StepClone      = "clone"          // the child
	StepDumpable   = "set dumpable"   // prctl(PR_SET_DUMPABLE) in the child
	StepSetnsUser  = "setns user"     // joining the user namespace
	StepSetnsNet   = "setns net"      // joining the network namespace
	StepOpenTUN    = "open tun"       // /dev/net/tun
	StepSocket     = "socket"         // making a socket
	StepSetsockopt = "setsockopt"     // making it transparent
	StepCheck      = "check"          // a descriptor that is not what was asked for
	StepWait       = "wait"           // the child took too long, or was killed
	StepHandle     = "netlink handle" // wrapping a netlink socket
)

// Error says which step of an operation in another namespace failed. Err is an
// errno in all steps but StepNamespace, StepCheck and StepWait.
type Error struct {
	Step string // one of the Step constants
	Path string // the file concerned, if any
	Err  error
}

// Error names the step and the file, and for the failures that a person can mend
// the command that does it.
func (e *Error) Error() string {
	s := e.Step
	if e.Path != "" {
		s += " " + e.Path
	}
	s += ": " + e.Err.Error()
	if h := e.hint(); h != "" {
		s += "; " + h
	}
	return s
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

func (e *Error) hint() string {
	switch {
	case e.Step == StepOpen && errors.Is(e.Err, unix.ENOENT) && strings.HasPrefix(e.Path, "/proc/"):
		return "there is no such process; give the pid of one that runs"
	case e.Step == StepOpenTUN && errors.Is(e.Err, unix.EACCES):
		return fmt.Sprintf("run: sudo chmod 0666 %s (it grants nothing by itself: making a device needs CAP_NET_ADMIN over the namespace)", e.Path)
	case e.Step == StepOpenTUN && (errors.Is(e.Err, unix.ENOENT) || errors.Is(e.Err, unix.ENODEV)):
		return "run: sudo modprobe tun"
	case e.Step == StepSetnsUser && errors.Is(e.Err, unix.EPERM):
		return "the user namespace belongs to another user"
	case e.Step == StepSetnsNet && errors.Is(e.Err, unix.EPERM):
		return "the network namespace belongs to another user, or to a user namespace that was not given"
	case errors.Is(e.Err, unix.EMFILE):
		return "raise the limit of open files: ulimit -n"
	}
	return ""
}
