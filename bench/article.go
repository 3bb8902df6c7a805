package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// article is what an article on rootless Docker measured with iperf3: two containers on a
// bridge, and a container to its host, through the bridge and slirp4netns.
var article = []struct {
	flow     string
	measured float64 // bits per second
	drivers  []string
}{
	{"container to container there, over one veth pair here", 25.5e9, []string{DriverVeth}},
	{"container to host, through slirp4netns", 0.848e9, []string{DriverSlirp4netns, DriverRootlessKit, DriverSlipway}},
}

// WriteArticle puts the article's two figures beside those of this run.
func (r *Report) WriteArticle(w io.Writer) error {
	var b strings.Builder
	b.WriteString("\nAn article's figures, from another machine, and those of this run: upload of a container, Gbit/s\n")
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, a := range article {
		fmt.Fprintf(t, "%s\tthe article\t%.3g\n", a.flow, a.measured/1e9)
		for _, c := range r.Cells {
			for _, driver := range a.drivers {
				if c.Driver != driver || c.Workload != WorkloadStream || c.Direction != DirectionUp || c.DelayMillis > 0 {
					continue
				}
				value := "not measured"
				if c.Summary != nil {
					value = fmt.Sprintf("%.3g", c.Summary.Median/1e9)
				}
				fmt.Fprintf(t, "\t%s, MTU %d\t%s\n", c.Driver, c.MTU, value)
			}
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write the article's figures: %w", err)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write the article's figures: %w", err)
	}
	return nil
}
