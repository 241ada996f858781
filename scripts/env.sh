#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The build environment: a Debian trixie root with the kernel's own toolchain,
# QEMU and the guest's programs, and one directory per kernel with what a Rust
# module needs to be built against it. The host supplies bash, make, mmdebstrap
# and disk space; everything else runs inside the root.
#
# Everything made here lies in one cache outside the repository:
#
#   root-KEY/                 the trixie root; KEY covers the recipe below
#   kernels/VERSION-KEY/      tree (KDIR), vmlinuz, modules; KEY covers the
#                             toolchain and the package versions
#   crates-KEY/               compiled crates; KEY covers Cargo.toml, Cargo.lock and the root
#   tools/NAME-VERSION/       programs of crates.io
#   guest/                    what guests boot with, named by contents
#   cargo/                    cargo's downloads
#   logs/  locks/
#
# A directory gets its final name by rename(2) once it is whole, under a lock,
# so an interrupted step is never taken for a finished one and two runs at once
# wait for each other.

set -euo pipefail

self=$(basename "$0")
repo=$(cd "$(dirname "$0")/.." && pwd)
# Services of an init system may have none.
export HOME=${HOME:-~}
# Debian gives these to root only, and not with a plain su.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
cache=${XDG_CACHE_HOME:-$HOME/.cache}/rust-pmem
suite=trixie
need_gib=6

# What a kernel tree is made with: Debian's kernels are built with exactly these
# compilers of $suite; backports are used for kernels only.
toolchain=(
	rustc rust-src rustfmt rust-clippy bindgen clang libclang-dev lld llvm
	gcc gcc-14 libc6-dev make bc bison flex pahole libelf-dev libssl-dev
	cpio kmod xz-utils zstd dpkg-dev
)
packages=(
	"${toolchain[@]}"
	# host programs in Rust, and libpmem for `make bench-flush` to compare with
	cargo pkg-config ca-certificates libpmem-dev
	# the guest, and what runs in it
	qemu-system-x86 seabios
	e2fsprogs xfsprogs xfsdump util-linux util-linux-extra mount fdisk parted procps
	psmisc fio stress-ng dbench strace gdb sqlite3 libsqlite3-dev lmdb-utils
	liblmdb-dev ndctl daxctl dmsetup mdadm cryptsetup-bin attr acl quota gawk perl
	iproute2 file libcap2-bin python3-minimal uuid-runtime hostname
	libaio1t64 liburing2 libgdbm6t64 libgdbm-compat4t64
)

say() { printf '[env] %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "$self" "$*" >&2; exit 1; }

# step LOG TEXT CMD…: runs CMD with its output in a log, prints what it is and how
# long it took, and on failure the end of the log and where it lies.
step() {
	local log=$cache/logs/$1 text=$2 t0=$SECONDS rc=0 ticker=
	shift 2
	mkdir -p "$cache/logs"
	if [ -t 2 ]; then
		( while sleep 1; do printf '\r[env] %s … %d s ' "$text" $((SECONDS - t0)) >&2; done ) & ticker=$!
	else
		say "$text …"
	fi
	# Not as the left side of ||, where bash ignores errexit in all that CMD calls.
	set +e
	( set -e; "$@" ) >"$log" 2>&1
	rc=$?
	set -e
	[ -z "$ticker" ] || { kill "$ticker"; wait "$ticker" 2>/dev/null || true; printf '\r' >&2; }
	if [ $rc -ne 0 ]; then
		say "$text: FAILED after $((SECONDS - t0)) s; the end of $log:"
		tail -n 15 "$log" | sed 's/^/    /' >&2
		die "$text failed (exit $rc); the whole log is $log"
	fi
	say "$text: $((SECONDS - t0)) s"
}

# with_lock NAME CMD…: CMD while holding the cache's lock NAME.
with_lock() {
	local name=$1 fd
	shift
	mkdir -p "$cache/locks" || die "cannot create the cache $cache (XDG_CACHE_HOME= moves it)"
	exec {fd}>"$cache/locks/$name.lock"
	flock -n "$fd" || { say "waiting for another run that holds $name …"; flock "$fd"; }
	"$@"
	exec {fd}>&-
}

# ---- the root ---------------------------------------------------------------

# Options of the host's apt that its mirror needs: proxies, CA, and validity
# checks only where the host itself has them off.
host_apt_options() {
	apt-config dump 2>/dev/null |
		grep -E '^Acquire::(Check-Valid-Until|Retries|https?::(Proxy|CaInfo|Verify-[A-Za-z]+|Timeout)[^ ]*) ' |
		sed -e 's/;$//' -e 's/^\([^ ]*\) /\1 /'
}

# The mirror: MIRROR=, else the host's own Debian mirror, as its lists of packages tell.
mirror() {
	[ -z "${MIRROR:-}" ] || { echo "$MIRROR"; return; }
	local m
	# Not backports, whose origin is "Debian Backports", nor a disc.
	m=$(apt-get indextargets --format '$(ORIGIN)|$(SITE)|$(RELEASE)' 2>/dev/null |
		awk -F'|' '$1 == "Debian" && $2 ~ /^(https?:|mirror\+file:)/ && $2 !~ /security/ && $3 !~ /-/ && !n++ { print $2 }')
	case $m in
	# A file of mirrors, as Debian's cloud images have it; it is not there in the root.
	mirror+file:*) sed -n '/^https\?:/{s/[[:space:]].*//;p;q}' "${m#mirror+file:}" ;;
	http://*|https://*) echo "$m" ;;
	esac
}

