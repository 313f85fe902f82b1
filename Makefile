# Every target does its own set-up: a machine needs Python 3.11 and make, nothing else.
PYTHON ?= python3.11
# Another build of torch for a GPU site:  make install TORCH="torch==2.13.0 --index-url ..."
TORCH  ?= $(shell grep '^torch==' requirements.lock)
BIN    := .venv/bin
STAMP  := .venv/installed-$(shell { cat requirements.lock pyproject.toml; echo '$(TORCH)'; } | cksum | cut -d' ' -f1)

.PHONY: install demo test lint app poc bench clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	grep -v '^torch==' requirements.lock > .venv/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r .venv/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	rm -f .venv/installed-*
	touch $@

demo: install
	$(BIN)/parametrium demo --out demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest

app: install
	$(BIN)/parametrium job export-all jobs app

poc: install
	$(BIN)/python poc/run.py

bench: install
	$(BIN)/python benchmarks/training_step.py

clean:
	rm -rf .venv demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
