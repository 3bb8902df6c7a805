#!/bin/sh
# Runs the end-to-end tests (build tag e2e) on bin/slipway, as whoever calls it. For root that is half of the truth, so
# root runs them twice, each time in a private mount namespace, and nothing of either stays on the machine:
#
#   root   with a /dev/net/tun of mode 0600, as the kernel makes it where no udev runs, and a range of sub-ids
#   user   as an ordinary user with a range of sub-ids, who exists only in copies of /etc/passwd and its like bound
#          over the originals, and with a /dev/net/tun of mode 0666, as udev makes it
#
#   e2e.sh                      all but what has a target of its own; E2EFLAGS='-test.run NAME' for a part
#   e2e.sh --inside WHO TMP     one of the two; e2e.sh calls itself so
#
# With SLIPWAY_E2E_SANDBOX=off, bin/slipway-race is tested, which was built with the race detector, and its engines run
# with --sandbox off: a program with cgo cannot lock itself down.
#
# E2EFLAGS are words:
# shellcheck disable=SC2086
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export CGO_ENABLED=0
go=${GO:-go}
name=slipway-e2e

. .make/private.sh

inside_root() { # TMP
	cover_etc "$1" root
	cover_tun "$1" 0600
	cd cmd/slipway
	SLIPWAY_BIN=$1/slipway
	export SLIPWAY_BIN
	run e2e root "$1" "$1/e2e.test" -test.v -test.timeout 15m ${E2EFLAGS:--test.skip TestConformance|TestFlood|TestLockedCost|TestLongPath|TestScrape|TestStall}
}

inside_user() { # TMP
	id=$(free_id)
	cover_etc "$1" "$name" "$id"
	cover_tun "$1" 0666
	mkdir "$1/src"
	mkdir -m 0700 "$1/home" "$1/run"
	chown "$id:$id" "$1/home" "$1/run"
	mount --bind . "$1/src" # the tree may lie where only root can go
	cd "$1/src/cmd/slipway"
	run e2e user "$1" \
		setpriv --reuid "$id" --regid "$id" --init-groups --inh-caps=-all \
		env -i PATH="$PATH" LANG=C.UTF-8 USER="$name" HOME="$1/home" XDG_RUNTIME_DIR="$1/run" \
		SLIPWAY_BIN="$1/slipway" SLIPWAY_E2E_BYTES="${SLIPWAY_E2E_BYTES:-}" SLIPWAY_E2E_SECONDS="${SLIPWAY_E2E_SECONDS:-}" \
		SLIPWAY_E2E_SANDBOX="${SLIPWAY_E2E_SANDBOX:-}" \
		"$1/e2e.test" -test.v -test.timeout 15m ${E2EFLAGS:--test.skip TestConformance|TestFlood|TestLockedCost|TestLongPath|TestScrape|TestStall}
}

if [ "${1:-}" = --inside ]; then
	case $2 in
	root) inside_root "$3" ;;
	user) inside_user "$3" ;;
	esac
	exit
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
chmod 0755 "$tmp"
"$go" test -c -tags e2e -o "$tmp/e2e.test" ./cmd/slipway
cp bin/slipway bin/slipway-plot "$tmp"
if [ "${SLIPWAY_E2E_SANDBOX:-}" = off ]; then
	cp bin/slipway-race "$tmp/slipway"
fi

if [ "$(id -u)" -ne 0 ]; then
	cd cmd/slipway
	SLIPWAY_BIN=$tmp/slipway
	export SLIPWAY_BIN
	run e2e user "$tmp" "$tmp/e2e.test" -test.v -test.timeout 15m ${E2EFLAGS:--test.skip TestConformance|TestFlood|TestLockedCost|TestLongPath|TestScrape|TestStall}
	exit
fi
failed=0
for who in root user; do
	mkdir "$tmp/$who"
	ln "$tmp/slipway" "$tmp/slipway-plot" "$tmp/e2e.test" "$tmp/$who"
	unshare --mount --propagation private sh "$0" --inside "$who" "$tmp/$who" || failed=1
done
exit "$failed"