# MIRROR= for a root that is there already.
use_mirror() { # ROOT
	local list=/etc/apt/sources.list
	grep -qF "deb $MIRROR $suite main" "$1$list" || {
		printf 'deb %s %s main\n' "$MIRROR" "$suite" "$MIRROR" "$suite-backports" | ns tee "$1$list.new" >/dev/null
		step update.log "reading the package index of $MIRROR" \
			in_root apt-get -o Dir::Etc::SourceList=$list.new -o APT::Update::Error-Mode=any update
		ns mv "$1$list.new" "$1$list"
	}
}

recipe_key() { # covers the package list and the functions that make the root
	{ echo "$suite" "${packages[@]}"; declare -f make_root; } | sha256sum | cut -c1-12
}

root_dir() { echo "$cache/root-$(recipe_key)"; }

have_userns() {
	command -v newuidmap >/dev/null && grep -q "^$(id -un):" /etc/subuid 2>/dev/null &&
		unshare --map-root-user --map-auto true 2>/dev/null
}

# ns CMD…: CMD as root in a mount namespace of its own.
ns() {
	if [ "$(id -u)" = 0 ]; then
		unshare --mount --propagation private "$@"
	else
		unshare --map-root-user --map-auto --mount --propagation private "$@"
	fi
}

install_mmdebstrap() {
	[ "$(id -u)" = 0 ] || die "mmdebstrap is missing: run 'apt-get install mmdebstrap uidmap' as root once, or run this as root"
	# A machine that has just started may be upgrading itself.
	apt-get update && apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends mmdebstrap
}

check_host() {
	[ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m); an x86_64 Debian 12 or 13 is needed"
	command -v apt-get >/dev/null || die "apt-get is missing; a Debian 12 or 13 host is needed"
	if [ "$(id -u)" != 0 ] && ! have_userns; then
		die "neither root nor usable user namespaces: run as root, or install uidmap and give $(id -un) a range in /etc/subuid and /etc/subgid"
	fi
	mkdir -p "$cache" || die "cannot create the cache $cache (set XDG_CACHE_HOME to a writable directory)"
	local free
	free=$(df --output=avail -BG "$cache" | tail -n 1 | tr -dc 0-9)
	say "the build environment needs under $need_gib GB in $cache ($free GB free)"
	[ "$free" -ge $need_gib ] || die "not enough disk space: $free GB free in $cache, $need_gib GB needed (XDG_CACHE_HOME= moves it)"
	command -v mmdebstrap >/dev/null || step apt.log "installing mmdebstrap" install_mmdebstrap
	local m
	m=$(mirror)
	# A machine that was made from an image may have no lists yet.
	[ -n "$m" ] || [ "$(id -u)" != 0 ] || step apt.log "reading the package index" apt-get update
	m=$(mirror)
	[ -n "$m" ] || die "the host's apt knows no Debian mirror: run 'apt-get update' as root once, or name one with MIRROR="
	/usr/lib/apt/apt-helper download-file "$m/dists/$suite/InRelease" "$cache/.probe" >"$cache/.probe.log" 2>&1 ||
		die "cannot fetch $suite from the mirror '$m' (no network, or MIRROR= needed); apt says: $(tail -n 1 "$cache/.probe.log")"
	rm -f "$cache/.probe" "$cache/.probe.log"
}

