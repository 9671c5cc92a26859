# Each target makes .venv when it is absent; nothing but Python 3.11 or newer is needed beforehand.
PYTHON ?= python3
PORT ?= 5199
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help run test check fmt bench

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

SOURCES := pyproject.toml constraints.txt hatch_build.py app/api/grpc/starweave.proto

.venv/.run: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.dev: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ .venv/.run

run: .venv/.run  ## Serve on 127.0.0.1:$(PORT)
	$(BIN)/easel serve --port $(PORT)

# Two at a time, since many wait for a server. What fails runs once more alone, because
# some promise a time, which a machine that does other work at the same moment may not keep.
test: .venv/.dev  ## Run the tests
	$(BIN)/pytest --numprocesses 2 --dist loadfile || $(BIN)/pytest --last-failed --last-failed-no-failures none

check: .venv/.dev  ## Lint, types, layers, known faults
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive app
	$(BIN)/python tools/audit.py
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck docker/*.sh .ci/run

fmt: .venv/.dev  ## Format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.dev  ## Print ratios to the raw pipeline, and the cost of the gateway alone
	$(BIN)/python -m bench
