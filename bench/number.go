package bench

import (
	"fmt"
	"math"
	"strings"
)

// prefixes of a unit, from the largest.
var prefixes = []struct {
	name   string
	factor float64
}{{"G", 1e9}, {"M", 1e6}, {"k", 1e3}, {"", 1}, {"m", 1e-3}, {"µ", 1e-6}}

// scale is the prefix in which a value of the unit reads well.
func (u Unit) scale(value float64) (name string, factor float64) {
	for _, p := range prefixes {
		// 0.62 Gbit/s beside 21 Gbit/s reads better than 620 Mbit/s; "0.5 /s" stays what it is,
		// and there are no kiloseconds.
		switch {
		case u == UnitBitsPerSecond && p.factor >= 1 && value >= 0.1*p.factor,
			u == UnitPerSecond && p.factor <= 1e3 && p.factor >= 1 && value >= 10*p.factor,
			u == UnitBytes && p.factor >= 1 && value >= p.factor,
			u == UnitSeconds && p.factor <= 1 && value >= p.factor:
			return p.name, p.factor
		}
	}
	if u == UnitSeconds {
		return "µ", 1e-6
	}
	return "", 1
}

// name of the unit with a prefix, as it stands after a number.
func (u Unit) name(prefix string) string {
	if u == UnitPerSecond {
		return prefix + "/s"
	}
	return prefix + string(u)
}

// Format gives a value of the unit with three significant digits, as in "21.0 Gbit/s".
func (u Unit) Format(value float64) string {
	prefix, factor := u.scale(math.Abs(value))
	return digits(value/factor) + " " + u.name(prefix)
}

// formatRange gives two values in the unit of the larger, as in "20.1 - 22.4".
func (u Unit) formatRange(low, high float64) string {
	_, factor := u.scale(high)
	return digits(low/factor) + " - " + digits(high/factor)
}

// digits of a number, three significant ones where it has as many.
func digits(v float64) string {
	switch abs := math.Abs(v); {
	case abs == 0:
		return "0"
	case abs >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case abs >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case abs >= 0.0995:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// ratio with two significant digits or more, "-" where there is nothing to divide by.
func ratio(value float64) string {
	switch {
	case value == 0:
		return "-"
	case value < 0.1:
		return fmt.Sprintf("%.3fx", value)
	case value < 10:
		return fmt.Sprintf("%.2fx", value)
	}
	return fmt.Sprintf("%.1fx", value)
}

// times is a ratio with the sign that print uses.
func times(value float64) string { return strings.Replace(ratio(value), "x", "×", 1) }

// percent of a share, 0 to 1.
func percent(share float64) string {
	if share > 0 && share < 0.0995 {
		return fmt.Sprintf("%.1f %%", 100*share)
	}
	return fmt.Sprintf("%.0f %%", 100*share)
}

// count of something, as in "1 stream" and "4 streams".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
