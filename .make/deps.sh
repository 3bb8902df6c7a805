#!/bin/sh
# Finds what the demo and the tests need and this machine lacks, installs it, and says what it did, one line each.
# Safe to run any number of times; does nothing where nothing is missing.
#
#   deps.sh [SCOPE]              as root, or as an ordinary user (then sudo is asked for what needs root)
#   deps.sh [SCOPE] --for USER   the part that needs root, for USER; deps.sh calls itself so through sudo
#
# SCOPE is tests: also what only the tests run, which is Prometheus; or clients: also the programs that call
# slirp4netns, which make test-clients runs; or browser: also Chromium, for make test-page.
# Lists of names are split into words on purpose:
# shellcheck disable=SC2086
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# Without these the demo or the tests cannot run; without the optional ones something is left out: rows of the gap
# table (slirp4netns, pasta), or tests that want a root filesystem of one file (busybox).
needed='curl ip iperf3 nginx newuidmap newgidmap nsenter setpriv unshare'
optional='slirp4netns pasta busybox wrk'
scope=
case ${1:-} in
tests)
	optional="$optional prometheus promtool"
	;;
clients)
	# A distribution that lacks one leaves that client's tests out.
	optional="$optional rootlesskit rootlessctl podman netavark buildah runc dockerd docker iptables sysctl"
	;;
browser)
	needed="$needed chromium"
	;;
esac
case ${1:-} in tests | clients | browser)
	scope=$1
	shift
	;;
esac
tun=/dev/net/tun
range=65536

quiet=yes
say() { quiet=no; echo "deps: $*"; }
die() { echo "deps: $*" >&2; exit 1; }
# Podman's own programs are not in PATH.
have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/lib/podman/$1" ] || [ -x "/usr/libexec/podman/$1" ]; }

absent() { # TOOL... -> those that are not in PATH
	for t in "$@"; do have "$t" || printf '%s ' "$t"; done
}

manager() {
	for m in apt-get dnf zypper pacman apk; do
		if have "$m"; then echo "$m"; return; fi
	done
	echo none
}

package() { # MANAGER TOOL -> the package that has the tool
	case $1:$2 in
	apt-get:newuidmap | apt-get:newgidmap) echo uidmap ;;
	apk:newuidmap | apk:newgidmap) echo shadow-uidmap ;;
	dnf:newuidmap | dnf:newgidmap) echo shadow-utils ;;
	*:newuidmap | *:newgidmap) echo shadow ;;
	dnf:ip) echo iproute ;;
	*:ip) echo iproute2 ;;
	zypper:iperf3) echo iperf ;;
	apt-get:nginx) echo nginx-light ;;
	*:rootlessctl) echo rootlesskit ;;
	apt-get:docker | apt-get:dockerd) echo docker.io ;;
	dnf:dockerd) echo moby-engine ;;
	dnf:docker) echo docker-cli ;;
	*:dockerd) echo docker ;;
	apk:unshare | apk:nsenter) echo util-linux-misc ;;
	apk:setpriv) echo setpriv ;;
	*:unshare | *:nsenter | *:setpriv) echo util-linux ;;
	*:pasta) echo passt ;;
	dnf:sysctl | pacman:sysctl) echo procps-ng ;;
	*:sysctl) echo procps ;;
	*:promtool) echo prometheus ;;
	apt-get:busybox | apk:busybox | zypper:busybox) echo busybox-static ;;
	*) echo "$2" ;;
	esac
}

packages() { # MANAGER TOOL... -> packages, each once
	m=$1
	shift
	for t in "$@"; do package "$m" "$t"; done | sort -u | tr '\n' ' '
}

install_command() { # MANAGER PACKAGE... -> what a person would type
	m=$1
	shift
	case $m in
	apt-get) echo "apt-get install --no-install-recommends $*" ;;
	pacman) echo "pacman -S --needed $*" ;;
	apk) echo "apk add $*" ;;
	*) echo "$m install $*" ;;
	esac
}

# Debian starts a service as soon as its package is there: a web server on port 80 that nobody asked for, a Docker.
# policy-rc.d is how an installer says no (invoke-rc.d(8)); an administrator's own is left alone.
policy=/usr/sbin/policy-rc.d
hold_services() {
	[ ! -e "$policy" ] || return 0
	trap 'rm -f "$policy"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 0755 "$policy"
}

release_services() {
	rm -f "$policy"
	trap - EXIT INT TERM
}

