# Everything is installed into .venv; nothing outside this folder is touched but pip's cache.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo miniature test check docs pictures bench faults paper-scale package test-oldest clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 14

demo: .venv/installed  ## the whole pipeline on generated streets; ends with runs/demo/report.html
	$(BIN)/python examples/adapt.py --config examples/configs/demo.toml

miniature: .venv/installed  ## the same in about a minute: does everything run?
	rm -rf runs/miniature
	$(BIN)/python examples/adapt.py --config examples/configs/miniature.toml

test: .venv/installed  ## tests and doctests
	$(BIN)/pytest

check: .venv/installed  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/installed  ## the documentation, into site/
	$(BIN)/mkdocs build --strict

pictures: .venv/installed  ## the pictures of docs/method.md, from the demo's run
	$(BIN)/python examples/adapt.py --config examples/configs/demo.toml
	$(BIN)/python examples/method_pictures.py --config examples/configs/demo.toml

bench: .venv/installed  ## how fast it is, beside the authors' release; a quarter of an hour on two cores
	$(BIN)/python benchmarks/bench.py

faults: .venv/installed  ## bad input, broken files, killed runs: tried, survived, lost; a quarter of an hour
	$(BIN)/python faults

paper-scale: .venv/installed  ## some iterations of each stage at the paper's sizes; most of an hour on two cores
	$(BIN)/python benchmarks/paper_scale.py

package: .venv/installed  ## builds wheel and source distribution, and tries the wheel in an empty environment
	.ci/package

test-oldest: .venv-oldest/installed  ## the tests with the oldest core dependencies; Python 3.11 or 3.12
	.venv-oldest/bin/python -m pytest

clean:  ## removes what the targets above made, but for the runs
	rm -rf .venv .venv-oldest site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A marker file, written last: an interrupted installation is done again.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cpsl needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[examples,video,export,integrations,docs,test,dev]'
	touch $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --editable '.[examples,test]' \
		torch==2.6.0 torchvision==0.21.0 numpy==1.26.0 pillow==10.1.0 typing-extensions==4.10.0
	touch $@
