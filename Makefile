# Everything a person or CI does with this tree. `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

BIN := .venv/bin
# A fabric on one machine makes network namespaces and starts libvirtd, which takes root.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
# How many worlds `make test` simulates; the nightly run takes more.
SIM_SEEDS ?= 500
export FABRIC_SIM_SEEDS = $(SIM_SEEDS)
# More for pytest, as in: make unit ARGS='-k quota -x'
ARGS ?=
# What ruff looks at. tools/ has scripts without a suffix, which it leaves alone.
CODE := fabric hostd cmd tools tests

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^#@/ { printf "\n%s\n", substr($$0, 4) } /^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

#@ To run it
.PHONY: setup demo down image cloud-image containers
setup: ## everything this tree needs, to run it and to test it
	@tools/setup test

demo: ## from a bare machine to a server you can log in to
	@tools/setup demo
	@tools/guest_image/build
	@$(AS_ROOT) $(BIN)/fabric dev demo

down: ## end what `make demo` and `make containers` started, and leave nothing behind
	@if [ -x $(BIN)/fabric ]; then $(AS_ROOT) $(BIN)/fabric dev down; fi
	@if [ -d .cache/containers ]; then $(AS_ROOT) tools/containers/run down; fi

containers: ready ## two hosts in containers with all they need, until Ctrl-C
	@tools/guest_image/build
	@$(AS_ROOT) tools/containers/run up

image: ## build the small guest image
	@tools/setup demo
	@tools/guest_image/build

# The folders first, and what both images unpack: they are to be whose this tree is, and root writes into them.
cloud-image: ready ## build a Debian with cloud-init, to make servers of
	@tools/guest_image/build
	@mkdir -p .cache/cloud-image
	@$(AS_ROOT) python3 -m tools.cloud_image

#@ To change it
.PHONY: ready ready-all fmt proto docs lock changelog
ready:
	@tools/setup test

ready-all:
	@tools/setup browser

fmt: ready ## format, and fix what can be fixed
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)
	@if compgen -G 'protos/fabric/*/v1/*.proto' >/dev/null; then $(BIN)/buf format -w; fi

proto: ready ## fabric/pb from protos/
	@$(BIN)/python tools/proto/generate.py

docs: ready ## docs/generated/ from the code
	@$(BIN)/python -m tools.docs

lock: ready ## requirements/*.txt from pyproject.toml (UPGRADE=1: take the newest)
	@$(BIN)/python tools/lock.py $(if $(UPGRADE),--upgrade)

changelog: ready ## gather changelog.d/ into CHANGELOG.md (VERSION=x.y.z)
	@$(BIN)/towncrier build --yes --version "$${VERSION:?say VERSION=x.y.z}"

#@ To check it
.PHONY: check verify check-format lint type imports buf check-proto check-docs
check: ## exactly what CI runs: verify, then test
	@$(MAKE) verify
	@$(MAKE) test

verify: check-format lint type imports buf check-proto check-docs ## all that can be known without running it

check-format: ready ## formatted? (fix: make fmt)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/buf format --diff --exit-code

lint: ready ## ruff, all rules but the ones explained in pyproject.toml
	@$(BIN)/ruff check $(CODE)

type: ready ## mypy --strict
	@$(BIN)/mypy

imports: ready ## layers, as import-linter sees them
	@$(BIN)/lint-imports --no-logo

buf: ready ## protos: lint, and no break with what came before
	@$(BIN)/buf lint
	@tools/proto/breaking

check-proto: ready ## is fabric/pb what protos/ says? (fix: make proto)
	@$(BIN)/python tools/proto/generate.py --check

check-docs: ready ## is docs/generated/ what the code says? (fix: make docs)
	@$(BIN)/python -m tools.docs --check

#@ To test it
# `make test` is plain `pytest`: the folders, and leaving out what is slow, are settings in pyproject.toml. Values and rules first, on both
# cores; then the simulation, which takes every cycle that others leave, and beside it what mostly waits for etcd; then what owns the
# machine, not in parallel: guests under emulation want both cores of a small machine for themselves. All are run whatever becomes of those
# before. With ARGS it is one run, of what they say.
EVERYTHING := -m ''
SIM_LOG := .cache/sim.log
WAITING := tests/conformance/store tests/integration/store tests/integration/api
OWNING := tests/conformance tests/integration tests/e2e $(WAITING:%=--ignore=%)
.PHONY: test test-all unit conformance sim integration e2e chaos bench
test: ready ## what a change must pass: all but the slow ones, under 20 minutes on 2 cores
	@$(if $(ARGS),$(BIN)/pytest $(ARGS),status=0; $(BIN)/pytest -n 2 tests/unit || status=$$?; \
		nice -n 19 $(BIN)/pytest tests/sim >$(SIM_LOG) 2>&1 & $(BIN)/pytest $(WAITING) || status=$$?; \
		wait $$! || status=$$?; cat $(SIM_LOG); \
		$(BIN)/pytest $(OWNING) || status=$$?; exit $$status)

test-all: ready-all ## the slow ones too, and chaos
	@$(BIN)/pytest $(EVERYTHING) tests/unit tests/conformance tests/sim tests/integration tests/e2e tests/chaos $(ARGS)

unit: ready ## values and rules, in seconds
	@$(BIN)/pytest -n 2 tests/unit $(ARGS)

conformance: ready ## the laws that every implementation of a port keeps
	@$(BIN)/pytest $(EVERYTHING) tests/conformance $(ARGS)

sim: ready ## whole cells on a virtual clock (SIM_SEEDS=500)
	@$(BIN)/pytest $(EVERYTHING) tests/sim $(ARGS)

integration: ready ## one real thing at a time: etcd, libvirt, nftables
	@$(BIN)/pytest $(EVERYTHING) tests/integration $(ARGS)

e2e: ready-all ## the processes of cmd/, as a user meets them
	@$(BIN)/pytest $(EVERYTHING) tests/e2e $(ARGS)

chaos: ready ## the same with faults
	@$(BIN)/pytest $(EVERYTHING) tests/chaos $(ARGS)

bench: ready ## how fast, as numbers to compare and not to pass (ARGS='creates --json FILE')
	@$(AS_ROOT) $(BIN)/python -m tests.bench $(ARGS)

#@ To leave it
.PHONY: clean
clean: ## remove what can be made again (.venv, .cache and caches); `make down` first
	@rm -rf .venv .cache tests/e2e/node/node_modules tests/e2e/novnc/node_modules .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
