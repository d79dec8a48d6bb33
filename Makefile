# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: demo test faults lint types check docs dist clean

demo: $(VENV)/installed
	$(BIN)/diffcert certify digits-demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not fault'

# Clusters, drivers and stores broken in every way that is known; 8 minutes on 2 cores.
faults: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m fault --durations 0

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/installed-dev
	$(BIN)/mypy

check: lint types test

# The pages of docs/ as a site in build/docs; a broken link fails.
docs: $(VENV)/installed-docs
	$(BIN)/python -m mkdocs build --strict

# dist/: the source distribution, whose tests run where it is unpacked, and the wheel made from it.
dist: $(VENV)/installed-dev
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, %s is %s: make PYTHON=python3.11 ..." % (sys.executable, sys.version.split()[0]))'
	@echo "installing into $(VENV) (torch brings its CUDA libraries: several GB, minutes) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing what the tests need ..."
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	@echo "installing what the pages need ..."
	$(PIP) --editable '.[docs]'
	@touch $@
