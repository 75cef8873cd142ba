# SPDX-License-Identifier: Apache-2.0
# `make test` and `make demo` start from a fresh machine: each sets up what it needs, then does its job.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# Overridable: the Python that .venv is made of, and whether a kernel test that cannot run is an error
export PYTHON ?=
export EBPFTRACE_KERNEL_TESTS ?= 1
# Not empty: build libbpf though the distribution's is new enough
export EBPFTRACE_BUILD_LIBBPF ?=
# The one that scripts/setup.sh builds where the distribution's is too old
export PKG_CONFIG_PATH := $(if $(PKG_CONFIG_PATH),$(PKG_CONFIG_PATH):)$(CURDIR)/build/libbpf/lib/pkgconfig
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SUDO := $(shell [ $$(id -u) = 0 ] || echo sudo)
BIN := .venv/bin
STAMPS := build/stamps

# What is compiled or copied at install.  Python sources are not: the install is editable.  Its finder
# knows the packages by name though, so the list of files is part of the stamp's name.
SOURCES := CMakeLists.txt pyproject.toml $(shell find bpf ebpftrace -name '*.[ch]' -o -name 'build_*.py' -o -name '*.yaml')
LISTING := $(shell find bpf ebpftrace -type f -not -name '*.pyc' | LC_ALL=C sort | cksum | cut -d ' ' -f 1)
C_SOURCES = $(shell find bpf ebpftrace -name '*.[ch]')

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

.PHONY: demo
demo: $(STAMPS)/demo-$(LISTING) mounts ## Trace a slow request into build/demo/trace.jsonl and show why it was slow
	@mkdir -p build/demo
	$(SUDO) $(BIN)/ebpftrace demo --output build/demo/trace.jsonl

.PHONY: tracing-demos
tracing-demos: $(STAMPS)/demo-$(LISTING) mounts ## Run the short demos: sock, sched, cfs-throttling; traces in build/demo
	@mkdir -p build/demo
	for demo in sock sched cfs-throttling; do \
		$(SUDO) $(BIN)/ebpftrace demo $$demo --output build/demo/$$demo.jsonl || exit; done

.PHONY: test
test: lint pytest ## Check the style and the types, then run every test

# Never fails: without Go or its module proxy the tests of these are skipped, and say why
.PHONY: backends
backends: ## Build what some tests send spans to, where there is Go: an OpenTelemetry Collector and Jaeger
	@scripts/backends.sh

ifeq ($(SUDO),)
.PHONY: pytest
pytest: $(STAMPS)/test-$(LISTING) mounts backends
	$(BIN)/pytest
else
# the kernel tests load BPF programs, nothing else needs root
.PHONY: pytest
pytest: $(STAMPS)/test-$(LISTING) mounts backends
	$(BIN)/pytest --ignore=tests/kernel
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 EBPFTRACE_KERNEL_TESTS=$(EBPFTRACE_KERNEL_TESTS) \
		$(BIN)/pytest -p no:cacheprovider tests/kernel
endif

# Which kernels: of the series that are there, `make test-vm KERNELS="6.1 6.12"`; none: all that apt offers
KERNELS ?=
MATRIX_KERNELS ?= 5.10 6.1 6.12 6.18 7.3
VM_OPTIONS ?=

.PHONY: test-vm
test-vm: $(STAMPS)/test-$(LISTING) ## Run the kernel tests and the demos on stock Debian kernels, in virtual machines
	@scripts/vm.sh
	@$(SUDO) $(BIN)/python tests/vm/run.py $(VM_OPTIONS) $(KERNELS); code=$$?; \
		$(SUDO) chown -R --reference=Makefile build/vm; exit $$code

.PHONY: kernel-matrix
kernel-matrix: $(STAMPS)/test-$(LISTING) ## The same on more kernels, and write docs/reference/kernels.md
	$(MAKE) test-vm VM_OPTIONS="--page docs/reference/kernels.md $(VM_OPTIONS)" KERNELS="$(MATRIX_KERNELS)"

# Of which Pythons: paths or names; none: python3.11 to python3.14 and free-threaded ones, as far as they are on PATH
PYTHONS ?=

.PHONY: context-matrix
context-matrix: $(STAMPS)/test-$(LISTING) mounts ## Check the current span under every framework on many Pythons, and write docs/reference/contexts.md
	$(SUDO) env PATH="$$PATH" $(BIN)/python tests/context_matrix/matrix.py --page docs/reference/contexts.md $(PYTHONS)

.PHONY: unit
unit: $(STAMPS)/test-$(LISTING) ## Run the quick tests only: no kernel, no packaging
	$(BIN)/pytest -m 'not packaging' tests/unit

.PHONY: lint
lint: $(STAMPS)/test-$(LISTING) ## Check style and types: ruff, mypy, clang-format
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)

.PHONY: format
format: $(STAMPS)/test-$(LISTING) ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix --select I
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(C_SOURCES)

.PHONY: wheel
wheel: $(STAMPS)/test-$(LISTING) ## Build the sdist, and the wheel from it, into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

.PHONY: setup
setup: $(STAMPS)/test-$(LISTING) ## Only set up: system packages, .venv, the built package

.PHONY: clean
clean: ## Remove what was built, .venv too
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up, each step once --------------------------------------------------------

# A .venv that works and is new enough is kept
$(STAMPS)/venv: scripts/setup.sh scripts/libbpf.sh scripts/python.sh scripts/requirements.py pyproject.toml
	scripts/setup.sh
	@mkdir -p $(@D)
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ rm -rf .venv && "$$(scripts/python.sh)" -m venv .venv; }
	$(BIN)/python scripts/requirements.py > build/requirements.txt
	@$(BIN)/python -m pip install -q -r build/requirements.txt || { echo "make: pip could not install from PyPI;" \
		"is there a network, or a proxy to set in HTTPS_PROXY?" >&2; exit 1; }
	@touch $@

# setup.sh once more: what it found when .venv was made may have been removed since
$(STAMPS)/demo-$(LISTING): extras := demo
$(STAMPS)/test-$(LISTING): extras := demo,test,lint
$(STAMPS)/%-$(LISTING): $(SOURCES) $(STAMPS)/venv
	@scripts/setup.sh
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[$(extras)]'
	@rm -f $(STAMPS)/$*-* && touch $@

.PHONY: mounts
mounts:
	@$(SUDO) scripts/mount.sh
