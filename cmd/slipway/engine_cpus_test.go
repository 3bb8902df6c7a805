package main

import (
	"testing"
	"time"
)

// TestRush: many requests and a busy CPU are a rush, which ends later than it begins.
func TestRush(t *testing.T) {
	const few, many, calm, busy = rushRequests / 4, rushRequests, rushCPU / 4, rushCPU
	var r rush
	for i, tt := range []struct {
		requests uint64
		cpu      time.Duration
		want     bool
	}{
		{few, busy, false}, // a stream
		{many, calm, false},
		{many, busy, true},
		{many / 2, busy / 2, true},
		{few, busy, false},
		{many / 2, busy / 2, false},
		{many, busy, true},
		{many, calm, false},
	} {
		if got := r.tick(tt.requests, tt.cpu); got != tt.want {
			t.Errorf("tick %d, %d requests in %v: %t, want %t", i+1, tt.requests, tt.cpu, got, tt.want)
		}
	}
}
