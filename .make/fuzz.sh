#!/bin/sh
# Runs every fuzz target of the tree, one after another: go test takes one at a time.
#   fuzz.sh TIME
# Names without blanks, split into words on purpose:
# shellcheck disable=SC2013
set -eu
time=${1:-60s}
go=${GO:-go}
found=0
for file in $(grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | sort); do
	package=./$(dirname "${file#./}")
	for target in $(sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p' "$file"); do
		found=$((found + 1))
		echo "== $package $target ($time)"
		# Without a bound, making an interesting input smaller takes most of the time of a slow target.
		"$go" test "$package" -run '^$' -fuzz "^$target\$" -fuzzminimizetime 20x -fuzztime "$time"
	done
done
[ "$found" -gt 0 ] || { echo "fuzz: no target found" >&2; exit 1; }
echo "fuzz: $found targets"
