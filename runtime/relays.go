package runtime

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"slipway/runtime/streams"
)

// streams is what joins the workload to the caller's files. Output that goes to one file
// goes through one pipe, which keeps its order.
func (c Config) streams() (streams.Shape, error) {
	out, errOut := c.Stdout.Stat()
	to, errTo := c.Stderr.Stat()
	if err := errors.Join(errOut, errTo); err != nil {
		return streams.Shape{}, fmt.Errorf("standard output: %w", err)
	}
	return streams.Shape{Input: c.Interactive && c.Stdin != nil, Joined: os.SameFile(out, to)}, nil
}

// relays are those of one workload without a terminal.
type relays struct {
	input   *streams.Relay // nil without -i
	outputs []*streams.Relay
}

// add starts the relay of one stream, whose far end it owns.
func (r *relays) add(name streams.Name, far *os.File, cfg Config) error {
	if far == nil {
		return fmt.Errorf("the stage sent no %s", name)
	}
	relay, err := r.start(name, far, cfg)
	if name == streams.Stdin && errors.Is(err, unix.EBADF) { // as nohup(1) has it
		cfg.Log.Warn("standard input cannot be read: the container's is empty", slog.Any("error", err))
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		<-relay.Done()
		if err := relay.Err(); err != nil {
			cfg.Log.Warn("a standard stream has ended", slog.Any("stream", name), slog.Any("error", err))
		}
	}()
	return nil
}

func (r *relays) start(name streams.Name, far *os.File, cfg Config) (relay *streams.Relay, err error) {
	if name == streams.Stdin {
		if relay, err = streams.Input(cfg.Stdin, far); err == nil {
			r.input = relay
		}
		return relay, err
	}
	to := cfg.Stdout
	if name == streams.Stderr {
		to = cfg.Stderr
	}
	if relay, err = streams.Output(far, to); err == nil {
		r.outputs = append(r.outputs, relay)
	}
	return relay, err
}

// finish has all relays end when what the workload has written is at the caller's.
func (r *relays) finish() {
	if r.input != nil {
		r.input.Close()
	}
	for _, o := range r.outputs {
		o.Finish()
	}
}

// wait waits for the output's.
func (r *relays) wait() {
	for _, o := range r.outputs {
		<-o.Done()
	}
}

// close ends all of them. One that the caller's file blocks ends later.
func (r *relays) close() {
	if r.input != nil {
		r.input.Close()
	}
	for _, o := range r.outputs {
		o.Close()
	}
}
