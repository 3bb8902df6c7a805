#!/bin/sh
# Runs the end-to-end tests (build tag e2e) on bin/slipway, as whoever calls it. For root that is half of the truth, so
# root runs them again as an ordinary user with a sub-id range: a user that exists only in copies of /etc/passwd and
# its like, bound over the originals in a private mount namespace. Nothing of it stays on the machine.
#
#   e2e.sh                 E2EFLAGS='-test.run NAME' for a part
#   e2e.sh --user TMP      the second run, inside its namespace; e2e.sh calls itself so
# E2EFLAGS are words:
# shellcheck disable=SC2086
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
go=${GO:-go}
name=slipway-e2e

# The test binary's own lines, one for each test, and at the end what it comes to.
run() { # LABEL TMP COMMAND...
	label=$1
	tmp=$2
	shift 2
	echo "== end-to-end tests as $label"
	log=$tmp/log
	{ "$@" 2>&1 && echo 0 >"$tmp/status" || echo "$?" >"$tmp/status"; } | tee "$log" | grep -E '^--- (PASS|FAIL|SKIP)|^ +--- FAIL|^panic:' || true
	status=$(cat "$tmp/status")
	[ "$status" -eq 0 ] || grep -vE '^=== |^ *--- (PASS|SKIP)' "$log" || true
	awk '/^=== (RUN|NAME|CONT) / { test = $3 } /_test\.go:[0-9]+:/ { sub(/^ */, ""); reason[test] = $0 }
		/--- SKIP:/ { print "skipped " $3 ": " reason[$3] }' "$log"
	count() { grep -c "^ *--- $1" "$log" || true; }
	echo "e2e-$label: $(count PASS) passed, $(count FAIL) failed, $(count SKIP) skipped"
	return "$status"
}

free_id() { # the first uid from 59000 on that is in neither file
	awk -F: '{ used[$3] = 1 } END { for (id = 59000; id in used; id++); print id }' /etc/passwd /etc/group
}

as_user() { # TMP
	tmp=$1
	id=$(free_id)
	etc=$tmp/etc
	mkdir -p "$etc" "$tmp/dev" "$tmp/src"
	for f in passwd group subuid subgid; do
		[ -e "/etc/$f" ] || : >"/etc/$f"
		cp "/etc/$f" "$etc/$f"
	done
	echo "$name:x:$id:$id::$tmp/home:/bin/sh" >>"$etc/passwd"
	echo "$name:x:$id:" >>"$etc/group"
	# Past every range of the file: overlapping ones would let two users into each other's containers.
	for f in subuid subgid; do
		awk -F: -v name="$name" 'BEGIN { end = 100000 } NF == 3 && $2 + $3 > end { end = $2 + $3 }
			{ print } END { printf "%s:%.0f:65536\n", name, end }' "/etc/$f" >"$etc/$f"
	done
	chmod 0644 "$etc"/*
	for f in passwd group subuid subgid; do mount --bind "$etc/$f" "/etc/$f"; done

	# The node as udev leaves it, whatever this machine's is.
	mount -t tmpfs -o mode=0755 tmpfs "$tmp/dev"
	mknod -m 0666 "$tmp/dev/tun" c 10 200
	mount --bind "$tmp/dev/tun" /dev/net/tun

	# The tree may lie where only root can go.
	mount --bind . "$tmp/src"
	mkdir -m 0700 "$tmp/home" "$tmp/run"
	chown "$id:$id" "$tmp/home" "$tmp/run"
	cd "$tmp/src/cmd/slipway"
	run user "$tmp" \
		setpriv --reuid "$id" --regid "$id" --init-groups --inh-caps=-all \
		env -i PATH="$PATH" LANG=C.UTF-8 USER="$name" HOME="$tmp/home" XDG_RUNTIME_DIR="$tmp/run" \
		SLIPWAY_BIN="$tmp/slipway" "$tmp/e2e.test" -test.v -test.timeout 8m ${E2EFLAGS:-}
}

if [ "${1:-}" = --user ]; then
	as_user "$2"
	exit
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
chmod 0755 "$tmp"
"$go" test -c -tags e2e -o "$tmp/e2e.test" ./cmd/slipway
cp bin/slipway "$tmp/slipway"

if [ "$(id -u)" -eq 0 ]; then label=root; else label=user; fi
failed=0
(
	cd cmd/slipway
	export SLIPWAY_BIN="$tmp/slipway"
	run "$label" "$tmp" "$tmp/e2e.test" -test.v -test.timeout 8m ${E2EFLAGS:-}
) || failed=1
if [ "$label" = root ]; then
	unshare --mount --propagation private sh "$0" --user "$tmp" || failed=1
fi
exit "$failed"