make_root() {
	local tmp=$1 m opts=() o mode=root
	m=$(mirror)
	[ "$(id -u)" = 0 ] || mode=unshare
	while read -r o; do opts+=(--aptopt="$o"); done < <(host_apt_options)
	ns mkdir -p "$tmp"
	local inc="${packages[*]}"
	# The lists stay: kernels are resolved from them later.
	mmdebstrap --mode=$mode --variant=apt --format=tar --include="${inc// /,}" \
		--skip=cleanup/apt/lists "${opts[@]}" \
		--setup-hook='mkdir -p "$1/etc/apt/sources.list.d"' \
		--customize-hook='rm -rf "$1"/usr/share/doc/* "$1"/usr/share/locale/* "$1"/usr/share/man/*' \
		"$suite" - ${m:+"deb $m $suite main"} ${m:+"deb $m $suite-backports main"} |
		ns tar -C "$tmp" -x --exclude='./dev/*'
	ns mkdir -p "$tmp/src" "$tmp/cache"
}

ensure_root_locked() {
	local root=$1
	[ ! -d "$root" ] || return 0
	check_host
	ns rm -rf "$cache"/root-*.tmp
	step root.log "making the $suite root (toolchain, QEMU, guest programs; about 2 minutes)" make_root "$root.tmp"
	mv "$root.tmp" "$root"
}

ensure_root() {
	local root
	root=$(root_dir)
	[ -d "$root" ] || with_lock root ensure_root_locked "$root"
	[ -z "${MIRROR:-}" ] || with_lock root use_mirror "$root"
}

# in_root CMD…: CMD in the root, with the repository at /src, the cache at /cache and
# XFSTESTS_DIR, if given, at /xfstests.
in_root() {
	local root
	root=$(root_dir)
	ns bash -c '
		set -e
		root=$1 repo=$2 cache=$3
		shift 3
		for d in proc sys dev; do mount --rbind "/$d" "$root/$d"; done
		mount --rbind /tmp "$root/tmp"
		mount --bind "$repo" "$root/src"
		mount --bind "$cache" "$root/cache"
		if [ -n "${XFSTESTS_DIR:-}" ]; then
			mkdir -p "$root/xfstests"
			mount --bind "$XFSTESTS_DIR" "$root/xfstests"
			export XFSTESTS_DIR=/xfstests
		fi
		: >>"$root/etc/resolv.conf"
		[ ! -s /etc/resolv.conf ] || mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
		# The CA bundle of the host: a TLS-inspecting proxy has its own.
		ca=/etc/ssl/certs/ca-certificates.crt
		[ ! -s $ca ] || mount --bind $ca "$root$ca"
		# Registry settings of the host for cargo.
		mkdir -p "$cache/cargo"
		for f in config.toml config; do
			if [ -s "${CARGO_HOME:-$HOME/.cargo}/$f" ]; then
				cp "${CARGO_HOME:-$HOME/.cargo}/$f" "$cache/cargo/$f"
			fi
		done
		pass=()
		while IFS="=" read -r -d "" k v; do
			case $k in
			CARGO_HOME|CARGO_TARGET_DIR) ;;
			CARGO_*|*_proxy|*_PROXY|TERM|CI|COLUMNS|RPMEM_*|V|SOURCE_DATE_EPOCH|XFSTESTS_DIR) pass+=("$k=$v") ;;
			esac
		done < <(env -0)
		exec chroot "$root" /usr/bin/env -i "${pass[@]}" HOME=/root LC_ALL=C.UTF-8 \
			PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
			CARGO_HOME=/cache/cargo CARGO_TARGET_DIR=/src/build/target \
			SSL_CERT_FILE=$ca CURL_CA_BUNDLE=$ca CARGO_HTTP_CAINFO=$ca \
			bash -c '\''cd /src && exec "$@"'\'' run "$@"
	' ns "$root" "$repo" "$cache" "$@"
}

# ---- kernels ----------------------------------------------------------------

refresh_index() {
	mkdir -p "$cache/logs"
	with_lock root in_root apt-get -q update >"$cache/logs/update.log" 2>&1
}

# In the root: every amd64 kernel of 7.2 or later in the package index, oldest first.
list_kernels() {
	in_root apt-cache pkgnames linux-headers- |
		sed -n 's/^linux-headers-\([0-9][0-9.]*+deb[0-9]*-amd64\)$/\1/p' |
		sort -V | awk -F'[.+]' '$1 > 7 || ($1 == 7 && $2 >= 2)'
}

default_kernel() {
	in_root apt-cache -t "$suite-backports" depends linux-image-amd64 |
		sed -n 's/.*Depends: linux-image-\([0-9].*-amd64\)$/\1/p' | head -n 1
}

# Versions of which there is a directory in the cache.
cached_kernels() {
	local d
	for d in "$cache"/kernels/*-????????????; do
		[ ! -d "$d" ] || { d=${d##*/}; echo "${d%-*}"; }
	done
}

