package bench

import "fmt"

// defects are faults of drivers that were seen and explained. A row that shows one is not
// compared with others: it says more of the fault than of the driver.
var defects = []struct {
	driver      string
	minMTU      int
	retransmits float64 // in the median, at least; what the fault shows itself by
	text        string
}{
	{DriverPasta, 9000, 100, "pasta loses frames of this size under load and the container sends them again"},
}

// markDefects of the rows that show them.
func (r *Report) markDefects() {
	for i := range r.Cells {
		c := &r.Cells[i]
		if c.Summary == nil || c.Workload != WorkloadStream || c.Direction == DirectionDown {
			continue
		}
		for _, d := range defects {
			if c.Driver == d.driver && c.MTU >= d.minMTU && c.Summary.Retransmits >= d.retransmits {
				c.Defect = fmt.Sprintf("%s: %.0f retransmits in the median", d.text, c.Summary.Retransmits)
			}
		}
	}
}
