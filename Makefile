# SPDX-License-Identifier: GPL-2.0
#
# The user's commands; `make help` lists them. Kbuild has the module's objects.

.DEFAULT_GOAL := help
SHELL := /bin/bash

ENV := scripts/env.sh
RUNNER := scripts/runner.sh
export KERNEL KERNELS KDIR RPMEM_DEBUG MIRROR V

.PHONY: help run test stress mutants shell crash xfstests bench bench-flush modules modules_install \
	kernels fmt fmtcheck clippy rust-analyzer clean clean-cache

help:
	@echo 'rust_pmem: a persistent memory driver and fs/dax layer in Rust for Debian kernels'
	@echo
	@echo '  make run              set everything up, build, boot a guest, show the main job'
	@echo '  make test             the whole test suite (T=name runs one, KERNELS=all on both kernels)'
	@echo '                        ON=c: of the kernel'\''s nd_pmem and fs/dax.c, ON=fs_dax=0: of fs/dax.c on'
	@echo '                        our disks; where C is known to be wrong is listed at the end'
	@echo '  make stress           the long forms of the tests (T=, KERNELS=all, ON=)'
	@echo '  make mutants          deliberate mistakes, each caught by a named test (tests/mutants; M=name)'
	@echo '  make crash            power failures (N=1000 SEED=… ON=c T=workload'
	@echo '                        CRASH="--at fence:N --stores --lenient --ignore fence …", see README.md)'
	@echo '  make bench            against the C code, by instruction counts (T=name ON=c PARAMS="fs_dax=0")'
	@echo '                        PROFILE=name: one case, instructions by function (SIDE=rust or c)'
	@echo '  make bench-flush      the flush loops on this machine, against libpmem'
	@echo '  make xfstests XFSTESTS_DIR=<built tree> (SECTION= TESTS= ON=c; xfstests-config/README.md)'
	@echo '                        MINUTES=9 RESUME=1: in shards; ACCEPT=1: keep the results as expected'
	@echo '  make shell            a shell in the guest with the module loaded (PARAMS="flush_on_unmap=0")'
	@echo
	@echo '  make modules          build build/KERNEL/rust_pmem.ko'
	@echo '  make modules_install  install it for the running kernel (or KERNEL=, KDIR=), or below DESTDIR='
	@echo '  make kernels          the kernels that can be had; KERNEL= names one (default, newest, 7.3 …)'
	@echo '  make fmt, clippy      rustfmt (fmtcheck only looks) and clippy with the kernel'\''s configuration'
	@echo '  make rust-analyzer    rust-project.json for an editor'
	@echo '  make clean            remove build/;  make clean-cache removes what was cached'
	@echo
	@echo 'KDIR=<tree> builds against a Rust-enabled kernel tree of your own (7.2 or later).'
	@echo 'The cache lies in $${XDG_CACHE_HOME:-~/.cache}/rust-pmem and needs under 6 GB; MIRROR= names a Debian mirror.'

run:
	@$(RUNNER) run

test:
	@$(RUNNER) test --on "$(ON)" $(T) $(if $(filter all,$(KERNELS)),--all)

stress:
	@$(RUNNER) stress --on "$(ON)" $(T)

mutants:
	@scripts/mutants.sh $(M)

shell:
	@$(RUNNER) shell $(PARAMS)

crash:
	@$(RUNNER) crash --on "$(ON)" $(if $(N),--points $(N)) $(if $(SEED),--seed $(SEED)) \
		$(foreach w,$(T),--workload $(w)) $(CRASH)

# Without a tree one line, which is make's own message of an error, instead of a build that ends
# in one.
xfstests:
	$(if $(XFSTESTS_DIR),,$(error make xfstests runs the xfstests suite (git://git.kernel.org/pub/scm/fs/xfs/xfstests-dev.git): XFSTESTS_DIR=<a built tree>; its README says how to build it, xfstests-config/README.md in which root))
	$(if $(wildcard $(XFSTESTS_DIR)/check),,$(error make xfstests: there is no xfstests tree in $(XFSTESTS_DIR)))
	@XFSTESTS_DIR="$$(realpath "$(XFSTESTS_DIR)")" $(RUNNER) xfstests $(if $(ON),--on $(ON)) \
		--section '$(SECTION)' $(if $(TESTS),--tests '$(TESTS)') $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(RESUME),--resume) $(if $(ACCEPT),--accept)

bench: export RPMEM_COMMIT = $(shell git describe --always --dirty 2>/dev/null)
bench:
	@$(RUNNER) bench --on "$(ON)" $(if $(PROFILE),--profile $(or $(SIDE),rust) "$(PROFILE)",$(if $(T),"$(T)")) \
		$(foreach p,$(PARAMS),--param $(p))

bench-flush:
	@$(ENV) root >/dev/null
	@$(ENV) run cargo bench --locked -p flush

modules:
	@scripts/build.sh modules

modules_install:
	@scripts/build.sh install

clippy:
	@scripts/build.sh clippy
	@$(ENV) run cargo clippy --release --locked --workspace --all-targets --quiet -- -D warnings

fmt:
	@scripts/build.sh fmt

fmtcheck:
	@scripts/build.sh fmtcheck

rust-analyzer:
	@scripts/build.sh rust-analyzer

kernels:
	@$(ENV) kernels

clean:
	rm -rf build rust-project.json

clean-cache:
	@$(ENV) clean-cache