find_kernel() { # WORD, as for resolve
	local v
	case $1 in
	default) v=$(default_kernel) ;;
	newest) v=$(list_kernels | tail -n 1) ;;
	other)
		v=$(default_kernel)
		v=$({ echo "$v"; list_kernels; } | awk -F. '
			NR == 1 { last = $0; split($0, line) }
			$1 != line[1] || $2 != line[2] { last = $0 }
			END { print last }')
		;;
	*) v=$({ list_kernels; cached_kernels; } | sort -V |
		awk -v w="$1" '$0 == w || index($0, w "+") == 1 || index($0, w ".") == 1 || $0 == w "-amd64"' | tail -n 1) ;;
	esac
	echo "$v"
}

# resolve WORD: default, newest, other (the newest of another line than the default's, 7.2
# beside 7.3; the default if there is none), or (the beginning of) a version -> VERSION
resolve() {
	local word=${1:-default} v
	v=$(find_kernel "$word")
	if [ -z "$v" ]; then
		say "no kernel '$word' in the package index of $suite-backports; reading it again …"
		refresh_index || say "it could not be read (see $cache/logs/update.log)"
		v=$(find_kernel "$word")
	fi
	[ -n "$v" ] || die "no kernel '$word' of the flavour amd64 in $suite-backports (7.2 or later); 'make kernels' lists what there is"
	echo "$v"
}

# Finds the packages of a kernel: prints "name=version" of the image, the modules,
# the headers and the source.
kernel_packages() {
	in_root bash -c '
		v=$1 hv=
		pv() { apt-cache show "$1" 2>/dev/null | sed -n "s/^Version: //p" | sort -V | tail -n 1; }
		hv=$(pv "linux-headers-$v")
		base=${v%%+*} series=$(echo "$v" | cut -d. -f1,2)
		for p in linux-binary-$v linux-binary-unsigned-$v linux-image-$v linux-image-unsigned-$v; do
			# An image that is only a list of dependencies is no image.
			size=$(apt-cache show "$p" 2>/dev/null | sed -n "s/^Size: //p" | head -n 1)
			[ "${size:-0}" -gt 1000000 ] && { echo "$p=$(pv "$p")"; break; }
		done
		for p in linux-modules-$v linux-headers-$v; do echo "$p=$(pv "$p")"; done
		echo "linux-source-$series=$hv"
	' find "$1"
}

# Inside the root: downloads and unpacks a kernel and makes its Rust metadata.
kernel_script='
set -euo pipefail
v=$1 out=$2
shift 2
mkdir -p "$out/deb" "$out/x"
cd "$out/deb"
fetch() { apt-get -q -o APT::Sandbox::User=root download "$@"; }
fetch "$@" || { apt-get -q update; fetch "$@"; }
for p in linux-binary linux-image linux-modules linux-headers; do
	for d in ${p}-*.deb; do [ ! -e "$d" ] || dpkg -x "$d" "$out/x"; done
done
image=$(find "$out/x" -name "vmlinuz*" -type f | head -n 1)
[ -n "$image" ] || { echo "no kernel image in $*"; exit 1; }
mv "$image" "$out/vmlinuz"
mkdir -p "$out/modules/lib/modules"
if [ -d "$out/x/usr/lib/modules/$v" ]; then mv "$out/x/usr/lib/modules/$v" "$out/modules/lib/modules/"
else mv "$out/x/lib/modules/$v" "$out/modules/lib/modules/"; fi
rm -f "$out/modules/lib/modules/$v/build" "$out/modules/lib/modules/$v/source"
depmod -b "$out/modules" "$v"
s=linux-source-$(echo "$v" | cut -d. -f1,2)
# The parts of the source that kbuild, bindgen and the kernel crate read.
dpkg --fsys-tarfile linux-source-*.deb | tar -xO --wildcards "*/linux-source-*.tar.xz" |
	xz -dc -T0 | tar -x -C "$out" \
		--exclude="$s/drivers/*.c" --exclude="$s/sound/*.c" --exclude="$s/net/*.c" --exclude="$s/drivers/gpu/drm/amd/*.h" \
		--exclude="$s/Documentation/*.rst" --exclude="$s/Documentation/*.yaml" --exclude="$s/Documentation/*.svg" \
		--exclude="$s/tools/testing/*" --exclude="$s/tools/perf/*" --exclude="*.dts" --exclude="*.dtsi" \
		$(for a in alpha arc arm arm64 csky hexagon loongarch m68k microblaze mips nios2 openrisc parisc powerpc riscv s390 sh sparc um xtensa; do
			echo "--exclude=$s/arch/$a/*.[chS]"; done)
