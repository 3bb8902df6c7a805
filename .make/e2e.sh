#!/bin/sh
# Runs the end-to-end tests (build tag e2e) on bin/slipway, as whoever calls it. For root that is half of the truth, so
# root runs them twice, each time in a private mount namespace, and nothing of either stays on the machine:
#
#   root   with a /dev/net/tun of mode 0600, as the kernel makes it where no udev runs, and a range of sub-ids
#   user   as an ordinary user with a range of sub-ids, who exists only in copies of /etc/passwd and its like bound
#          over the originals, and with a /dev/net/tun of mode 0666, as udev makes it
#
#   e2e.sh                      E2EFLAGS='-test.run NAME' for a part
#   e2e.sh --inside WHO TMP     one of the two; e2e.sh calls itself so
#
# E2EFLAGS are words:
# shellcheck disable=SC2086
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export CGO_ENABLED=0
go=${GO:-go}
name=slipway-e2e

# The tests' own verdicts and tables while they run, then what failed, what was skipped and why, and what it comes to.
run() { # LABEL TMP COMMAND...
	label=$1
	tmp=$2
	shift 2
	echo "== end-to-end tests as $label"
	log=$tmp/$label.log
	{ "$@" 2>&1 && echo 0 >"$tmp/status" || echo "$?" >"$tmp/status"; } | tee "$log" |
		grep -E '^--- (PASS|FAIL|SKIP)|^ +--- FAIL|^panic:|^\| ' || true
	status=$(cat "$tmp/status")
	[ "$status" -eq 0 ] || grep -vE '^=== |^ *--- (PASS|SKIP)' "$log" || true
	awk '/^=== (RUN|NAME|CONT) / { test = $3 } /_test\.go:[0-9]+:/ { sub(/^ */, ""); reason[test] = $0 }
		/--- SKIP:/ { print "skipped " $3 ": " reason[$3] }' "$log"
	count() { grep -c "^ *--- $1" "$log" || true; }
	echo "e2e-$label: $(count PASS) passed, $(count FAIL) failed, $(count SKIP) skipped"
	return "$status"
}

cover_tun() { # TMP MODE
	mkdir -p "$1/dev"
	mount -t tmpfs -o mode=0755 tmpfs "$1/dev"
	mknod "$1/dev/tun" c 10 200
	chmod "$2" "$1/dev/tun"
	mount --bind "$1/dev/tun" /dev/net/tun
}

cover_etc() { # TMP USER [ID]: copies with a range of sub-ids for USER, past every other one; with ID a new user
	mkdir -p "$1/etc"
	for f in passwd group subuid subgid; do
		if [ -e "/etc/$f" ]; then cp "/etc/$f" "$1/etc/$f"; else : >"$1/etc/$f"; fi
	done
	for f in subuid subgid; do
		awk -F: -v user="$2" 'BEGIN { end = 100000 } NF == 3 && $2 + $3 > end { end = $2 + $3 } $1 == user { has = 1 }
			{ print } END { if (!has) printf "%s:%.0f:65536\n", user, end }' "$1/etc/$f" >"$1/etc/$f.new"
		mv "$1/etc/$f.new" "$1/etc/$f"
	done
	if [ -n "${3:-}" ]; then
		echo "$2:x:$3:$3::$1/home:/bin/sh" >>"$1/etc/passwd"
		echo "$2:x:$3:" >>"$1/etc/group"
	fi
	chmod 0644 "$1/etc"/*
	for f in passwd group subuid subgid; do
		[ -e "/etc/$f" ] || continue
		mount --bind "$1/etc/$f" "/etc/$f"
	done
}

inside_root() { # TMP
	cover_etc "$1" root
	cover_tun "$1" 0600
	cd cmd/slipway
	SLIPWAY_BIN=$1/slipway
	export SLIPWAY_BIN
	run root "$1" "$1/e2e.test" -test.v -test.timeout 8m ${E2EFLAGS:-}
}

inside_user() { # TMP
	# The first id from 59000 on that is in neither file.
	id=$(awk -F: '{ used[$3] = 1 } END { for (id = 59000; id in used; id++); print id }' /etc/passwd /etc/group)
	cover_etc "$1" "$name" "$id"
	cover_tun "$1" 0666
	mkdir "$1/src"
	mkdir -m 0700 "$1/home" "$1/run"
	chown "$id:$id" "$1/home" "$1/run"
	mount --bind . "$1/src" # the tree may lie where only root can go
	cd "$1/src/cmd/slipway"
	run user "$1" \
		setpriv --reuid "$id" --regid "$id" --init-groups --inh-caps=-all \
		env -i PATH="$PATH" LANG=C.UTF-8 USER="$name" HOME="$1/home" XDG_RUNTIME_DIR="$1/run" \
		SLIPWAY_BIN="$1/slipway" SLIPWAY_E2E_BYTES="${SLIPWAY_E2E_BYTES:-}" "$1/e2e.test" -test.v -test.timeout 8m ${E2EFLAGS:-}
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
cp bin/slipway "$tmp/slipway"

if [ "$(id -u)" -ne 0 ]; then
	cd cmd/slipway
	SLIPWAY_BIN=$tmp/slipway
	export SLIPWAY_BIN
	run user "$tmp" "$tmp/e2e.test" -test.v -test.timeout 8m ${E2EFLAGS:-}
	exit
fi
failed=0
for who in root user; do
	mkdir "$tmp/$who"
	ln "$tmp/slipway" "$tmp/e2e.test" "$tmp/$who"
	unshare --mount --propagation private sh "$0" --inside "$who" "$tmp/$who" || failed=1
done
exit "$failed"
