package runtime

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

func TestControl(t *testing.T) {
	ours, theirs, err := controlPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	stage := launcher(theirs.Fd())

	if err := tell(ours, kindMapped); err != nil {
		t.Fatal(err)
	}
	if err := stage.wait(kindMapped); err != nil {
		t.Error(err)
	}
	if err := tell(ours, kindStart); err != nil {
		t.Fatal(err)
	}
	if err := stage.wait(kindMapped); err == nil {
		t.Error("another message was taken for the one awaited")
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := stage.send(message{Kind: kindTerminal}, int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	w.Close()
	m, f, err := hear(ours)
	if err != nil || m.Kind != kindTerminal || f == nil {
		t.Fatalf("got %v, %v, %v", m, f, err)
	}
	if _, err := f.WriteString("passed"); err != nil {
		t.Error(err)
	}
	f.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "passed" {
		t.Errorf("%q, %v", b, err)
	}

	long := message{Kind: kindFailed, Text: strings.Repeat("\x00", 10*maxText), Code: 126}
	if err := stage.send(long, -1); err != nil {
		t.Fatal(err)
	}
	if m, f, err = hear(ours); err != nil || f != nil || m.Code != 126 || len(m.Text) > maxText+3 {
		t.Errorf("got code %d, %d bytes, %v, %v", m.Code, len(m.Text), f, err)
	}

	if !stage.alive() {
		t.Error("the launcher is said to be gone")
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := hear(ours); !errors.Is(err, io.EOF) {
		t.Errorf("after the stage's end: %v, want EOF", err)
	}
}

func TestControlLauncherGone(t *testing.T) {
	ours, theirs, err := controlPair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	ours.Close()
	stage := launcher(theirs.Fd())
	if stage.alive() {
		t.Error("the launcher is said to be alive")
	}
	if err := stage.wait(kindStart); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	if err := stage.send(message{Kind: kindReady}, -1); err == nil {
		t.Error("sent to nobody")
	}
}
