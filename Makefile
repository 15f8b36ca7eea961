# The few commands a developer needs; each is one line that works without make as well.
PY := .venv/bin/python

setup:  ## a virtual environment with everything, at the pinned versions
	python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt -e .

test:  ## all tests, in parallel
	$(PY) -m pytest -n auto

lint:  ## style, formatting and types
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

format:  ## mend what can be mended
	$(PY) -m ruff check --fix . ; $(PY) -m ruff format .

demo:  ## the main job: ten methods on the embedded digits, then the report
	.venv/bin/adbench run --methods all --jobs 2 && .venv/bin/adbench report

site:  ## the documentation as a site, to be read from disk: site/index.html
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

pins:  ## requirements.txt from pyproject.toml (needs uv)
	{ sed -n 1p requirements.txt; uv pip compile -q pyproject.toml --extra dev --extra docs --extra onnx --universal --python-version 3.11 --no-annotate --no-header; } > requirements.new && mv requirements.new requirements.txt

help:
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/:/'

.PHONY: setup test lint format demo site pins help
