package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseVolume(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for s, want := range map[string]Volume{
		dir + ":/a":          {Source: dir, Target: "/a"},
		dir + ":/a/../b/:ro": {Source: dir, Target: "/b", ReadOnly: true},
		dir + ":/a:rw":       {Source: dir, Target: "/a"},
		link + ":/a":         {Source: dir, Target: "/a"},
		".:/a":               {Source: dir, Target: "/a"},
		"./link:/a":          {Source: dir, Target: "/a"},
	} {
		got, err := ParseVolume(s)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v (-want +got)\n%s", s, err, diff)
		}
	}
	for s, want := range map[string]string{
		"": "SOURCE:TARGET", dir: "SOURCE:TARGET", dir + ":/a:ro:x": "SOURCE:TARGET", dir + ":a": "absolute", dir + ":": "absolute",
		dir + ":/a:z": `unknown option "z"`, "name:/a": "named volumes", dir + "/missing:/a": "mkdir -p " + dir + "/missing", ":/a": "no path",
	} {
		if got, err := ParseVolume(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v; want %q", s, got, err, want)
		}
	}
	if _, err := os.Stat(dir + "/missing"); err == nil {
		t.Error("the missing source was made")
	}
}

func TestEnvironmentMerge(t *testing.T) {
	t.Setenv("SLIPWAY_HERE", "here")
	c := Config{Env: []string{"A=2", "SLIPWAY_HERE", "SLIPWAY_NOT_HERE", "TERM=dumb", "E="}, TTY: true}
	got := c.environment([]string{"A=1", "SLIPWAY_HERE", "B=1", "PATH=/image", "HOME"}, "box")
	want := []string{"HOSTNAME=box", "B=1", "PATH=/image", "A=2", "SLIPWAY_HERE=here", "TERM=dumb", "E="}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestHostname(t *testing.T) {
	one, err := Config{}.hostname()
	if err != nil || len(one) != 12 {
		t.Errorf("%q, %v", one, err)
	}
	if two, err := (Config{}).hostname(); err != nil || two == one {
		t.Errorf("twice %q, %v", two, err)
	}
	machine, err := os.Hostname()
	if got, herr := (Config{Network: HostNet}).hostname(); err != nil || herr != nil || got != machine {
		t.Errorf("%q, %v; want %q", got, herr, machine)
	}
}
