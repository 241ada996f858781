#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Makes what the runner needs and starts it: runner.sh SUBCOMMAND [ARG…]
#
# Kernels: KERNEL= (default: what Debian's linux-image-amd64 depends on); `test`, and
# `stress` with KERNELS=all, also take the newest one of another line (7.2 beside 7.3),
# unless KERNEL= names one.
# Every step prints how long it took; the runner itself is tests/runner.

set -euo pipefail
cd "$(dirname "$0")/.."

env=scripts/env.sh
say() { printf '[build] %s\n' "$*" >&2; }

if [ "$1" = run ]; then
	# The runner says how the job ended; until it runs, this does.
	trap 'echo "main job: FAILED: the guest could not be prepared (see above)"' EXIT
fi
[ -z "${KDIR:-}" ] || {
	say "KDIR= is for building the module; guests run Debian's kernels (KERNEL=)"
	exit 2
}

wanted=("${KERNEL:-default}")
case $1:${KERNELS:-} in
test:*|stress:all) [ -n "${KERNEL:-}" ] || wanted=(default other) ;;
esac

$env root >/dev/null
args=()
for k in "${wanted[@]}"; do
	name=$($env resolve "$k")
	case " ${args[*]} " in *" $name="*) continue ;; esac
	args+=(--kernel "$name=$($env kernel "$name")")
	t0=$SECONDS
	KERNEL=$name scripts/build.sh modules >/dev/null
	say "rust_pmem.ko for $name: $((SECONDS - t0)) s"
done

# Compiled crates of registries are kept in the cache, keyed by what they are made from: a
# fresh clone builds only what is in the repository. (cargo tells its own sources' state by
# their times, so those are never shared between clones.)
deps=/cache/crates-$(cat Cargo.lock Cargo.toml | sha256sum | cut -c1-12)-$($env root | grep -o '[^-]*$')
t0=$SECONDS
[ -d build/target ] || $env run bash -c '
	set -e
	mkdir -p build
	[ -d $1 ] || exit 0
	exec 9>build/.target.lock
	flock 9
	[ ! -d build/target ] || exit 0
	rm -rf build/target.tmp
	cp -a $1 build/target.tmp
	mv -T build/target.tmp build/target
' deps "$deps"
$env run cargo build --release --locked --workspace ${CI:+--quiet}
$env run bash -c '
	set -e
	[ ! -d $1 ] || exit 0
	own=$(cargo metadata --locked --no-deps --format-version 1 | grep -o "\"name\":\"[a-z_-]*\",\"version\"" | cut -d\" -f4 | tr - _ | sort -u)
	tmp=$1.$$.tmp
	trap "rm -rf $tmp" EXIT
	mkdir $tmp $tmp/release
	cp -a build/target/.rustc_info.json $tmp/
	cp -a build/target/release/{.fingerprint,build,deps} $tmp/release/
	for name in $own; do
		for n in $name ${name//_/-}; do
			rm -rf $tmp/release/.fingerprint/$n-* $tmp/release/build/$n-* $tmp/release/deps/{,lib}${n}-*
		done
	done
	mv -T $tmp $1 2>/dev/null || [ -d $1 ]
' deps "$deps"
say "runner and guest programs: $((SECONDS - t0)) s"

# fsx of crates.io, a program that the suite `apps` runs; tests/runner/src/vm.rs has its place.
fsx=0.3.2
case $1 in
test|stress)
	t0=$SECONDS
	$env run bash -c '
		dir=/cache/tools/fsx-$1
		[ ! -x $dir/bin/fsx ] || exit 0
		tmp=$dir.$$.tmp
		trap "rm -rf $tmp" EXIT
		cargo install --quiet --locked --root $tmp --target-dir $tmp/build fsx@$1 || exit 1
		rm -rf $tmp/build
		mv -T $tmp $dir 2>/dev/null || [ -x $dir/bin/fsx ]
	' fsx $fsx
	say "fsx: $((SECONDS - t0)) s"
	;;
esac

exec $env run build/target/release/runner "${args[@]}" "$@"
