# Everything is installed into .venv. Outside this folder only pip's cache changes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo miniature test check browser docs pictures bench quality faults paper-scale package test-oldest clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 14

demo: .venv/installed  ## adapt to generated street scenes, minutes on two cores: runs/demo/report.html
	$(BIN)/cpsl demo

miniature: .venv/installed  ## the demo on tiny data, about a minute
	rm -rf runs/miniature
	$(BIN)/cpsl adapt --config miniature

test: .venv/installed  ## run the tests and doctests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

check: .venv/installed  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

browser: .venv/installed  ## tests of the report and the site in Chromium, which must be installed
	$(BIN)/pytest tests/app/report_in_browser.py tests/site_in_browser.py

docs: .venv/installed  ## build the documentation in site/; dead links are errors
	$(BIN)/mkdocs build --strict

pictures: .venv/installed  ## draw the pictures of docs/method.md from both methods on the scenes of the demo
	$(BIN)/cpsl demo
	$(BIN)/python docs/online_pictures.py --config demo
	$(BIN)/cpsl demo --method paper --output runs/demo_paper
	$(BIN)/python docs/method_pictures.py --config demo --method paper --output runs/demo_paper

bench: .venv/installed  ## measure the speed, next to the authors' code; 15 minutes on two cores
	$(BIN)/python benchmarks/bench.py

quality: .venv/installed  ## measure the quality of adaptation, see docs/quality.md; resumable, days on two cores
	$(BIN)/python benchmarks/quality --store

faults: .venv/installed  ## damage input, files and runs, and print the outcomes; 15 minutes on two cores
	$(BIN)/python tests/robustness

paper-scale: .venv/installed  ## run iterations of each stage at the paper's sizes; 20 minutes on two cores
	$(BIN)/cpsl check --config benchmarks/paper_scale.toml

package: .venv/installed  ## build wheel and source distribution, test both in an empty environment
	.ci/package

test-oldest: .venv-oldest/installed  ## run the tests with the oldest core dependencies; Python 3.11 or 3.12
	.venv-oldest/bin/python -m pytest

clean:  ## remove everything but the runs
	rm -rf .venv .venv-oldest site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The marker is written last, so that an interrupted installation is repeated.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cpsl needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[all,docs,test,dev]'
	touch $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --editable '.[train,docs,test]' \
		torch==2.6.0 torchvision==0.21.0 numpy==1.26.0 pillow==10.1.0
	touch $@
