# What e2e.sh and clients.sh do alike: they run tests in private namespaces in which files of the machine are covered by
# others. Read by them with `.`, from the top of the tree.
# shellcheck shell=sh

# The tests' own verdicts while they run, then all that failed ones printed, then what was skipped, what failed and what
# it said, and what it comes to. The names come last: of a long log, the end is what people see.
run() { # SUITE LABEL TMP COMMAND...
	suite=$1
	label=$2
	tmp=$3
	shift 3
	echo "== $suite tests as $label"
	log=$tmp/$label.log
	{ "$@" 2>&1 && echo 0 >"$tmp/status" || echo "$?" >"$tmp/status"; } | tee "$log" |
		grep -aE '^--- (PASS|FAIL|SKIP)|^ +--- FAIL|^panic:|^ran: |^\| ' || true
	status=$(cat "$tmp/status")
	[ "$status" -eq 0 ] || grep -avE '^=== |^ran: |^ *--- (PASS|SKIP)' "$log" || true
	awk '/^=== (RUN|NAME|CONT) / { test = $3 } /_test\.go:[0-9]+:/ { sub(/^ */, ""); said[test] = said[test] " " $0 }
		/--- SKIP:/ { print "skipped " $3 ":" said[$3] }
		/--- FAIL:/ { failed = failed "failed " $3 ":" said[$3] "\n" }
		END { printf "%s", failed }' "$log"
	count() { grep -ac "^ *--- $1" "$log" || true; }
	echo "$suite-$label: $(count PASS) passed, $(count FAIL) failed, $(count SKIP) skipped"
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

free_id() { # -> the first id from 59000 on that no user and no group has
	awk -F: '{ used[$3] = 1 } END { for (id = 59000; id in used; id++); print id }' /etc/passwd /etc/group
}
