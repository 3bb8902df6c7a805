package monitor

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
)

// TestOutput: what is said arrives, in order, before close returns.
func TestOutput(t *testing.T) {
	var to bytes.Buffer
	o := newOutput(&to)
	var want strings.Builder
	for i := range maxOutput {
		fmt.Fprintln(io.MultiWriter(o, &want), i)
	}
	o.close()
	if got := to.String(); got != want.String() {
		t.Errorf("got %q, want %q", got, want.String())
	}
}

// TestOutputStuck: a reader that does not read holds nobody up, and is told what it missed.
func TestOutputStuck(t *testing.T) {
	r, w := io.Pipe()
	o := newOutput(w)
	said := []byte("word\n")
	const missed = 10
	for range maxOutput + 1 { // one is being written
		if n, err := o.Write(said); n != len(said) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	for o.lost.Load() < missed {
		_, _ = o.Write(said)
	}
	o.close() // it gives up
	go func() {
		<-o.done
		w.Close()
	}()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(" %d writes to it were dropped\n", o.lost.Load()+missed); strings.Count(string(b), want) != 1 {
		t.Errorf("it does not say once %q:\n%s", want, b)
	}
	if n := strings.Count(string(b), string(said)); n < maxOutput {
		t.Errorf("%d words arrived, want %d", n, maxOutput)
	}
}
