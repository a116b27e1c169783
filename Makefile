# Two commands do all set-up: `make demo` (the main job, end to end) and `make test` (everything that CI runs).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo real s3 s3-stop install lint types unit integration unit-fast unit-fast-1 unit-fast-2 unit-slow test test-fast gpu clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         install, then the whole path on the lab world (about 6 minutes after installation)"
	@echo "make test         install, then test-fast, then the slow unit tests and the integration tests"
	@echo "make test-fast    lint, types and unit tests, without the slow ones (about 3 minutes)"
	@echo "make gpu          the tests that need a GPU, where there is one"
	@echo "make real         a real chat model meta-trained and asked on real text; REAL='--quick --set data=DIRECTORY' for less"
	@echo "make s3           a real S3 server on this machine, to try banks on (make s3-stop ends it)"
	@echo "make install      only the virtual environment in $(VENV)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/regrad demo

real: $(STAMP)
	$(BIN)/python -m studies.real $(REAL)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/python -m pytest tests/unit tests/studies -m "not integration"

# Each group has a Ray cluster of its own, and is a folder: a new test is put where its cluster is.
integration-%: $(STAMP)
	$(BIN)/python -m pytest tests/integration/$* $(if $(filter evaluation,$*),tests/studies) -m integration --durations=10

integration: integration-training integration-serving integration-evaluation integration-bank integration-nodes

# Two halves side by side; a new folder is in the second.
HALF := $(addprefix tests/unit/,bank cli evaluation project retrieval serve_app) tests/studies

unit-fast-1: $(STAMP)
	$(BIN)/python -m pytest $(HALF) -m "not slow"

unit-fast-2: $(STAMP)
	$(BIN)/python -m pytest tests/unit $(addprefix --ignore=,$(HALF)) -m "not slow"

unit-fast: unit-fast-1 unit-fast-2

# Three at a time also on two processors: the types, one process, would else be left for the end, beside an idle one.
test-fast: $(STAMP)
	$(MAKE) --no-print-directory -j3 unit-fast-1 unit-fast-2 types lint

gpu: $(STAMP)
	$(BIN)/python -m pytest tests/gpu

# Only the files that mark a test: to collect the other thousands takes longer than most of these.
unit-slow: $(STAMP)
	$(BIN)/python -m pytest $$(grep -rl --include='*.py' 'mark\.slow' tests/unit tests/studies) -m "slow and not integration" || [ $$? -eq 5 ]  # 5: none is marked

# The fast stage first, so that a mistake shows early; then three at a time also on two processors, as they wait for much.
# The longest begin first, else one of them is left alone at the end.
test: test-fast
	$(MAKE) --no-print-directory -j3 integration-serving integration-bank integration-training integration-evaluation unit-slow integration-nodes

s3:
	tests/tools/s3_server.sh start $(CURDIR)/runs/s3
	@echo "in your shell: set -a; . runs/s3/env.sh; set +a"

s3-stop:
	tests/tools/s3_server.sh stop $(CURDIR)/runs/s3

clean:
	rm -rf $(VENV) runs
