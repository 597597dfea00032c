# One word for each thing. Needs make and Python 3.11 or newer; uv, where it is installed, makes .venv faster.
#
#   make run ARGS="--workers 4 -- some/folder"     make bench FULL=1 FILTER=submit
#   make test ARGS="-n 0 -k ledger -x"             make run PYTHON=python3.13

MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.PHONY: help run demo pipeline test soak check types style format bench clean

BIN := .venv/bin
# Tried in this order, by running them: a shim on the PATH may stand for a version that is not there.
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3 python)

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

run: .venv/.installed ## the census of all Python source on this machine, jobs/census.py (ARGS=)
	$(BIN)/poolkeeper run jobs/census.py $(ARGS)

demo: .venv/.installed ## three services under supervision, jobs/demo_services.py; Ctrl-C stops them
	$(BIN)/poolkeeper run jobs/demo_services.py $(ARGS)

pipeline: .venv/.installed ## effects that happen once whatever is killed, and the proof, jobs/pipeline.py (ARGS=)
	$(BIN)/poolkeeper run jobs/pipeline.py $(ARGS)

# Most of their time tests wait for processes: two cores are busy only with more of them than cores.
test: .venv/.installed-dev ## the tests, but for those that take minutes (ARGS=)
	$(BIN)/python -m pytest -m "not soak" -n 4 --dist worksteal $(ARGS)

# No dumps of the stacks of what is meant to run for long: now and then one crashes the interpreter that it is taken of.
soak: .venv/.installed-dev ## the tests that take minutes (ARGS=)
	$(BIN)/python -m pytest -m soak --timeout=0 -o faulthandler_timeout=0 $(ARGS)

check: style types ## what must be clean before a commit: style and types

style: .venv/.installed-dev ## ruff: rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-dev ## mypy --strict on the package
	$(BIN)/mypy

format: .venv/.installed-dev ## let ruff lay out the code and mend what it can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: .venv/.installed-bench ## poolkeeper beside its peers, into bench/results/ (FULL=1, FILTER=name, ARGS=)
	$(BIN)/python -m bench $(if $(FULL),--full,--quick) $(if $(FILTER),--filter $(FILTER)) $(ARGS)

clean: ## remove all that make and the tools have made, .venv included
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist out
	find poolkeeper tests jobs bench -type d -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	@set -e; \
	for python in $(PYTHONS); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ] && [ -z "$(PYTHON)" ] && command -v uv >/dev/null; then found='>=3.11'; fi; \
	if [ -z "$$found" ]; then echo "make: Python 3.11 or newer is needed; tried: $(PYTHONS). Name it: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	echo "making .venv with $$found"; \
	rm -rf .venv; \
	if command -v uv >/dev/null; then uv venv --quiet --python "$$found" .venv; else "$$found" -m venv .venv; fi \
	    || { rm -rf .venv; exit 1; }

# .installed has what the package needs, .installed-NAME the extra of that name as well.
.venv/.installed .venv/.installed-dev .venv/.installed-bench: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing poolkeeper$(patsubst .installed-%,[%],$(filter .installed-%,$(@F))) into .venv, once"
	@set -e; \
	target='-e .$(patsubst .installed-%,[%],$(filter .installed-%,$(@F)))'; \
	if command -v uv >/dev/null; then \
	    uv pip install --quiet --python $(BIN)/python -c constraints.txt $$target; \
	else \
	    $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade >/dev/null; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $$target; \
	fi
	@touch $@