mv "$out/$s" "$out/tree"
hdr=$out/x/usr/src/linux-headers-$v
cp "$hdr/.config" "$hdr/Module.symvers" "$out/tree/"
rm -rf "$out/x" "$out/deb"
cd "$out/tree"
want=$(sed -n "s/^CONFIG_RUSTC_VERSION=//p" .config)
# make LOCALVERSION=… would be lost in sub-makes that read the environment.
export LOCALVERSION=+${v#*+}
export KBUILD_BUILD_USER=rust-pmem KBUILD_BUILD_HOST=rust-pmem
make CC=gcc-14 HOSTCC=gcc olddefconfig
have=$(sed -n "s/^CONFIG_RUSTC_VERSION=//p" .config)
[ "$want" = "$have" ] || { echo "kernel $v was built with rustc $want, the root has $have"; exit 1; }
grep -qx CONFIG_RUST=y .config || { echo "kernel $v has no CONFIG_RUST=y with this toolchain"; exit 1; }
make CC=gcc-14 HOSTCC=gcc -j"$(nproc)" prepare modules_prepare
[ "$(make -s kernelrelease)" = "$v" ] || { echo "the tree calls itself $(make -s kernelrelease), not $v"; exit 1; }
'

kernel_dir() { # VERSION -> its directory below the cache
	local pk have
	pk=$(kernel_packages "$1")
	if [[ $'\n'$pk != *$'\n'"linux-headers-$1="[0-9]* ]]; then
		# The archive has newer ones only: what is here is whole.
		have=$(cd "$cache" && ls -dt "kernels/$1"-???????????? 2>/dev/null | head -n 1) || true
		[ -z "$have" ] || { echo "$have"; return; }
	fi
	echo "kernels/$1-$(echo "$suite ${toolchain[*]} $pk $kernel_script" | sha256sum | cut -c1-12)"
}

make_kernel() { # VERSION DIR
	local pk
	mapfile -t pk < <(kernel_packages "$1")
	local p
	for p in "${pk[@]}"; do
		[ -n "${p#*=}" ] || { echo "the package ${p%=*} is not in the index"; return 1; }
	done
	[ ${#pk[@]} = 4 ] || { echo "no image package for $1 in the index"; return 1; }
	in_root bash -c "$kernel_script" kernel "$1" "/cache/$2.tmp" "${pk[@]}"
}

ensure_kernel_locked() { # VERSION DIR
	[ ! -d "$cache/$2" ] || return 0
	ns rm -rf "$cache/kernels/$1"-*.tmp
	step "kernel-$1.log" "kernel $1: image, modules and Rust metadata (about 2 minutes)" make_kernel "$1" "$2"
	mv "$cache/$2.tmp" "$cache/$2"
}

kernel() {
	local v d
	v=$(resolve "${1:-default}")
	d=$(kernel_dir "$v")
	[ -d "$cache/$d" ] || with_lock "kernel-$v" ensure_kernel_locked "$v" "$d"
	echo "/cache/$d"
}

kernels() {
	local d v dir note
	refresh_index || say "the package index could not be refreshed; this is the cached one"
	d=$(default_kernel)
	while read -r v; do
		note=
		[ "$v" != "$d" ] || note=" (default: what linux-image-amd64 depends on)"
		dir=$(kernel_dir "$v")
		[ ! -d "$cache/$dir" ] || note="$note (cached)"
		echo "$v$note"
	done < <(list_kernels)
}

usage() {
	cat <<-END
	usage: $self COMMAND
	  root               make the trixie root if it is missing, print its path
	  kernels            list the kernels that can be had
	  resolve [KERNEL]   full version of 'default', 'newest', 'other' or a beginning such as 7.3 or 7.3.4
	  kernel [KERNEL]    make a kernel's directory, print its path inside the root
	  run CMD…           run CMD inside the root, in the repository (/src)
	  clean-cache        remove everything that was cached
	Environment: XDG_CACHE_HOME (where the cache lies), MIRROR (a Debian mirror).
	END
}

case ${1:-} in
root) ensure_root; root_dir ;;
kernels) ensure_root; kernels ;;
resolve) ensure_root; resolve "${2:-default}" ;;
kernel) ensure_root; kernel "${2:-default}" ;;
run) shift; [ $# -gt 0 ] || die "run: what?"; ensure_root; in_root "$@" ;;
clean-cache)
	[ ! -d "$cache" ] || ns rm -rf "$cache"
	say "removed $cache"
	;;
-h|--help|help|'') usage ;;
*) usage >&2; exit 2 ;;
esac
