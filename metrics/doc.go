// Package metrics shows what a network does to Prometheus.
//
// It imports nothing else of Slipway: whoever counts offers its numbers through
// [Source], and they are read only when somebody scrapes. So nothing here is on the
// way of a packet, and nothing is counted twice.
//
// Names follow https://prometheus.io/docs/practices/naming/. Every set of labels is
// bounded, see the limits in bound.go, and no value of a label is chosen by what the
// container sends.
//
// The endpoint offers /metrics and a line of text at /; no profiler and no control.
package metrics
