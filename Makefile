# make demo    the whole path on a random gpt-oss: synth, inspect, convert, verify, requantize, verify, bench
# make test    the tests that take no more than some ten seconds each, a few minutes in all
# make slow    the others
# make lint    ruff and mypy
#
# Each makes .venv first, with the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO := build/demo
OSS_TOOLS := $(BIN)/oss-tools

.PHONY: demo test slow lint clean

demo: .venv/demo.stamp
	rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(OSS_TOOLS) synth gpt-oss-small $(DEMO)/gpt-oss-small
	$(OSS_TOOLS) inspect $(DEMO)/gpt-oss-small
	$(OSS_TOOLS) convert $(DEMO)/gpt-oss-small $(DEMO)/gpt-oss-small.gguf
	$(OSS_TOOLS) verify $(DEMO)/gpt-oss-small $(DEMO)/gpt-oss-small.gguf
	$(OSS_TOOLS) requantize $(DEMO)/gpt-oss-small $(DEMO)/gpt-oss-small-q8.gguf --recipe mxfp4-q8 --dry-run
	$(OSS_TOOLS) requantize $(DEMO)/gpt-oss-small $(DEMO)/gpt-oss-small-q8.gguf --recipe mxfp4-q8
	$(OSS_TOOLS) verify $(DEMO)/gpt-oss-small $(DEMO)/gpt-oss-small-q8.gguf --tolerance 0.01
	$(OSS_TOOLS) bench $(DEMO)/gpt-oss-small $(DEMO)/gpt-oss-small-q8.gguf --prompt 256 --gen 64 --repeat 3

test: .venv/dev.stamp
	$(BIN)/python -m pytest -m "not slow"

slow: .venv/dev.stamp
	$(BIN)/python -m pytest -m slow

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e .
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[dev]'
	touch $@ .venv/demo.stamp
