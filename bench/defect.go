package bench

import "fmt"

// defects are faults of drivers that were seen and explained. A row that shows one is not
// compared with others: it says more of the fault than of the driver.
var defects = []struct {
	driver string
	again  float64 // what the fault shows itself by: sentAgain, at least
	text   string
}{
	{DriverPasta, 0.01, "pasta loses part of what the container sends, which then waits for its retransmission timeouts"},
}

// markDefects of the rows that show them.
func (r *Report) markDefects() {
	for i := range r.Cells {
		c := &r.Cells[i]
		if c.Summary == nil || c.Workload != WorkloadStream || c.Direction == DirectionDown {
			continue
		}
		for _, d := range defects {
			if again := c.sentAgain(); c.Driver == d.driver && again >= d.again {
				c.Defect = fmt.Sprintf("%s: %.2g %% of the packets were sent again, in the median", d.text, again*100)
			}
		}
	}
}

// sentAgain is the median share of packets that are sent again.
func (c Cell) sentAgain() float64 {
	return median(c.counted(), func(s Sample) float64 {
		return float64(s.Retransmits) / max(1, float64(s.Bytes)/float64(c.MTU))
	})
}
