# Everything that a fresh machine needs is made on the way: virtual environment, dependencies,
# a Docker engine if none answers, images, servers.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# In alphabetical order: else the files of few tests, which take minutes, come last and alone.
# One more at a time than there are cores, as tests wait for a third of their time.
CORES := $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
SIDE_BY_SIDE := -n $$(($(CORES) + 1)) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint bench clean

demo: $(INSTALLED)
	@$(BIN)/python -m tests.lab up
	@$(BIN)/python -m tests.lab.demo

test: $(INSTALLED)
	@$(BIN)/python -m tests.lab up
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not long"

test-all: $(INSTALLED)
	@$(BIN)/python -m tests.lab up
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	@$(BIN)/python -m tests.lab up
	@$(BIN)/python -m tests.lab.bench
	@$(BIN)/python -m tests.lab.latency
	@$(BIN)/python -m tests.lab.webhook_bench

# Containers, networks, volumes and images of the lab, the engine that it started, and .venv.
clean: $(INSTALLED)
	@$(BIN)/python -m tests.lab clean
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .screenshots

# Built without isolation, so that the build's own parts have the versions of constraints.txt too.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nonstop needs Python 3.11 or later: install it, or name it with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || [ ! -x /usr/bin/apt-get ] || \
		{ apt-get update -q && apt-get install -qy python3-venv; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation \
		--editable '.[dev]'
	@touch $@
