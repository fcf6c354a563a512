# make serve   set up what serving needs and start the server
# make test    set up what the tests need and run all checks

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: serve test
serve: $(VENV)/serve.installed
	$(BIN)/python -m serve.check deploy.yaml
	$(BIN)/serve run deploy.yaml

test: $(VENV)/test.installed tests/node_modules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

$(VENV)/serve.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(VENV)/test.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[test]'
	touch $@ $(VENV)/serve.installed

# Qwen's vocabulary, for the tests of token ids; they are skipped where there is no npm.
tests/node_modules: tests/package.json
	if command -v npm >/dev/null; then cd tests && npm install --silent --no-package-lock --no-audit --no-fund; fi
