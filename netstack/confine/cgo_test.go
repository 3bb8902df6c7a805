//go:build cgo

package confine_test

const builtWithCgo = true
