# Everything is installed into .venv; nothing outside this folder is touched but pip's cache.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo miniature test check docs bench paper-scale clean

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

bench: .venv/installed  ## how fast the pieces and a full step are, beside the authors' release; ten minutes on two cores
	$(BIN)/python benchmarks/pieces.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/growth.py

paper-scale: .venv/installed  ## some iterations of each stage at the paper's sizes; most of an hour on two cores
	$(BIN)/python benchmarks/paper_scale.py

clean:  ## removes what the targets above made, but for the runs
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A marker file, written last: an interrupted installation is done again.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cpsl needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[examples,integrations,docs,test,dev]'
	touch $@
