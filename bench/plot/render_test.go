package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"slipway/bench"
)

// testReport reads a report from bench's testdata.
func testReport(t *testing.T, name string) *bench.Report {
	t.Helper()
	r, err := bench.ReadReport(filepath.Join("..", "testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRenderErrors(t *testing.T) {
	empty := &bench.Report{Schema: bench.SchemaVersion}
	for _, format := range []bench.Format{bench.FormatSVG, bench.FormatPNG} {
		if _, err := Render(empty, bench.Output{Format: format, Path: "plots"}); err == nil || !strings.Contains(err.Error(), "nothing was measured") {
			t.Errorf("nothing as %s: %v", format, err)
		}
	}
	if _, err := Render(empty, bench.Output{Format: bench.FormatHTML}); err != nil {
		t.Errorf("nothing as a page: %v", err)
	}
	if _, err := Render(empty, bench.Output{Format: bench.FormatCSV}); err == nil || !strings.Contains(err.Error(), "slipway bench report") {
		t.Errorf("a format without plots: %v", err)
	}
}

// TestRenderPlots: each is a picture, and an SVG fetches nothing and is no script.
func TestRenderPlots(t *testing.T) {
	r := testReport(t, "kinds")
	for _, format := range []bench.Format{bench.FormatSVG, bench.FormatPNG} {
		files, err := Render(r, bench.Output{Format: format, Path: "plots"})
		if err != nil {
			t.Fatal(err)
		}
		if len(files) != 6 || files[0].Name != "gap."+string(format) {
			t.Fatalf("%d plots, the first is %s; want 6, gap", len(files), files[0].Name)
		}
		for _, f := range files {
			if format == bench.FormatPNG {
				if _, err := png.Decode(bytes.NewReader(f.Data)); err != nil {
					t.Errorf("%s: %v", f.Name, err)
				}
				continue
			}
			d := xml.NewDecoder(bytes.NewReader(f.Data))
			for {
				token, err := d.Token()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("%s: %v", f.Name, err)
				}
				element, ok := token.(xml.StartElement)
				if ok && (element.Name.Local == "script" || element.Name.Local == "image") {
					t.Errorf("%s has a %s", f.Name, element.Name.Local)
				}
			}
			// No part has kept the colour that is its key.
			if keyed.Match(f.Data) {
				t.Errorf("%s has a part without a name", f.Name)
			}
		}
	}
}
