# make demo    the embedded model answers, five of its quantizations are compared; a table, and build/demo/report.html
# make test    the tests that are not marked as slow, 12 to 15 minutes in all; the first run compiles kernels
# make slow    the others
# make gate    the embedded model's quantizations against results/baselines, exit status 1 if one has become worse
# make lint    ruff and mypy
#
# Each makes .venv first, with the versions of constraints.txt.

# Programs start hundreds of times here: compiled modules are kept, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
DEMO := build/demo
GATE := build/gate
# Where a processor multiplies bfloat16, attention rounds its shares to it, and predictions differ a little: a record of its own.
BASELINE = results/baselines/tiny$(shell $(BIN)/python -c "from numba_kernels.cpu.attention import HAS_PAIRS as bf16; print('-bf16' * bf16)").json
OSS_TOOLS := $(BIN)/oss-tools
# One thread for NumPy's products, as there is a process for each core: OpenBLAS's threads wait by spinning.
test slow: export OPENBLAS_NUM_THREADS := 1
PARALLEL := -n logical --maxprocesses 4 --dist loadfile# a process for each core, a file of tests in one of them

.PHONY: demo gate test slow lint clean

demo: .venv/demo.stamp
	$(OSS_TOOLS) generate tiny "What is 47 + 38?" --show-analysis
	$(OSS_TOOLS) compare --output $(DEMO)
	@$(OSS_TOOLS) report $(DEMO)/comparison.json --html $(DEMO)/report.html > /dev/null

gate: .venv/demo.stamp
	$(OSS_TOOLS) compare --threads 1 --output $(GATE) --quiet > /dev/null
	$(OSS_TOOLS) report $(GATE)/comparison.json --gate tiny --baseline $(BASELINE) --junit $(GATE)/gate.xml

test: .venv/dev.stamp
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

slow: .venv/dev.stamp
	$(BIN)/python -m pytest $(PARALLEL) -m slow

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[eval]'
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[dev,eval,serve]'
	touch $@ .venv/demo.stamp
