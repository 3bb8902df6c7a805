#!/bin/sh
# Runs the tests with real clients of slirp4netns (build tag clients) as an ordinary user who exists for them only, on a
# host that exists for them only: a network namespace with the card wan0, a mount namespace with files of its own over
# /etc/passwd and the like, and a PID namespace, with which every process of the tests ends.
#
#   clients.sh                  SLIRP4NETNS=PATH tests another slirp4netns than bin/slipway,
#                               CLIENTSFLAGS='-test.run NAME' runs a part
#   clients.sh --inside TMP     on that host; clients.sh calls itself so
#
# CLIENTSFLAGS are words:
# shellcheck disable=SC2086
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export CGO_ENABLED=0
go=${GO:-go}
name=slipway-clients
rootlesskit3=github.com/rootless-containers/rootlesskit/v3/cmd/rootlesskit@v3.3.0

. .make/private.sh

cover_network() { # TMP: the addresses are those of documentation (RFC 5737, RFC 3849), and nothing leads further
	ip link set lo up
	ip link add wan0 type veth peer name wan1
	ip address add 192.0.2.1/24 dev wan0
	ip address add 192.0.2.2/24 dev wan0
	ip address add 2001:db8::1/64 dev wan0 nodad 2>/dev/null || true # a kernel without IPv6
	ip link set wan0 up
	ip link set wan1 up
	# The tests' resolver is at 192.0.2.1 port 53, and an ordinary user's.
	echo 53 >/proc/sys/net/ipv4/ip_unprivileged_port_start
	echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range
	echo 'nameserver 192.0.2.1' >"$1/etc/resolv.conf"
	chmod 0644 "$1/etc/resolv.conf"
	mount --bind "$1/etc/resolv.conf" /etc/resolv.conf
}

inside() { # TMP
	id=$(free_id)
	cover_etc "$1" "$name" "$id"
	cover_tun "$1" 0666
	cover_network "$1"
	mkdir -m 0700 "$1/home" "$1/run" "$1/t"
	chown "$id:$id" "$1/home" "$1/run" "$1/t"
	cd "$1/home"
	run clients user "$1" \
		setpriv --reuid "$id" --regid "$id" --init-groups --inh-caps=-all \
		env -i PATH="$1/bin:$PATH" LANG=C.UTF-8 USER="$name" HOME="$1/home" XDG_RUNTIME_DIR="$1/run" TMPDIR="$1/t" \
		SLIPWAY_BIN="$1/bin/slirp4netns" SLIPWAY_CLIENTS_REFERENCE="$(command -v slirp4netns || true)" \
		"$1/clients.test" -test.v -test.timeout 8m -test.run '^TestClient' ${CLIENTSFLAGS:-}
}

if [ "${1:-}" = --inside ]; then
	inside "$2"
	exit
fi

if [ "$(id -u)" -ne 0 ]; then
	echo "clients: skipped: only root can make the host on which an ordinary user's clients run" >&2
	exit
fi
sh .make/deps.sh clients
tmp=$(mktemp -d /tmp/slw.XXXXXX) # short: sockets are below it
host=
end() {
	# With unshare goes the first process of its PID namespace, and with that one every other.
	[ -z "$host" ] || { kill -KILL "$host" && wait "$host"; } 2>/dev/null || true
	rm -rf "$tmp" 2>/dev/null || { sleep 1; rm -rf "$tmp"; } # the last of them may still write
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
chmod 0755 "$tmp"
mkdir -m 0755 "$tmp/bin"

"$go" test -c -tags e2e,clients -o "$tmp/clients.test" ./cmd/slipway
program=$(readlink -f "${SLIRP4NETNS:-bin/slirp4netns}")
cp "$program" "$tmp/bin/"
[ "${program##*/}" = slirp4netns ] || ln -s "${program##*/}" "$tmp/bin/slirp4netns"
if GOFLAGS=-trimpath GOBIN=$tmp/build "$go" install "$rootlesskit3" >"$tmp/build.log" 2>&1; then
	cp "$tmp/build/rootlesskit" "$tmp/bin/rootlesskit3"
else
	echo "clients: $rootlesskit3 cannot be built here: $(tail -n 1 "$tmp/build.log")"
fi
# In the background, for a shell heeds signals at once only while it waits.
unshare --mount --propagation private --net --pid --fork --kill-child --mount-proc sh "$0" --inside "$tmp" &
host=$!
if wait "$host"; then status=0; else status=$?; fi
host=
exit "$status"