# Packages also have their services started at every boot. These are the links by which systemd and init do that.
enabled() {
	for d in /etc/systemd/system /etc/systemd/user /etc/rc?.d; do
		case $d in
		/etc/rc?.d) [ ! -d "$d" ] || find "$d" -name 'S*' ;;
		*) [ ! -d "$d" ] || find "$d" -path '*.wants/*' -type l ;;
		esac
	done | sort
}

disable_new() { # FILE of what was enabled before: undoes what a package has added meanwhile
	enabled | comm -13 "$1" - | while read -r link; do
		unit=${link##*/}
		case $link in
		/etc/systemd/user/*) systemctl --global disable "$unit" >/dev/null 2>&1 || rm -f "$link" ;;
		/etc/systemd/*) systemctl disable "$unit" >/dev/null 2>&1 || rm -f "$link" ;;
		*) update-rc.d "${unit#S[0-9][0-9]}" disable >/dev/null 2>&1 || true ;;
		esac
		case $link in
		/etc/systemd/*) echo "${unit%.*}" ;;
		*) echo "${unit#S[0-9][0-9]}" ;;
		esac
	done | sort -u | tr '\n' ' '
}

apt_install() { # PACKAGE...
	export DEBIAN_FRONTEND=noninteractive
	if [ -e "$policy" ]; then held=no; else held=yes; fi
	[ "$held" = no ] || hold_services
	if apt-get install -y -q --no-install-recommends "$@" </dev/null >"$log" 2>&1; then status=0; else status=$?; fi
	[ "$held" = no ] || release_services
	return "$status"
}

manager_install() { # MANAGER PACKAGE...
	m=$1
	shift
	case $m in
	apt-get) apt_install "$@" ;;
	dnf) dnf -y install "$@" ;;
	zypper) zypper --non-interactive install "$@" ;;
	pacman) pacman -Sy --noconfirm --needed "$@" ;;
	apk) apk add "$@" ;;
	esac </dev/null >"$log" 2>&1
}

offered() { # MANAGER PACKAGE...: could they be installed?
	m=$1
	shift
	case $m in
	apt-get) apt-get -s install --no-install-recommends "$@" ;;
	dnf) dnf -q info "$@" ;;
	zypper) zypper --non-interactive install --dry-run "$@" ;;
	pacman) pacman -Si "$@" ;;
	apk) apk add -s "$@" ;;
	esac >/dev/null 2>&1
}

stale() { # PACKAGE...: does apt-get know too little to install them?
	if ! ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1; then return 0; fi
	[ $# -gt 0 ] && ! offered apt-get "$@"
}

install_tools() {
	missing=$(absent $needed)
	extra=$(absent $optional)
	[ -n "$missing$extra" ] || return 0
	m=$(manager)
	[ "$m" != none ] || { say "no known package manager; missing: $missing$extra"; return 0; }

	want=$(packages "$m" $missing)
	if [ "$m" = apt-get ] && stale $want; then
		say "package lists are missing or old: apt-get update"
		apt-get -q update >"$log" 2>&1 || { cat "$log" >&2; die "apt-get update failed"; }
	fi
	for p in $(packages "$m" $extra); do
		if offered "$m" "$p"; then want="$want$p "; else say "this distribution has no package $p; going on without it"; fi
	done
	[ -n "$want" ] || return 0

	before=$(mktemp)
	enabled >"$before"
	if ! manager_install "$m" $want; then
		if [ "$m" != apt-get ] || ! apt-get -q update >>"$log" 2>&1 || ! manager_install "$m" $want; then
			cat "$log" >&2
			die "this failed: $(install_command "$m" "$want")"
		fi
	fi
	say "installed: $want"
	if [ "$m" = apt-get ]; then
		# Not now (hold_services), and not at the next boot either.
		services=$(disable_new "$before")
		[ -z "$services" ] || say "these services of the system were neither started nor enabled: $services"
	fi
	rm -f "$before"
}

has_range() { # USER FILE
	case $2 in */subgid) flag=-g ;; *) flag= ;; esac
	if have getsubids && getsubids $flag "$1" >/dev/null 2>&1; then return 0; fi # asks NSS too
	[ -f "$2" ] && awk -F: -v name="$1" -v id="$(id -u "$1")" '$1 == name || $1 == id { found = 1 } END { exit !found }' "$2"
}

