#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Shows that the tests see mistakes: mutants.sh [NAME…]
#
# For each line of tests/mutants/table: makes the mistake in a scratch copy of the
# module's source, builds it, runs the one test that has to notice, and prints
# whether it did and how that test failed. The test `crash:N` is a campaign of N power
# failures (`make crash`), `crash:N:workload` one of that workload alone. First that test
# must pass on the source as it is. Exit status 0 if every mutant was caught. Nothing in
# the tree itself is changed.
#
set -euo pipefail
cd "$(dirname "$0")/.."

env=scripts/env.sh
runner=build/target/release/runner
kernel=$($env resolve "${KERNEL:-default}")
dir=$($env kernel "$kernel")
scratch=build/mutants/tree
module=$scratch/build/$kernel/rust_pmem.ko
results=build/results/mutants
mkdir -p "$scratch" "$results"
for name; do
	grep -q "^$name |" tests/mutants/table || { echo "no mutant '$name' in tests/mutants/table"; exit 2; }
done
# The runner and the guest program of this source.
KERNEL=$kernel scripts/runner.sh list >/dev/null

# The source as it is, whatever the last mutant left in the copy.
refresh() {
	rm -rf "${scratch:?}"/{arch,drivers,fs_dax,include,scripts}
	cp -a Kbuild Makefile rust_pmem_main.rs arch drivers fs_dax include scripts "$scratch/"
}
build() {
	touch "$scratch/rust_pmem_main.rs"
	KERNEL=$kernel "$scratch/scripts/build.sh" modules >"$results/$1.build.log" 2>&1
}
# Output of the runner in a log; its status: 0 passed, 1 failed.
run() {
	local what=(test --no-host "$1")
	case $1 in
	crash::*) ;; # a test of that name
	crash:*:*) what=(crash --points "$(cut -d: -f2 <<<"$1")" --seed 1 --workload "${1##*:}") ;;
	crash:*) what=(crash --points "${1#crash:}" --seed 1) ;;
	esac
	$env run "$runner" --kernel "$kernel=$dir" --module "$module" --jobs 1 \
		--results "$results" "${what[@]}" >"$results/$2.log" 2>&1
}
# The line that says why, without names and times. None: the test did not fail, the run did.
why() { sed -n '/: no guest to run it in/d; s/^failed  [^:]*::[^:]*: //p; /^crash: .*, 0 failed$/!s/^crash: //p' "$results/$1.log" | head -n 1; }
trim() { local s=$1; s=${s#"${s%%[![:space:]]*}"}; printf '%s' "${s%"${s##*[![:space:]]}"}"; }

declare -A sound=()
caught=0 missed=0
printf '%-26s %-34s %s\n' mutant test result
while IFS= read -r line; do
	case $line in '#'*|'') continue ;; esac
	fields=()
	while [ -n "$line" ]; do
		fields+=("$(trim "${line%% | *}")")
		case $line in *' | '*) line=${line#* | } ;; *) line= ;; esac
	done
	name=${fields[0]} file=${fields[1]} test=${fields[2]} from=${fields[3]} to=${fields[4]}
	[ $# = 0 ] || case " $* " in *" $name "*) ;; *) continue ;; esac

	if [ -z "${sound[$test]:-}" ]; then
		refresh
		build "control" || { echo "the source itself does not build: $results/control.build.log"; exit 2; }
		if run "$test" "control-${test//:/-}"; then sound[$test]=yes; else sound[$test]=no; fi
	fi
	refresh
	text=$(<"$scratch/$file")
	rest=${text#*"$from"}
	if [ "$rest" = "$text" ] || [ "${rest#*"$from"}" != "$rest" ]; then
		result='STALE: its text is not there exactly once'
		missed=$((missed + 1))
	else
		printf '%s%s%s\n' "${text%%"$from"*}" "$to" "$rest" >"$scratch/$file"
		if ! build "$name"; then
			result="STALE: does not build ($results/$name.build.log)"
			missed=$((missed + 1))
		elif [ "${sound[$test]}" = no ]; then
			result='NO VERDICT: the test fails without the mutant as well'
			missed=$((missed + 1))
		elif run "$test" "$name"; then
			result=MISSED
			missed=$((missed + 1))
		elif [ -z "$(why "$name")" ]; then
			result="NO VERDICT: $results/$name.log"
			missed=$((missed + 1))
		else
			result="caught: $(why "$name")"
			caught=$((caught + 1))
		fi
	fi
	printf '%-26s %-34s %s\n' "$name" "$test" "$result"
done <tests/mutants/table
echo "$caught caught, $missed not caught"
[ "$missed" = 0 ]
