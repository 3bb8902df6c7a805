package plot

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"slipway/bench"
)

// browser finds a Chromium, or skips the test.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("no Chromium in PATH (apt install chromium, or: make test-page)")
	return ""
}

// TestPageInBrowser opens the page as a reader does: every row that was measured has
// marks in a plot that one can see, nothing is complained about, nothing is fetched. With
// SLIPWAY_SCREENSHOTS=DIR the pictures stay there.
func TestPageInBrowser(t *testing.T) {
	chromium := browser(t)
	dir := os.Getenv("SLIPWAY_SCREENSHOTS")
	if dir == "" {
		dir = t.TempDir()
	}
	for _, name := range []string{"report", "kinds"} {
		r := testReport(t, name)
		for _, scheme := range []string{"light", "dark"} {
			t.Run(name+"-"+scheme, func(t *testing.T) {
				files, err := Render(r, bench.Output{Format: bench.FormatHTML})
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(t.TempDir(), "page.html")
				if err := os.WriteFile(path, files[0].Data, 0o600); err != nil {
					t.Fatal(err)
				}
				picture := inspect(t, chromium, path, scheme, r)
				if err := os.WriteFile(filepath.Join(dir, name+"-"+scheme+".png"), picture, 0o600); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// inspect opens a page and returns a picture of it.
func inspect(t *testing.T, chromium, path, scheme string, r *bench.Report) []byte {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium), chromedp.WindowSize(1100, 900),
		// Chromium's own sandbox does not start for root.
		chromedp.NoSandbox)
	// It leaves a directory behind in the one for temporary files, with a socket in it whose path
	// must be short.
	tmp, err := os.MkdirTemp("", "page")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	options = append(options, chromedp.Env("TMPDIR="+tmp))
	if scheme == "dark" {
		options = append(options, chromedp.Flag("blink-settings", "preferredColorScheme=0"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ctx, end := chromedp.NewExecAllocator(ctx, options...)
	defer end()
	var (
		mu        sync.Mutex
		complains []string
		requests  []string
	)
	ctx, closeTab := chromedp.NewContext(ctx, chromedp.WithListener(func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			requests = append(requests, e.Request.URL)
		case *log.EventEntryAdded:
			complains = append(complains, e.Entry.Text)
		case *runtime.EventConsoleAPICalled:
			complains = append(complains, string(e.Type))
		case *runtime.EventExceptionThrown:
			complains = append(complains, e.ExceptionDetails.Text)
		}
	}))
	defer closeTab()
	// Of each series: how many marks of it have a size in the window's coordinates, and lie
	// in the plot they are part of.
	const visible = `[...document.querySelectorAll('svg [data-series]')].filter(mark => {
		const box = mark.getBoundingClientRect(), plot = mark.ownerSVGElement.getBoundingClientRect()
		return box.width + box.height > 0 && box.left >= plot.left && box.right <= plot.right && box.top >= plot.top && box.bottom <= plot.bottom
	}).map(mark => mark.getAttribute('class') + ' ' + mark.dataset.series)`
	_, errLog := chromedp.Call(ctx, log.Enable, cdp.Empty{})
	_, errNetwork := chromedp.Call(ctx, network.Enable, network.EnableParams{})
	if err := errors.Join(errLog, errNetwork, chromedp.Do(ctx, chromedp.Navigate("file://"+path))); err != nil {
		t.Fatalf("open the page: %v", err)
	}
	marks, errMarks := chromedp.Run(ctx, chromedp.Evaluate[[]string](visible))
	background, errBackground := chromedp.Run(ctx, chromedp.Evaluate[string](`getComputedStyle(document.body).backgroundColor`))
	overflow, errOverflow := chromedp.Run(ctx, chromedp.Evaluate[bool](`document.documentElement.scrollWidth > document.documentElement.clientWidth`))
	picture, errPicture := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err := errors.Join(errMarks, errBackground, errOverflow, errPicture); err != nil {
		t.Fatalf("look at the page: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(complains) > 0 {
		t.Errorf("the browser complains: %q", complains)
	}
	for _, url := range requests {
		if !strings.HasPrefix(url, "file://"+path) && !strings.HasPrefix(url, "data:") {
			t.Errorf("the page asks for %s", url)
		}
	}
	if len(requests) == 0 {
		t.Error("the browser has told of no request, not even that for the page")
	}
	if dark := background != "rgb(255, 255, 255)"; dark != (scheme == "dark") {
		t.Errorf("background %s in %s mode", background, scheme)
	}
	if overflow {
		t.Error("the page is wider than the window")
	}
	counts := map[string]int{}
	for _, mark := range marks {
		counts[mark]++
	}
	for _, c := range r.Cells {
		if c.Summary == nil {
			if n := counts["bar "+c.ID()]; n > 0 {
				t.Errorf("%s was not measured and has %d bars", c.ID(), n)
			}
			continue
		}
		samples := c.Summary.Samples
		if counts["bar "+c.ID()] == 0 || counts["interval "+c.ID()] == 0 || counts["sample "+c.ID()] < samples {
			t.Errorf("%s has %d bars, %d intervals, %d dots for %d samples", c.ID(),
				counts["bar "+c.ID()], counts["interval "+c.ID()], counts["sample "+c.ID()], samples)
		}
	}
	return picture
}
