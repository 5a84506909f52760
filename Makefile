# `make demo` and `make test` need Python 3.11 or later with venv, and make; the rest is installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
# Extra arguments for pytest: make test PYTEST_ARGS="-k stream -x"
PYTEST_ARGS ?=
# How many processes share the tests, since one alone waits for half of its time; 0 is none but pytest itself. Each has
# servers of its own, so that a Redis that is given is for one.
PROCESSES ?= $(if $(CELERY_NOTIFY_REDIS_URL),0,2)
# For make chaos: the seed that says all that is drawn at random (drawn itself if none is given).
SEED ?=
# For make bench: QUICK=1 measures less, in under five minutes.
QUICK ?=
# A file inside the virtual environment, newer than pyproject.toml when the environment is up to date.
INSTALLED := $(VENV)/.installed
# The same for what only the tests have, from npm, which is installed with it since a machine may have none.
NPM := npm install --loglevel=error --no-package-lock --ignore-scripts --no-audit --no-fund
NPM_INSTALLED := $(VENV)/npm/.installed
# The same for what only the benchmarks measure us beside, in an environment of its own, which has the library too.
PEERS_INSTALLED := $(VENV)/peers/.installed
# What the last `make bench` has measured.
RESULTS := .benchmarks/results.jsonl

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos lint format bench soak build clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED)  ## make the virtual environment $(VENV) with all that the demo and the tests need

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,test]'
	@touch $@

demo: setup  ## run everything on http://127.0.0.1:8000 (PORT changes that) until Ctrl-C
	@exec $(VENV)/bin/python -m example_invoice

$(NPM_INSTALLED): $(INSTALLED) tests/browser/package.json
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[npm]'
	@mkdir -p $(@D)
	cp tests/browser/package.json $(@D)
	NODE_USE_SYSTEM_CA=1 $(VENV)/bin/$(NPM) --prefix $(@D)
	@touch $@

$(PEERS_INSTALLED): $(INSTALLED) tests/benchmarks/peers.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement tests/benchmarks/peers.txt --editable '.[uvloop]'
	-cd $(@D) && apt-get --quiet=2 --option APT::Sandbox::User=root download nginx libnginx-mod-nchan && \
		for package in *.deb; do dpkg --extract "$$package" debian; done
	@rm -f $(@D)/*.deb
	@touch $@

# Without a network the tests that need what is from npm, or our peers, say so themselves.
test: setup  ## run every test
	-@$(MAKE) --no-print-directory $(NPM_INSTALLED)
	-@$(MAKE) --no-print-directory $(PEERS_INSTALLED)
	$(VENV)/bin/python -m pytest --numprocesses $(PROCESSES) --dist worksteal $(PYTEST_ARGS)

chaos: SECONDS ?= 60
chaos: setup  ## SECONDS (60) of faults at random, then whether every page tells the truth; SEED repeats a run
	@exec $(VENV)/bin/python -m tests.faults.chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

lint: setup  ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup  ## put the code into the common form, mend what can be mended by itself
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

bench: setup $(PEERS_INSTALLED)  ## what all of it costs on this machine, and what its peers do; QUICK=1 measures less
	@mkdir -p $(dir $(RESULTS))
	@: > $(RESULTS)
	BENCH_QUICK=$(QUICK) BENCH_RESULTS=$(RESULTS) \
		$(VENV)/bin/python -m pytest tests/benchmarks --benchmark-enable -rP $(PYTEST_ARGS)

soak: SECONDS ?= 600
soak: setup  ## a steady load for SECONDS (600), then whether anything has grown or was lost
	@exec $(VENV)/bin/python -m tests.benchmarks.soak --seconds $(SECONDS)

build: setup  ## make the wheel and the source archive in dist/
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check build
	$(VENV)/bin/python -m build

clean:  ## remove what the other verbs have made, the virtual environment too
	@if [ -f $(INSTALLED) ]; then rm -rf $(VENV); fi
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks tests/browser/screenshots
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
