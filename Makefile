# Every target does its own set-up: a machine needs Python 3.11 and make, nothing else.
PYTHON ?= python3.11
# Another build of torch for a GPU site:  make install TORCH="torch==2.13.0 --index-url ..."
TORCH  ?= $(shell grep '^torch==' requirements.lock)
BIN    := .venv/bin
STAMP  := .venv/installed-$(shell { cat requirements.lock pyproject.toml; echo '$(TORCH)'; } | cksum | cut -d' ' -f1)

.PHONY: install browser demo test lint app poc bench clean

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

# The quality page is tested in a real browser. Debian's; elsewhere install any chromium, or those tests are skipped.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium; } >/dev/null \
	|| echo "no chromium could be installed"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint browser
	$(BIN)/pytest

app: install
	$(BIN)/parametrium job export-all jobs app

poc: install
	$(BIN)/python poc/run.py

bench: install
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/crop_loading.py
	$(BIN)/python benchmarks/dicom_import.py

clean:
	rm -rf .venv demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
