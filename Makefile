# `make help` is the index. Every target makes what it needs, from nothing.

PYTHON ?= python3
VENV ?= .venv
TORCH ?=
METHOD ?= delta_sam
WORKERS ?= 2

HF_VENV ?= $(VENV)-transformers
UPSTREAM_VENV ?= .venv-upstream
# A Python 3.10 that runs: the one on PATH, else the newest that pyenv has.
PYTHON310 ?= $(or \
  $(shell python3.10 -c 'import sys; print(sys.executable)' 2>/dev/null), \
  $(lastword $(sort $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python3.10))))

BIN := $(VENV)/bin
PYTEST = $(BIN)/python -m pytest
# Those that `make test` skips without the extra.
HF_TESTS := tests/hf tests/conversion/test_encoder_logits.py tests/conversion/test_export_logits.py \
  tests/per_instance/test_hugging_face.py tests/studies/test_hf_parity.py
FAST := -m "not slow and not faults and not gpu"

# `docs` is a folder as well.
.PHONY: help demo cnndm-small docs test test-transformers check gpu-rehearse all test-upstream environment format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12   which Python the environment is made with"
	@echo "  VENV=folder         where the environment is, to have several"
	@echo "  TORCH=2.4.1         exact version of torch, for an older driver say"
	@echo "  METHOD=sam          what demo and cnndm-small train with: none, sam, delta_sam, per_instance"
	@echo "  CONTINUE=1          go on with an unfinished demo or cnndm-small; RESTART=1 starts it over"
	@echo "  WORKERS=4           test processes, of one thread each"
	@echo "  DELTASAM_DATA=dir   downloaded data: for cnndm-small and the tests that read it"
	@echo "  PYTHON310=path      the Python 3.10 of test-upstream"

demo: environment ## train, decode and score a summarizer of docstrings: 8 minutes (METHOD=sam …)
	DELTASAM_BIN="$(abspath $(BIN))" scripts/demo.sh --method $(METHOD)

cnndm-small: environment ## CNN/DailyMail's commands on 1,000 pairs and a small BART (DELTASAM_DATA=dir)
	DELTASAM_BIN="$(abspath $(BIN))" METHOD=$(METHOD) scripts/cnndm.sh small

docs: environment ## the documentation site, into site/
	$(BIN)/python -m pip install -q -r requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: environment ## the test suite, without the tests marked slow, faults or gpu
	$(PYTEST) -n $(WORKERS) $(FAST)

check: environment ## format, lint, types, import arrows, doctests and README blocks
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PYTEST) -q deltasam_fairseq examples scripts tests/system/test_arrows.py tests/system/test_readme.py

gpu-rehearse: environment ## scripts/gpu.sh on a CPU, with tiny sizes: 2 minutes (docs/gpu.md)
	rm -rf build/gpu-rehearsal
	DELTASAM_INSTALLED=1 PYTHON="$(abspath $(BIN))/python" scripts/gpu.sh --rehearse \
	  --out build/gpu-rehearsal

all: check ## everything there is: check, and all tests, slow ones included
	$(PYTEST) -n $(WORKERS)

test-transformers: environment ## the tests that need Hugging Face's libraries, which lie over .venv
	@$(BIN)/python -m venv $(HF_VENV)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(HF_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(HF_VENV)/bin/python -m pip install -q --no-build-isolation --editable ".[transformers]"
	$(HF_VENV)/bin/python -m pytest -n $(WORKERS) $(FAST) $(HF_TESTS)

test-upstream: ## the test suite with fairseq 0.12.2, on Python 3.10
	@test -n "$(PYTHON310)" || { \
	  echo "No Python 3.10 found: make PYTHON310=/path/to/python3.10 test-upstream" >&2; exit 1; }
	@$(PYTHON310) scripts/environment.py --upstream $(if $(TORCH),--torch $(TORCH)) $(UPSTREAM_VENV)
	$(UPSTREAM_VENV)/bin/python -m pytest -n $(WORKERS) $(FAST)

environment: ## the virtual environment alone (.venv), built if it is not up to date
	@$(PYTHON) scripts/environment.py $(if $(TORCH),--torch $(TORCH)) $(VENV)

format: environment ## let ruff rewrite what it can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## remove environments, caches and build outputs; what the demo made stays
	rm -rf .venv .venv-transformers .venv-upstream build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find deltasam_fairseq scripts tests user_dir -name __pycache__ -type d -prune -exec rm -rf {} +