# The first place from 100000 on (SUB_UID_MIN of login.defs(5)) where no range of either file is.
free_range() {
	cat /etc/subuid /etc/subgid 2>/dev/null | awk -F: -v size="$range" '
		NF == 3 { n++; from[n] = $2; to[n] = $2 + $3 }
		END {
			start = 100000
			do {
				moved = 0
				for (i = 1; i <= n; i++)
					if (from[i] < start + size && start < to[i]) { start = to[i]; moved = 1 }
			} while (moved)
			printf "%.0f\n", start
		}'
}

give_range() { # USER
	user=$1
	start=$(free_range)
	last=$((start + range - 1))
	for file in /etc/subuid /etc/subgid; do
		has_range "$user" "$file" && continue
		case $file in */subuid) option=--add-subuids ;; *) option=--add-subgids ;; esac
		# usermod takes the lock of the file; it knows only users of /etc/passwd.
		if ! { have usermod && usermod "$option" "$start-$last" "$user" 2>/dev/null; }; then
			echo "$user:$start:$range" >>"$file"
		fi
		say "$user has the ids $start-$last now ($file)"
	done
}

tun_mode() { stat -c %a "$tun"; }

open_tun() {
	if [ ! -c "$tun" ]; then
		modprobe tun 2>/dev/null || true
		if [ ! -c "$tun" ]; then
			mkdir -p "$(dirname "$tun")"
			mknod "$tun" c 10 200 2>/dev/null || { say "$tun cannot be made here; inside a container start that one with: --device $tun"; return 0; }
		fi
		say "made $tun"
	fi
	# 0600 is what the kernel makes where no udev runs; udev's own rule says 0666.
	# It grants nothing by itself: an interface can be made only with CAP_NET_ADMIN over a network namespace.
	if [ "$(tun_mode)" = 600 ]; then
		if chmod 0666 "$tun"; then say "$tun was closed to users (0600), is 0666 now, as udev makes it"; fi
	fi
}

as_root() { # USER...
	umask 022
	log=$(mktemp)
	install_tools
	rm -f "$log"
	open_tun
	for u in "$@"; do give_range "$u"; done
}

# What is still wrong, for a person; empty when all is well.
faults() {
	missing=$(absent $needed)
	[ -z "$missing" ] || printf 'missing: %s' "$missing"
	if [ ! -c "$tun" ]; then
		printf 'missing: %s ' "$tun"
	elif [ ! -r "$tun" ] || [ ! -w "$tun" ] || [ "$(tun_mode)" = 600 ]; then
		printf 'not open to users: %s ' "$tun"
	fi
}

no_range() { # USER...
	for u in "$@"; do
		if ! has_range "$u" /etc/subuid || ! has_range "$u" /etc/subgid; then printf '%s ' "$u"; fi
	done
}

check_go() {
	have go || die "Go is not in PATH; Slipway needs Go 1.26 or newer"
	version=$(go env GOVERSION) || die "go does not run here (see above)"
	minor=${version#go1.}
	minor=${minor%%[!0-9]*}
	[ "${minor:-0}" -ge 26 ] || die "this is $version; Slipway needs Go 1.26 or newer"
}

by_hand() { # USER... -> the commands for root
	m=$(manager)
	missing=$(absent $needed)
	[ -z "$missing" ] || echo "  $(install_command "$m" "$(packages "$m" $missing)")"
	[ -c "$tun" ] || echo "  modprobe tun"
	[ -w "$tun" ] || echo "  chmod 0666 $tun"
	for u in $(no_range "$@"); do
		start=$(free_range)
		last=$((start + range - 1))
		echo "  usermod --add-subuids $start-$last --add-subgids $start-$last $u"
	done
}

if [ "${1:-}" = --for ]; then
	as_root "$2"
	exit 0
fi

check_go
if [ "$(id -u)" -eq 0 ]; then
	users=root
	if [ "${SUDO_UID:-0}" -ne 0 ]; then users="root $(id -un "$SUDO_UID")"; fi
	as_root $users
else
	users=$(id -un)
	if [ -n "$(faults)$(no_range "$users")" ]; then
		quiet=no
		if ! { have sudo && { [ -t 0 ] || sudo -n true 2>/dev/null; } && sudo sh "$0" $scope --for "$users"; }; then
			echo "deps: as root, run:" >&2
			by_hand "$users" >&2
		fi
	fi
fi

wrong=$(faults)
[ -z "$wrong" ] || die "$wrong"
without=$(no_range $users)
[ -z "$without" ] || say "no sub-id range for: $without(containers get a single uid)"
left=$(absent $optional)
[ -z "$left" ] || say "optional, not here: $left"
[ "$quiet" = no ] || echo "deps: everything is here"
