package bench

import "testing"

func TestUnitFormat(t *testing.T) {
	tests := []struct {
		unit  Unit
		value float64
		want  string
	}{
		{UnitBitsPerSecond, 21.04e9, "21.0 Gbit/s"},
		{UnitBitsPerSecond, 0.62e9, "0.62 Gbit/s"},
		{UnitBitsPerSecond, 14e6, "14.0 Mbit/s"},
		{UnitBitsPerSecond, 0, "0 bit/s"},
		{UnitPerSecond, 123456, "123 k/s"},
		{UnitPerSecond, 5120, "5120 /s"},
		{UnitPerSecond, 0.5, "0.50 /s"},
		{UnitSeconds, 1.5, "1.50 s"},
		{UnitSeconds, 0.0123, "12.3 ms"},
		{UnitSeconds, 81e-6, "81.0 µs"},
		{UnitSeconds, 4e-8, "0.040 µs"},
	}
	for _, tt := range tests {
		if got := tt.unit.Format(tt.value); got != tt.want {
			t.Errorf("%g in %s = %q, want %q", tt.value, tt.unit, got, tt.want)
		}
	}
	if got, want := UnitSeconds.formatRange(0.0005, 0.0021), "0.50 - 2.10"; got != want {
		t.Errorf("range = %q, want %q", got, want)
	}
}
