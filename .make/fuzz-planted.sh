#!/bin/sh
# Proves that every fuzz target finds bugs: plants one in a copy of the source that the target is about, builds the
# target with that copy in place of the original (go test -overlay), and runs it. A planted bug that is not found
# within TIME fails, and so does a target that has none planted here. The tree is not touched.
#   fuzz-planted.sh [TIME]
# Names without blanks, split into words on purpose:
# shellcheck disable=SC2013
set -eu
time=${1:-60s}
go=${GO:-go}
root=$PWD
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
planted=
count=0

plant() { # PACKAGE TARGET FILE SED-SCRIPT WHAT
	package=$1 target=$2 file=$3 script=$4 what=$5
	planted="$planted $package:$target"
	count=$((count + 1))
	dir=$tmp/$count
	mkdir "$dir"
	sed "$script" "$file" >"$dir/planted.go"
	if cmp -s "$file" "$dir/planted.go"; then
		echo "fuzz-planted: $file has changed: nothing to plant \"$what\" in, adapt .make/fuzz-planted.sh" >&2
		exit 1
	fi
	printf '{"Replace":{"%s":"%s"}}\n' "$root/$file" "$dir/planted.go" >"$dir/overlay.json"
	"$go" test -overlay "$dir/overlay.json" -c -fuzz "^$target\$" -o "$dir/fuzz.test" "$package"
	# In a directory of its own: what makes the target fail is written to testdata below it.
	if (cd "$dir" && ./fuzz.test -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$time" -test.fuzzcachedir "$dir/cache" -test.parallel 2) >"$dir/log" 2>&1; then
		cat "$dir/log"
		echo "fuzz-planted: $package $target did not find in $time: $what" >&2
		exit 1
	fi
	# Not for another reason than the bug.
	if ! grep -qE 'Failing input written to|failure while testing seed corpus entry|^panic: ' "$dir/log"; then
		cat "$dir/log"
		echo "fuzz-planted: $package $target did not fail because of an input" >&2
		exit 1
	fi
	how=fuzzing
	! grep -q 'failure while testing seed corpus entry' "$dir/log" || how='its seeds'
	echo "found by $how: $package $target: $what"
}

plant ./netstack/tap FuzzHeader netstack/tap/header.go \
	's/^\tcase GSONone:$/\tcase GSONone, 6:/' \
	'a segmentation that was never asked for is taken'
plant ./netstack/tap FuzzHeader netstack/tap/header.go \
	's/int(h.CsumStart)+int(h.CsumOffset)+2 > frameLen/int(h.CsumStart+h.CsumOffset)+2 > frameLen/' \
	'offsets of the checksum overflow'
plant ./netstack/udp FuzzPacket netstack/udp/packet.go \
	's/n < wire.UDPLen || n > len(u)/n < wire.UDPLen-1 || n > len(u)/' \
	'a length below that of the header is taken'
plant ./netstack/udp FuzzInput netstack/udp/nat.go \
	's/^\td, v := parse(h, frame)$/&\n\tif v == accepted {\n\t\t_ = frame[8*int(frame[15])]\n\t}/' \
	'an index that the guest chooses'
plant ./netstack/udp FuzzInput netstack/udp/fragment.go \
	's/total < wire.IPv6Len+wire.FragmentLen || total > len(ip)/total > len(ip)/' \
	'a fragment ends before its data begins'
plant ./netstack/udp FuzzReassembly netstack/udp/reassembly.go \
	's/ || !bytes.Equal(at, f.data)/ || !bytes.Equal(at, at)/' \
	'two fragments of other bytes for the same place pass'
plant ./netstack/udp FuzzReassembly netstack/udp/reassembly.go \
	's/ || f.more == (end == p.total))/)/' \
	'a datagram may end twice'
plant ./netstack/udp FuzzReassembly netstack/udp/reassembly.go \
	's/(p.end+511)\/512/p.end\/512/' \
	'the next datagram inherits fragments'
plant ./netstack/icmp FuzzInput netstack/icmp/relay.go \
	's/^\tif !h.Trusted() {$/\t_ = m[m[1]]\n&/' \
	'an index that the guest chooses'
plant ./netstack FuzzFrames netstack/link/guard.go \
	's/^\t\tif len(b) < 24 {$/\t\tif len(b) < header.ICMPv6MinimumSize {/' \
	'a missing bound of the source guard'
plant ./netstack FuzzFrames netstack/link/guard.go \
	's/^\tb := frame\[header.EthernetMinimumSize:\]$/&\n\tif len(b) > 1 {\n\t\t_ = frame[8*int(b[1])]\n\t}/' \
	'an index that the guest chooses'
plant ./netstack/dhcp FuzzInput netstack/dhcp/server.go \
	's/len(m.ClientHWAddr) != 6 || m.ClientHWAddr\[0\]/len(m.ClientHWAddr) == 0 || m.ClientHWAddr[0]/' \
	'an Ethernet address of the wrong length is taken'
plant ./netstack/dhcp FuzzInput netstack/dhcp/server6.go \
	's/> maxDUID/> 10*maxDUID/' \
	'a long identifier makes a long answer'
plant ./netstack/dhcp FuzzInput netstack/dhcp/pool.go \
	's/ || had >= 0 \&\& p.leases\[had\].holds(now)//; s/p.leases\[had\].state, p.leases\[had\].mac = unused, mac{}/_ = had/' \
	'a client gets a second lease'
plant ./netstack/ndp FuzzInput netstack/ndp/router.go \
	's/p.TTL != discoveryHops || //' \
	'a solicitation that came through a router is taken'
plant ./portfwd FuzzParse portfwd/parse.go \
	's/ || addr.IsMulticast()//' \
	'a port is published at a multicast address'
plant ./portfwd FuzzParse portfwd/parse.go \
	's/^\ts.HostPort = uint16(port)$/\ts.HostPort = uint16(port) \& 0x7fff/' \
	'a port loses its highest bit'
plant ./portfwd/slirp4netns FuzzRequest portfwd/slirp4netns/request.go \
	's/ || guestPort == 0//' \
	'port 0 of the guest is forwarded to'
plant ./portfwd/slirp4netns FuzzRequest portfwd/slirp4netns/request.go \
	's/ || a\.Is4In6()//' \
	'an IPv4 address passes as an IPv6 one'
plant ./runtime/image FuzzExtract runtime/image/extract.go \
	's|x\.root\.Mkdir(name, 0o755)|os.Mkdir(x.root.Name()+"/"+h.Name, 0o755)|' \
	'a directory is made outside of the root'

for file in $(grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | sort); do
	package=./$(dirname "${file#./}")
	for target in $(sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p' "$file"); do
		case " $planted " in
		*" $package:$target "*) ;;
		*)
			echo "fuzz-planted: no bug is planted for $package $target" >&2
			exit 1
			;;
		esac
	done
done
echo "fuzz-planted: every target finds its bugs, $count in all"
