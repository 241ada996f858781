#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Makes what the runner needs and starts it: runner.sh SUBCOMMAND [ARG…]
#
# Kernels: KERNEL= (default: what Debian's linux-image-amd64 depends on); `test`
# and `stress` also take the newest one of the suite, unless KERNEL= names one.
# Every step prints how long it took; the runner itself is tests/runner.

set -euo pipefail
cd "$(dirname "$0")/.."

env=scripts/env.sh
say() { printf '[build] %s\n' "$*" >&2; }

wanted=("${KERNEL:-default}")
case $1 in
test|stress) [ -n "${KERNEL:-}" ] || wanted=(default newest) ;;
esac

$env root >/dev/null
args=()
for k in "${wanted[@]}"; do
	name=$($env resolve "$k")
	case " ${args[*]} " in *" $name="*) continue ;; esac
	args+=(--kernel "$name=$($env kernel "$name")")
	t0=$SECONDS
	scripts/build.sh modules "$name" >/dev/null
	say "rust_pmem.ko for $name: $((SECONDS - t0)) s"
done

t0=$SECONDS
$env run cargo build --release --locked --workspace ${CI:+--quiet}
say "runner and guest programs: $((SECONDS - t0)) s"

# A program that suites run in the guest; kept in the cache (FSX in tests/runner/src/vm.rs).
case $1 in
test|stress)
	$env run bash -c '[ -x /cache/tools/fsx-0.3.2/bin/fsx ] || {
		echo "[build] installing fsx 0.3.2" >&2
		cargo install --quiet --locked --root /cache/tools/fsx-0.3.2 fsx@0.3.2
	}'
	;;
esac

exec $env run build/target/release/runner "${args[@]}" "$@"
