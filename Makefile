# make demo   set everything up, compile the shipped model for CPU and Cortex-M4, run both
# make test   set everything up, run the tests
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test lint format system clean

demo: $(READY)
	$(VENV)/bin/python examples/mnist_mlp/demo.py

test: $(READY)
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

system:
	@PYTHON=$(PYTHON) .ci/setup

# `system` is order-only: it looks for packages on every run, and never makes the venv stale.
$(READY): pyproject.toml constraints.txt | system
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[micro,dev]'
	touch $@

clean:
	rm -rf build out .pytest_cache .ruff_cache .hypothesis
