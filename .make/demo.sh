#!/bin/sh
# The whole of Slipway in one go: a rootless web server with a published port, iperf3 between container and host, and
# the gap table. Ends 0 only if every step worked, and leaves nothing behind.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
slipway=${SLIPWAY:-bin/slipway}

tmp=
web=
server=
cleanup() {
	status=$?
	trap - EXIT
	for pid in $web $server; do kill "$pid" 2>/dev/null || true; done
	for pid in $web $server; do wait "$pid" 2>/dev/null || true; done
	[ -z "$tmp" ] || rm -rf "$tmp"
	[ "$status" -eq 0 ] || echo "demo: failed (status $status)" >&2
	exit "$status"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

step() { printf '\n== %s\n' "$*"; }
show() { printf '$ %s\n' "$*"; }
die() { echo "demo: $*" >&2; exit 1; }

free_port() { # FIRST -> the first port from there on that nobody listens on
	port=$1
	while [ -n "$(ss -Hltn "sport = :$port")" ]; do port=$((port + 1)); done
	echo "$port"
}

until_true() { # SECONDS PID COMMAND...: polls COMMAND while PID lives
	tries=$(($1 * 10))
	pid=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		tries=$((tries - 1))
		if [ "$tries" -le 0 ] || ! kill -0 "$pid" 2>/dev/null; then return 1; fi
		sleep 0.1
	done
}

listening() { [ -n "$(ss -Hltn "sport = :$1")" ]; }

# Readable by the container's root, whose uid outside is neither root's nor yours.
tmp=$(mktemp -d)
chmod 0755 "$tmp"
mkdir -m 0755 "$tmp/site" "$tmp/site/www"
: >"$tmp/web.log"
chmod 0666 "$tmp/web.log" # nginx opens /dev/stdout by name, as another user

step 'this machine'
show "$slipway doctor"
"$slipway" doctor || echo 'demo: doctor sees a fault (above); trying all the same'

step 'a web server in a rootless container'
http=$(free_port 18080)
cat >"$tmp/site/www/index.html" <<'PAGE'
<!doctype html><title>Slipway</title><p>Served by nginx in a rootless container, over a network in user space.
PAGE
# nginx is the container's root; without a sub-id range there is no other user it could change to.
cat >"$tmp/site/nginx.conf" <<'CONF'
user root;
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr warn;
events { worker_connections 256; }
http {
    access_log /dev/stdout combined;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {
        listen 80;
        listen [::]:80;
        root /mnt/site/www;
    }
}
CONF
chmod 0644 "$tmp/site/nginx.conf" "$tmp/site/www/index.html"

show "$slipway run --rm -p $http:80 -v SITE:/mnt/site:ro host nginx -c /mnt/site/nginx.conf -g 'daemon off;' &"
"$slipway" run --rm -p "$http:80" -v "$tmp/site:/mnt/site:ro" host \
	nginx -c /mnt/site/nginx.conf -g 'daemon off;' >>"$tmp/web.log" 2>&1 &
web=$!
until_true 20 "$web" curl -fsS --max-time 2 -o /dev/null "http://127.0.0.1:$http/" || {
	cat "$tmp/web.log" >&2
	die "no page on port $http within 20 s"
}
show "curl http://127.0.0.1:$http/"
curl -fsS --max-time 5 "http://127.0.0.1:$http/"

# A loopback client is shown as the gateway (a remote one must never look local); any other keeps its own address.
client() { awk '/"GET \/ HTTP/ { address = $1 } END { print address }' "$tmp/web.log"; }
logged() { [ "$(client)" = "$1" ]; }
expect() { # ADDRESS: the address the last request must be logged with
	until_true 5 "$web" logged "$1" || {
		cat "$tmp/web.log" >&2
		die "the container logged $(client) for a client that is $1"
	}
	grep '"GET / HTTP' "$tmp/web.log" | tail -n 1
}
echo 'its log, for a client on 127.0.0.1 (shown as the gateway):'
expect 10.0.2.2
own=$(ip -4 -o addr show scope global up | awk '{ sub("/.*", "", $4); print $4; exit }')
if [ -n "$own" ]; then
	curl -fsS --max-time 5 -o /dev/null "http://$own:$http/"
	echo "and for a client on $own:"
	expect "$own"
fi

show "$slipway run --rm host sh -c 'id -u; cat /proc/self/uid_map'"
"$slipway" run --rm host sh -c 'id -u; cat /proc/self/uid_map' >"$tmp/ids" || die 'the second container failed'
awk 'NR == 1 { inside = $1 } NR == 2 { printf "uid %s in the container is uid %s outside\n", inside, $2 }' "$tmp/ids"

step 'iperf3 between container and host'
tcp=$(free_port 15201)
iperf3 -s -B 127.0.0.1 -p "$tcp" >"$tmp/iperf3.log" 2>&1 &
server=$!
until_true 10 "$server" listening "$tcp" || { cat "$tmp/iperf3.log" >&2; die 'iperf3 -s did not start'; }
measure() { # NAME [FLAG]
	show "$slipway run --rm --host-access loopback=$tcp host iperf3 -c host.slipway.internal -p $tcp -t 3${2:+ $2}"
	"$slipway" run --rm --host-access "loopback=$tcp" host \
		iperf3 -c host.slipway.internal -p "$tcp" -t 3 -f g ${2:+"$2"} >"$tmp/measured" 2>&1 || {
		cat "$tmp/measured" >&2
		die "iperf3 failed: $1"
	}
	awk -v name="$1" '/receiver/ { for (i = 2; i <= NF; i++) if ($i == "Gbits/sec") { printf "%s: %s Gbit/s\n", name, $(i-1); found = 1 } }
		END { exit !found }' "$tmp/measured" || { cat "$tmp/measured" >&2; die "iperf3 said no rate: $1"; }
}
measure 'container to host'
measure 'host to container' -R
kill "$server"
wait "$server" 2>/dev/null || true
server=

kill "$web"
wait "$web" 2>/dev/null || true
web=

step 'the gap: how far each path is from the host'"'"'s own loopback'
# Short, and without the rows of pasta: make bench has the whole of it.
show "$slipway bench --seconds 1 --repetitions 3 --only slipway,slirp4netns"
"$slipway" bench --seconds 1 --repetitions 3 --only slipway,slirp4netns

printf '\ndemo: all of it worked\n'
