#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds rust_pmem.ko with kbuild: build.sh modules|clippy|fmt|fmtcheck|install|rust-analyzer
#
# KERNEL= names a Debian kernel (env.sh makes what is missing, the build runs in
# the cached root). With KDIR= it is the user's own tree instead, built on the
# host with the host's toolchain; the tree is refused, with the reason, if it
# cannot work. Prints the path of the module on its last line.

set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "build.sh: $*" >&2; exit 1; }

# A tree of the user's own: is it one that a Rust module can be built against?
check_kdir() {
	local k=$1 want have v
	[ -f "$k/Makefile" ] || die "KDIR=$k is not a kernel tree: no Makefile there"
	[ -f "$k/.config" ] || die "KDIR=$k is not configured: no .config there"
	v=$(make -s -C "$k" kernelversion 2>/dev/null) || die "KDIR=$k: 'make kernelversion' fails there"
	[ "$(printf '%s\n7.2\n' "$v" | sort -V | head -n 1)" = 7.2 ] || die "KDIR=$k is Linux $v; 7.2 or later is needed"
	grep -qx CONFIG_RUST=y "$k/.config" || die "KDIR=$k was configured without CONFIG_RUST=y: no Rust module can be built for it"
	[ -f "$k/rust/libkernel.rmeta" ] || die "KDIR=$k has no rust/libkernel.rmeta: run 'make prepare' there (distribution headers ship none; see CONTRIBUTING.md)"
	want=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="\(.*\)"/\1/p' "$k/.config")
	have=$(${RUSTC:-rustc} --version 2>/dev/null) || die "no rustc on this machine; KDIR=$k was built with $want"
	[ "$want" = "$have" ] || die "KDIR=$k was built with '$want', but ${RUSTC:-rustc} is '$have': the same compiler is needed (RUSTC=)"
}

what=$1
if [ -n "${KDIR:-}" ]; then
	KDIR=$(realpath "$KDIR")
	check_kdir "$KDIR"
	name=$(make -s -C "$KDIR" kernelrelease)
	tree=$KDIR src=$PWD
	in=()
else
	name=${KERNEL:-default}
	# What is installed on this machine is for the kernel that it runs.
	[ "$what" != install ] || [ -n "${KERNEL:-}${DESTDIR:-}" ] || name=$(uname -r)
	name=$(scripts/env.sh resolve "$name")
	tree=$(scripts/env.sh kernel "$name")/tree src=/src
	in=(scripts/env.sh run)
fi

mkdir -p "build/$name"
# Two builds of one kernel at once would trample on each other.
exec 8>"build/$name/.lock"
flock 8

cc=${CC:+CC=$CC}
[ -n "${KDIR:-}" ] || cc=CC=gcc-14

kbuild() {
	"${in[@]}" make -s --no-print-directory -C "$tree" M="$src" MO="$src/build/$name" \
		$cc ${V:+V="$V"} ${RPMEM_DEBUG:+RPMEM_DEBUG="$RPMEM_DEBUG"} -j"$(nproc)" "$@"
}

case $what in
modules)
	kbuild modules
	echo "build/$name/rust_pmem.ko"
	;;
clippy)
	# A build directory of its own: kbuild does not rebuild for CLIPPY= alone.
	out=build/$name/clippy
	rm -rf "$out" && mkdir -p "$out"
	"${in[@]}" make -s --no-print-directory -C "$tree" M="$src" MO="$src/$out" $cc \
		CLIPPY=1 -j"$(nproc)" modules 2>&1 | tee "$out/clippy.log"
	! grep -qE '^(warning|error)' "$out/clippy.log" || die "clippy has something to say"
	echo "clippy: clean"
	;;
rust-analyzer)
	kbuild rust-analyzer
	# Paths in the root are not the editor's: translate them to the host's.
	f=build/$name/rust-project.json
	[ -f "$f" ] || f=rust-project.json
	if [ -z "${KDIR:-}" ]; then
		root=$(scripts/env.sh root) cachedir=$(dirname "$(scripts/env.sh root)")
		sed -e "s|\"/src|\"$PWD|g" -e "s|\"/cache|\"$cachedir|g" -e "s|\"/usr/|\"$root/usr/|g" "$f" >rust-project.json.tmp
		mv rust-project.json.tmp rust-project.json
	fi
	echo "rust-project.json"
	;;
install)
	# Not by kbuild: what it calls the system is the cached root.
	to=${DESTDIR:-}/lib/modules/$name
	[ -n "${DESTDIR:-}" ] || [ -d "$to" ] || die "kernel $name is not installed on this machine: KERNEL=$(uname -r), or DESTDIR= for another place"
	kbuild modules
	install -D -m 644 "build/$name/rust_pmem.ko" "$to/updates/rust_pmem.ko"
	install -D -m 644 drivers/pmem/60-rpmem.rules "${DESTDIR:-}/usr/lib/udev/rules.d/60-rpmem.rules"
	PATH=$PATH:/usr/sbin:/sbin
	if command -v depmod >/dev/null; then
		depmod ${DESTDIR:+-b "$DESTDIR"} "$name"
	else
		echo "there is no depmod here: run 'depmod $name' where the module will be used" >&2
	fi
	echo "$to/updates/rust_pmem.ko"
	;;
fmt|fmtcheck)
	# The module by the kernel's rules, the host and guest programs by cargo's.
	check=()
	[ "$what" = fmt ] || check=(--check)
	"${in[@]}" rustfmt --edition 2021 --config-path "$tree/.rustfmt.toml" "${check[@]}" rust_pmem_main.rs
	scripts/env.sh run cargo fmt --all "${check[@]}"
	;;
*) die "unknown command '$what'" ;;
esac
